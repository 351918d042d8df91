"""Config files and options of a wrong form lead to the right one."""

import json

import pytest
from conftest import INSTANT_TEST
from detectron2.config import CfgNode, get_cfg

from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.config import restore_detectron2_defaults
from d2_pixcontrast.config_errors import check_doubled_keys
from d2_pixcontrast.config_numbers import look_up
from d2_pixcontrast.engine import load_cfg


@pytest.mark.parametrize(
    "options, message",
    [
        (["SOLVER.MAXITER", "4"], r"SOLVER\.MAXITER; did you mean SOLVER\.MAX_ITER\? "),
        (["SOLVER.MAX_ITER=4"], "a blank stands between KEY and VALUE"),
        (["MODEL.PIXEL_CONTRAST.MEMORY.ENABLED", "true"], "write True or False"),
        (["SOLVER.MAX_ITER", "4.5"], "write a whole number"),
        (["SOLVER.BASE_LR", "1"], "such as 1.0"),
        (["DATASETS.TRAIN", "mine"], r'write \("one",\) or \(1, 2\), with brackets'),
        (["MODEL.SEM_SEG_HEAD.IN_FEATURES", "res5"], r'write \["one"\] or \[1, 2\], with brackets'),
        (["NOTHING.LIKE.IT", "1"], r"NOTHING\.LIKE\.IT \(keys of a plugin are there when PIX"),
    ],
)
def test_options_of_a_wrong_form_lead_to_the_right_one(options, message):
    with pytest.raises(ValueError, match=message):
        load_cfg(str(INSTANT_TEST), options)


@pytest.mark.parametrize(
    "text, message",
    [
        ("_BASE_: nowhere.yaml", r"its _BASE_ .*nowhere\.yaml does not exist; the path is rel"),
        ("SOLVER: {MAXITER: 4}", r"SOLVER\.MAXITER; did you mean SOLVER\.MAX_ITER\? "),
        ("SOLVER: {MAX_ITER: 4}\nSEED: 1\nSOLVER: {STEPS: []}", "SOLVER .* lines 1 and 3"),
        ("SOLVER:\n  MAX_ITER: 4\n  MAX_ITER: 5", "MAX_ITER is there twice, in lines 2 and 3"),
    ],
)  # fmt: skip
def test_files_of_a_wrong_form_lead_to_the_right_one(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_cfg(str(path))
    assert str(path) in str(caught.value)


def test_equal_keys_of_different_blocks_are_none_twice(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("A: &a {SIZE: 1, B: {SIZE: 2}}\nC: *a\nD: [{SIZE: 3}, {SIZE: 4}]\n")
    check_doubled_keys(str(path))


def test_several_merges_in_one_block_are_none_twice(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("A: &a {X: 1}\nB: &b {Y: 2}\nC:\n  <<: *a\n  <<: *b\n")
    check_doubled_keys(str(path))


@pytest.mark.parametrize("form", ["_BASE_: {}", "_BASE_: [{}]"])
def test_equal_keys_of_a_base_are_found(tmp_path, form):
    (tmp_path / "base.yaml").write_text("SEED: 1\nSEED: 2\n")
    (tmp_path / "mine.yaml").write_text(form.format("base.yaml"))
    with pytest.raises(ValueError, match=r"SEED is there twice, in lines 1 and 2 of .*base\.yaml"):
        load_cfg(str(tmp_path / "mine.yaml"))


def test_keys_of_ones_own_stay_beside_the_projects():
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    cfg.DATASETS.SEM_SEG_FOLDERS.mine = CfgNode({"IMAGES": "a"})
    add_pixcontrast_config(cfg, keep_defaults=True)
    assert cfg.DATASETS.SEM_SEG_FOLDERS.mine == {"IMAGES": "a"}
    cfg = get_cfg()
    cfg.INPUT.COLOR_JITTER = True
    with pytest.raises(ValueError, match="COLOR_JITTER is True in this config"):
        add_pixcontrast_config(cfg, keep_defaults=True)


def test_aliases_of_aliases_are_walked_once(tmp_path):
    path = tmp_path / "mine.yaml"
    lines = ["A0: &a0 {X: 1}"]
    lines += [f"A{i + 1}: &a{i + 1} {{X: *a{i}, Y: *a{i}}}" for i in range(60)]  # 2**60 paths
    path.write_text("\n".join(lines))
    check_doubled_keys(str(path))


def test_keys_can_be_added_beside_detectron2s_defaults():
    plain, ours, both = get_cfg(), get_cfg(), get_cfg()
    add_pixcontrast_config(ours)
    add_pixcontrast_config(both, keep_defaults=True)

    def leaves(node, prefix=""):
        for key, value in node.items():
            if hasattr(value, "items"):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    plain, ours, both = (dict(leaves(node)) for node in (plain, ours, both))
    assert both == ours | plain
    restored = get_cfg()
    add_pixcontrast_config(restored)
    restore_detectron2_defaults(restored)
    assert dict(leaves(restored)) == both | {"DETECTRON2_DEFAULTS": True}
    assert plain["INPUT.FORMAT"] == both["INPUT.FORMAT"] != ours["INPUT.FORMAT"]
    assert "MODEL.PIXEL_CONTRAST.TEMPERATURE" in both


MINE = """
DETECTRON2_DEFAULTS: {}
MODEL: {{SEM_SEG_HEAD: {{NAME: ContrastWrapperHead, WRAPPED: SemSegFPNHead}}}}
SOLVER: {{BASE_LR: 0.5}}
"""


@pytest.mark.parametrize("keep", [True, False])
def test_a_file_may_ask_for_detectron2s_defaults(tmp_path, keep):
    path, base = tmp_path / "mine.yaml", tmp_path / "base.yaml"
    base.write_text(MINE.format(keep))
    path.write_text("_BASE_: base.yaml\nINPUT: {MIN_SIZE_TEST: 640}\n")
    cfg, plain, ours = load_cfg(str(path)), get_cfg(), get_cfg()
    add_pixcontrast_config(ours)
    assert cfg.SOLVER.BASE_LR == 0.5 and cfg.INPUT.MIN_SIZE_TEST == 640
    assert cfg.MODEL.SEM_SEG_HEAD.NAME == "ContrastWrapperHead"
    for key in ("INPUT.FORMAT", "MODEL.PIXEL_STD", "SOLVER.LR_SCHEDULER_NAME"):
        theirs, own = look_up(plain, key), look_up(ours, key)
        assert theirs != own and look_up(cfg, key) == (theirs if keep else own)
    path.write_text(cfg.dump())  # what a run writes down is read as the same config
    assert json.dumps(load_cfg(str(path))) == json.dumps(cfg)


def test_detectron2s_defaults_are_no_matter_of_the_command_line():
    with pytest.raises(ValueError, match="DETECTRON2_DEFAULTS belongs into the config file"):
        load_cfg(str(INSTANT_TEST), ["DETECTRON2_DEFAULTS", "True"])
