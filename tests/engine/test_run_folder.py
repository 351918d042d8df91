"""One training per folder: what is moved aside, and which configs are kept."""

import logging
from pathlib import Path

import pytest
import yaml

from d2_pixcontrast.engine import Trainer
from d2_pixcontrast.engine.run_folder import changes, record_config, set_aside


@pytest.fixture
def run(small_cfg):
    """The config of a training with a checkpoint of its second step, and the folder."""
    options = ["SOLVER.MAX_ITER", 4, "DATASETS.TEST", (), "TEST.EXPECTED_RESULTS", []]
    small_cfg.merge_from_list([*options, "SOLVER.IMS_PER_BATCH", 2])
    folder = Path(small_cfg.OUTPUT_DIR)
    folder.mkdir(parents=True)
    training = Trainer(small_cfg)
    training.resume_or_load(resume=False)
    training.iter = training.completed_iter = 1
    training.checkpointer.save("model_0000001", iteration=1)
    return small_cfg, folder


def begin(cfg, resume):
    training = Trainer(cfg)
    training.resume_or_load(resume=resume)
    return training.start_iter


def test_a_new_training_is_not_taken_for_the_one_that_was_there(run, caplog):
    cfg, folder = run
    (folder / "log.txt").touch()
    old = (folder / "config.yaml").read_bytes()
    # Its weights may come from that very training.
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.5, "MODEL.WEIGHTS", f"{folder}/model_0000001.pth"])
    with caplog.at_level(logging.WARNING):
        assert begin(cfg, resume=False) == 0
    assert f"whose files are in {folder / 'previous.1'} now" in caplog.text
    aside = {path.name for path in (folder / "previous.1").iterdir()}
    assert aside == {"config.yaml", "last_checkpoint", "model_0000001.pth"}
    assert (folder / "previous.1" / "config.yaml").read_bytes() == old
    left = {path.name for path in folder.iterdir() if not path.name.startswith("events.")}
    assert left == {"previous.1", "config.yaml", "log.txt"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["SOLVER"]["BASE_LR"] == 0.5
    # As after a power cut before its first checkpoint.
    cfg.MODEL.WEIGHTS = ""
    with caplog.at_level(logging.WARNING):
        assert begin(cfg, resume=True) == 0
    assert f"--resume: {folder} holds no checkpoint" in caplog.text


def test_a_resumed_run_tells_what_its_config_changes_and_keeps_the_old_one(run, caplog):
    cfg, folder = run
    assert begin(cfg, resume=True) == 2
    assert not list(folder.glob("config.*.yaml")) and "Resuming with" not in caplog.text
    old = (folder / "config.yaml").read_bytes()
    cfg.merge_from_list(["MODEL.PIXEL_CONTRAST.LOSS_WEIGHT", 0.25, "SEED", 5])
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.5, "OUTPUT_DIR", f"{folder}/"])
    with caplog.at_level(logging.WARNING):
        assert begin(cfg, resume=True) == 2
    messages = [r.getMessage() for r in caplog.records if "Resuming with" in r.getMessage()]
    assert len(messages) == 3  # each once
    assert "Resuming with MODEL.PIXEL_CONTRAST.LOSS_WEIGHT 0.25, before" in caplog.text
    assert "Resuming with SOLVER.BASE_LR 0.5, before" in caplog.text
    assert "Resuming with SEED 0, the run's own; 5 is not used" in caplog.text
    assert (folder / "config.1.yaml").read_bytes() == old
    now = yaml.safe_load((folder / "config.yaml").read_text())
    assert now["MODEL"]["PIXEL_CONTRAST"]["LOSS_WEIGHT"] == 0.25 and now["SEED"] == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["MODEL.PIXEL_CONTRAST.PROJECTOR.DIM", 24], r"another shape .*Resume with the run's con"),
        (["MODEL.SEM_SEG_HEAD.CONVS_DIM", 48], r"another shape .*start from its weights"),
        (["SOLVER.OPTIMIZER", "AdamW"], r"SOLVER.OPTIMIZER is AdamW, .* written with SGD"),
    ],
)
def test_another_network_or_optimiser_is_refused_and_nothing_changes(run, options, message):
    cfg, folder = run

    def content():
        paths = (path for path in folder.iterdir() if not path.name.startswith("events."))
        return {path.name: path.read_bytes() for path in paths}

    before = content()
    cfg.merge_from_list(options)
    with pytest.raises(ValueError, match=rf"model_0000001\.pth.*{message}"):
        begin(cfg, resume=True)
    assert content() == before


def test_a_memory_of_another_size_is_no_other_network(run):
    cfg, _ = run
    cfg.MODEL.PIXEL_CONTRAST.MEMORY.ENABLED = True
    assert begin(cfg, resume=False) == 0
    training = Trainer(cfg)
    training.iter = 2
    training.checkpointer.save("model_0000002", iteration=2)
    cfg.MODEL.PIXEL_CONTRAST.MEMORY.PIXEL_SIZE += 8
    assert begin(cfg, resume=True) == 3


def test_numbers_that_are_taken_are_not_taken_again(tmp_path):
    for number in (1, 2):
        (tmp_path / "model_final.pth").write_text(str(number))
        (tmp_path / "inference").mkdir(exist_ok=True)
        assert set_aside(tmp_path) == tmp_path / f"previous.{number}"
    assert (tmp_path / "previous.1" / "model_final.pth").read_text() == "1"
    assert (tmp_path / "inference").is_dir()


def test_a_config_is_written_once(small_cfg, tmp_path):
    for _ in range(2):
        record_config(tmp_path, small_cfg)
    small_cfg.SOLVER.MAX_ITER += 1
    assert list(changes(tmp_path, small_cfg)) == [
        ("SOLVER.MAX_ITER", small_cfg.SOLVER.MAX_ITER - 1, small_cfg.SOLVER.MAX_ITER)
    ]
    record_config(tmp_path, small_cfg)
    assert {p.name for p in tmp_path.iterdir()} == {"config.yaml", "config.1.yaml"}
    assert list(changes(tmp_path, small_cfg)) == []


@pytest.mark.parametrize("text", [b"", b"\0\0\0", b"[1, 2]", b"a: [", b"\xff"])
def test_a_spoilt_config_tells_of_no_changes(small_cfg, tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text)
    assert list(changes(tmp_path, small_cfg)) == []
