"""Each published kind of network: every tensor lands where a table by hand says, or it is said."""

import re
import sys

import pytest
import torch
from conftest import CONFIGS
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from foreign_networks import CASES, tiny_cfg, tiny_checkpoint

from d2_pixcontrast import inference_config
from d2_pixcontrast.conversion import SOURCES, convert, write
from d2_pixcontrast.engine import SemSegCheckpointer, load_cfg

convert_module = sys.modules["d2_pixcontrast.conversion.convert"]  # the name is the function's, too


def converted(case, tmp_path, theirs, cfg=None, **entries):
    torch.save({"state_dict": theirs, **entries}, tmp_path / "theirs.pth")
    source = SOURCES[case.source]
    return convert(cfg or case.cfg(), source, str(tmp_path / "theirs.pth"))


def assert_as_wanted(state, wanted, shifted):
    for name, value in wanted.items():
        assert state[name].dtype == value.dtype, name
        if name in shifted:  # a sum taken apart again
            torch.testing.assert_close(state[name], value, atol=1e-5, rtol=0, msg=name)
        else:
            assert torch.equal(state[name], value), name


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_has_its_place(name, tmp_path):
    case = CASES[name]
    theirs, wanted = case.checkpoint()
    result = converted(case, tmp_path, theirs)
    shifted = {f"{layer}.running_mean" for layer in case.biases}
    assert_as_wanted(result.state, wanted, shifted)
    classes = case.cfg().MODEL.SEM_SEG_HEAD.NUM_CLASSES
    added = {"sem_seg_head.predictor.bias"} - set(wanted)  # the one tensor that follows from others
    assert set(result.state) == set(wanted) | added
    assert all(torch.equal(result.state[n], torch.zeros(classes)) for n in added)
    assert result.mapped == len(theirs) - len(case.dropped)
    assert sum(result.dropped.values()) == len(case.dropped)
    assert all(result.dropped)  # each has a reason
    assert result.lines()[-1] == f"mapped {result.mapped} of {len(theirs)} tensors, left 0"

    write(result, tmp_path / "ours.pth")
    model = build_model(inference_config(case.cfg()))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    SemSegCheckpointer(model, strict=True).load(str(tmp_path / "ours.pth"))
    state = model.state_dict()
    assert_as_wanted(state, {k: v for k, v in wanted.items() if k in state}, shifted)


@pytest.mark.parametrize("source", SOURCES)
def test_no_rule_is_without_a_tensor(source):
    rules, used = set(), set()
    for case in CASES.values():
        if case.source != source:
            continue
        own = [rule.pattern for rule in SOURCES[source].rules(case.cfg(DEVICE="meta"))]
        rules.update(own)
        names = [name.removeprefix("module.") for name in case.checkpoint()[0]]
        used.update(next(p for p in own if re.fullmatch(p, name)) for name in names)
    assert rules == used


def test_the_families_of_configs_are_all_tried_here():
    def kind(path):
        decoder, *rest = path.stem.split("_", 1)[1].split("_")
        backbone = "hrnet" if "hrnet" in rest else "vit" if "vit" in rest else rest[0][0]
        return path.parent.name, decoder, backbone

    folder = CONFIGS / "published"
    published = {p for p in folder.rglob("*.yaml") if not p.name.startswith("Base-")}
    tried = {folder / case.source / f"{case.config}.yaml" for case in CASES.values()}
    assert tried <= published
    assert {kind(p) for p in tried} == {kind(p) for p in published}


@torch.no_grad()
def test_a_folded_bias_gives_the_authors_output(tmp_path):
    """ContrastiveSeg's FCN head in their layers, against ours after the conversion."""
    case = CASES["contrastiveseg: fcn"]
    theirs, _ = case.checkpoint()
    for name in theirs:
        if name.endswith("running_var"):
            theirs[name] = theirs[name].abs() + 0.5
    result = converted(case, tmp_path, theirs)
    model = build_model(inference_config(case.cfg()))
    model.load_state_dict(result.state)
    head = model.eval().sem_seg_head
    sizes = {"res2": (16, 20), "res3": (8, 10), "res4": (4, 5), "res5": (2, 3)}
    shapes = model.backbone.output_shape()
    features = {n: torch.randn(1, shapes[n].channels, *size) for n, size in sizes.items()}

    layers = {n.removeprefix("module.cls_head."): v for n, v in theirs.items() if "cls_head" in n}
    resized = [
        torch.nn.functional.interpolate(f, (16, 20), mode="bilinear", align_corners=True)
        for f in features.values()
    ]
    x = torch.nn.functional.conv2d(
        torch.cat(resized, 1), layers["0.weight"], layers["0.bias"], padding=1
    )
    norm = [layers[f"1.0.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    x = torch.nn.functional.batch_norm(x, *norm).relu()
    expected = torch.nn.functional.conv2d(x, layers["3.weight"])
    found = head.predictor(head.decoder(features).features)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


# ---------------------------------------------------------------- files that lack or have too much


def test_counters_of_old_files_are_filled(tmp_path):
    theirs, wanted = tiny_checkpoint()
    counters = [name for name in theirs if name.endswith("num_batches_tracked")]
    state = {k: v for k, v in theirs.items() if k not in counters}
    result = converted(Tiny, tmp_path, state)
    assert counters and result.mapped == len(state)
    found = [name for name in result.state if name.endswith("num_batches_tracked")]
    assert all(result.state[name] == 0 for name in found)
    for_inference = [n for n in wanted if n.endswith("tracked") and ".aux_heads." not in n]
    assert set(found) == set(for_inference)
    model = build_model(inference_config(tiny_cfg()))
    write(result, tmp_path / "ours.pth")
    SemSegCheckpointer(model, strict=True).load(str(tmp_path / "ours.pth"))


def test_parts_for_training_that_the_config_lacks_are_dropped_with_the_reason(tmp_path):
    theirs, wanted = tiny_checkpoint()
    auxiliary = [name for name in theirs if name.startswith("auxiliary_head")]
    cfg = tiny_cfg(MODEL__SEM_SEG_HEAD__AUX__IN_FEATURES="[]")
    result = converted(Tiny, tmp_path, theirs, cfg)
    ((why, count),) = result.dropped.items()
    assert count == len(auxiliary) and "training alone" in why and "aux_heads" in why
    assert result.mapped == len(theirs) - count
    assert set(result.state) == {name for name in wanted if ".aux_heads." not in name}
    assert f"dropped {count} tensors: {why}" in result.lines()


def test_the_projector_is_dropped_without_its_term(tmp_path):
    case = CASES["contrastiveseg: fcn, memory"]
    theirs, _ = case.checkpoint()
    result = converted(case, tmp_path, theirs, inference_config(case.cfg()))
    assert sorted(result.dropped.values()) == [4, 8]  # queues; two convolutions, a norm, one bias
    assert any("terms.PixelContrast" in why for why in result.dropped)
    assert sum(result.dropped.values()) + result.mapped == len(theirs)


def test_what_starts_afresh_in_training_is_noted(tmp_path):
    theirs, _ = tiny_checkpoint()
    state = {k: v for k, v in theirs.items() if not k.startswith("auxiliary_head")}
    result = converted(Tiny, tmp_path, state)
    assert result.dropped == {} and result.mapped == len(state)
    (note,) = [n for n in result.notes if "start afresh" in n]
    assert note.startswith("8 tensors") and "aux_heads.res4.0.weight" in note


# ---------------------------------------------------------------- what is refused


class Tiny:
    source = "mmseg"
    cfg = staticmethod(tiny_cfg)


def refused(tmp_path, theirs, match, cfg=None, case=Tiny, **entries):
    with pytest.raises(ValueError, match=match) as caught:
        converted(case, tmp_path, theirs, cfg, **entries)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_number_of_classes_is_named(tmp_path):
    cfg = tiny_cfg(MODEL__SEM_SEG_HEAD__NUM_CLASSES=5)
    message = refused(tmp_path, tiny_checkpoint()[0], "theirs.pth: 4 tensors .* another shape", cfg)
    assert "decode_head.conv_seg" in message and "NUM_CLASSES is 5" in message
    assert "(8, 8, 1, 1)" in message and "(5, 8, 1, 1)" in message


@pytest.mark.parametrize(
    "key, value, shown, wanted",
    [
        ("INPUT.FORMAT", "BGR", "'BGR'", "'RGB'"),
        ("MODEL.SEM_SEG_HEAD.ALIGN_CORNERS", True, "True", "False"),
        ("MODEL.SEM_SEG_HEAD.ACTIVATION", "leaky_relu", "'leaky_relu'", "'relu'"),
        ("MODEL.TIMM.SIZE_DIVISIBILITY", 0, "0", "1"),
        ("MODEL.TIMM.VARIANTS", "['ceil_pool']", r"\['ceil_pool'\]", r"\[\]"),
        ("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", r"\[1.0, 1.0, 1.0\]", r"\[58.395, 57.12, 57.375\]"),
    ],
)
def test_a_setting_that_changes_the_scores_is_named(tmp_path, key, value, shown, wanted):
    cfg = tiny_cfg(**{key.replace(".", "__"): value})
    refused(tmp_path, tiny_checkpoint()[0], f"^{key} is {shown} .* mmseg .* {wanted}: ", cfg)


@pytest.mark.parametrize(
    "case, key, value",
    [
        ("contrastiveseg: fcn", "MODEL.SEM_SEG_HEAD.ACTIVATION", "leaky_relu"),
        ("contrastiveseg: fcn", "MODEL.TIMM.VARIANTS", ["first_relu_off"]),
        ("mmseg: deeplab", "MODEL.SEM_SEG_HEAD.UPSAMPLE_LOGITS", False),
        ("sssegmentation: vit", "MODEL.DATASET_MEMORY.READ", "hard"),
    ],
)
def test_other_code_bases_have_settings_of_their_own(tmp_path, case, key, value):
    cfg = CASES[case].cfg()
    cfg.merge_from_list([key, value])
    refused(tmp_path, {}, f"^{key} is ", cfg, CASES[case])


@pytest.mark.parametrize(
    "dataset, side, dilations",
    [
        ("ade20k_sem_seg_val", 512, [6, 12, 18]),
        ("coco_2017_test_stuff_10k_182_sem_seg", 512, [12, 24, 36]),
        ("coco_2017_test_stuff_10k_182_sem_seg", 473, [6, 12, 18]),
    ],
)
def test_a_vits_dilations_are_those_of_its_edition(dataset, side, dilations):
    """No shape depends on them, and another number would go unnoticed."""
    cfg = CASES["sssegmentation: vit"].cfg()
    cfg.DATASETS.TEST, cfg.MODEL.TIMM.IMAGE_SIZE = (dataset,), side
    settings = SOURCES["sssegmentation"].settings(cfg)
    assert settings["MODEL.SEM_SEG_HEAD.ASPP_DILATIONS"] == dilations


PUBLISHED = sorted(p for p in (CONFIGS / "published").rglob("*.yaml") if "Base-" not in p.name)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_nothing_is_noted_of_the_published_configs(path):
    assert convert_module._untold(load_cfg(str(path))) == []


def test_what_no_file_tells_is_noted(tmp_path):
    """Strides and dilations have no shape; a network that somebody has trained may have others."""
    (note,) = convert_module._untold(tiny_cfg(MODEL__TIMM__NAME="resnet50c"))
    assert "nothing in the file tells MODEL.TIMM.OUTPUT_STRIDE, 16 in this config" in note
    case = CASES["mmseg: deeplab"]
    cfg = case.cfg()
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS = [6, 12, 18]
    notes = converted(case, tmp_path, case.checkpoint()[0], cfg).notes
    assert any("ASPP_DILATIONS, [6, 12, 18]" in note for note in notes)


def classes_of(cfg):
    return list(MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes)


def test_the_same_classes_are_noted(tmp_path):
    names = [name.upper() for name in classes_of(tiny_cfg())]
    result = converted(Tiny, tmp_path, tiny_checkpoint()[0], meta={"CLASSES": names})
    assert result.notes == ["its 8 classes are those of shapes_sem_seg_val"]
    unnamed = converted(Tiny, tmp_path, tiny_checkpoint()[0])
    (note,) = unnamed.notes
    assert "does not name its classes" in note


def test_classes_in_another_order_are_named(tmp_path):
    names = classes_of(tiny_cfg())
    names[2], names[3] = names[3], names[2]
    message = refused(tmp_path, tiny_checkpoint()[0], "other classes", meta={"CLASSES": names})
    assert f"class 2 is '{names[2]}' there and '{names[3]}' here" in message
    assert "shapes_sem_seg_val" in message and "theirs.pth" in message


def test_other_names_of_a_few_classes_are_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(convert_module, "spelled_otherwise", lambda theirs, ours: [("a", "b")])
    names = classes_of(tiny_cfg())
    result = converted(Tiny, tmp_path, tiny_checkpoint()[0], meta={"CLASSES": names})
    assert result.notes[-1] == "taken for names of the same class: 'a' for 'b'"


def test_fewer_classes_are_named(tmp_path):
    meta = {"dataset_meta": {"classes": classes_of(tiny_cfg())[:-1]}}
    refused(tmp_path, tiny_checkpoint()[0], "names 7 classes, not 8", meta=meta)


def test_another_network_is_refused_with_what_does_not_fit(tmp_path):
    theirs, _ = tiny_checkpoint()
    theirs["decode_head.lateral_convs.0.conv.weight"] = torch.zeros(2)
    theirs["backbone.no_such_layer.weight"] = torch.zeros(2)
    del theirs["backbone.layer1.0.conv1.weight"], theirs["decode_head.conv_seg.bias"]
    message = refused(tmp_path, theirs, "theirs.pth is no checkpoint of mmseg for this config")
    assert "2 of its tensors have no place" in message and "2 tensors of the model" in message
    for name in (
        "decode_head.lateral_convs.0.conv.weight",
        "backbone.no_such_layer.weight",
        "backbone.body.layer1.0.conv1.weight",
        "sem_seg_head.predictor.bias",
    ):
        assert name in message


@pytest.mark.parametrize(
    "name", ["contrastiveseg: deeplab", "mmseg: fcn, contrast", "sssegmentation: vit"]
)
def test_every_tensor_that_is_added_or_missing_is_an_error(name, tmp_path):
    case = CASES[name]
    theirs, _ = case.checkpoint()
    extra = {**theirs, f"{case.prefix}decode_head.unknown.weight": torch.zeros(1)}
    refused(tmp_path, extra, r"1 of its tensors .*decode_head\.unknown\.weight", case=case)
    first = next(n for n in theirs if n.endswith("weight"))
    lacking = {n: v for n, v in theirs.items() if n != first}
    refused(tmp_path, lacking, "1 tensors of the model are not in it", case=case)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, value):
    theirs, _ = tiny_checkpoint()
    theirs["decode_head.convs.0.conv.weight"].view(-1)[3] = value
    refused(tmp_path, theirs, r"1 tensors hold NaN or infinity \(sem_seg_head.decoder.conv.weight")
