"""train_net.py as its users run it, on the drawn shapes."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import CONFIGS, INSTANT_TEST, ROOT

SHORT = ["SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "4", "TEST.EXPECTED_RESULTS", "[]"]
SHORT += ["MODEL.PIXEL_CONTRAST.WARMUP", "0.25", "MODEL.SEM_SEG_HEAD.SCALARS_PERIOD", "2"]


def train_net(*arguments, env=None, timeout=300):
    return subprocess.run(
        [sys.executable, "train_net.py", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run(output, *arguments, config=INSTANT_TEST, options=SHORT):
    done = train_net("--config-file", config, *arguments, "OUTPUT_DIR", output, *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def weights(path):
    return torch.load(path, weights_only=True, map_location="cpu")["model"]


def metrics(output):
    lines = (output / "metrics.json").read_text().splitlines()
    volatile = ("time", "data_time", "eta_seconds", "rank_data_time")
    records = [{k: v for k, v in json.loads(x).items() if k not in volatile} for x in lines]
    return {r["iteration"]: r for r in records}


def assert_equal_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different


def test_instant_test_learns(tmp_path):
    """Its TEST.EXPECTED_RESULTS make a run that learns nothing fail."""
    text = run(tmp_path / "run", options=[])
    assert re.search(r"rhombus +\| +\d", text)  # the table at the end
    records = metrics(tmp_path / "run")
    last = records[max(records)]
    assert last["sem_seg/mIoU"] > 5
    for name in ("num_anchors", "pos_sim", "neg_sim", "hard_ratio"):
        assert any(f"contrast/{name}" in r for r in records.values())
    assert (tmp_path / "run" / "model_best.pth").is_file()
    assert (tmp_path / "run" / "sem_seg_evaluation.json").is_file()
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    run(output)
    return output


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(whole_run, tmp_path):
    output = tmp_path / "run"
    # The first half of the same schedule: as if the machine had died after the first checkpoint.
    run(output)
    for name in ("model_final.pth", "model_best.pth"):
        (output / name).unlink()
    (output / "last_checkpoint").write_text("model_0000003.pth")
    text = run(output, "--resume", options=[*SHORT, "DATALOADER.NUM_WORKERS", "1"])
    assert "Resuming at iteration 4" in text
    assert_equal_weights(output / "model_final.pth", whole_run / "model_final.pth")
    assert metrics(output) == metrics(whole_run)
    state = torch.load(output / "model_final.pth", weights_only=True)["trainer"]
    assert state["_trainer"]["optimizer"]["state"]


def test_eval_only_is_the_plain_model_and_gives_the_same_numbers(whole_run, tmp_path):
    (tmp_path / "eval").mkdir()
    training = (whole_run / "config.yaml").read_bytes()
    (tmp_path / "eval" / "config.yaml").write_bytes(training)
    text = run(tmp_path / "eval", "--eval-only", "MODEL.WEIGHTS", whole_run / "model_final.pth")
    # What publishing tells of the training is in there.
    assert (tmp_path / "eval" / "config.yaml").read_bytes() == training
    assert "model_final.pth" in (tmp_path / "eval" / "config_eval.yaml").read_text()
    assert re.search(r"Dropped \d+ tensors that only training needs", text)
    assert "projector" not in text.split("Dropped")[0].split("Model:")[-1]
    trained = json.loads((whole_run / "sem_seg_evaluation.json").read_text())
    evaluated = json.loads((tmp_path / "eval" / "sem_seg_evaluation.json").read_text())
    assert evaluated == trained


def test_two_processes_train_and_evaluate_over_gloo(whole_run, tmp_path):
    arguments = ("--num-gpus", "2", "--dist-url", "auto")
    text = run(tmp_path / "two", *arguments)
    assert "World size: 2" in text
    state = weights(tmp_path / "two" / "model_final.pth")
    alone = weights(whole_run / "model_final.pth")
    assert state.keys() == alone.keys()
    # Batch norm sees half the images per process, so that the two runs are alike, not equal.
    start = "sem_seg_head.predictor.weight"
    assert torch.cosine_similarity(state[start].flatten(), alone[start].flatten(), dim=0) > 0.9
    # Every image was scored once, by one of the two.
    one = json.loads((whole_run / "sem_seg_evaluation.json").read_text())
    two = json.loads((tmp_path / "two" / "sem_seg_evaluation.json").read_text())
    assert two["num_images"] == one["num_images"] == 60


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["DATASETS.TRAIN", "('shapes_sem_seg_trian',)"],
            "shapes_sem_seg_trian is not registered",
        ),
        (["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "19"], r"NUM_CLASSES is 19, but .*shapes.* 8"),
        (["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "0"], r"IGNORE_VALUE is 0, but .*shapes.* 255"),
        (["MODEL.DEVICE", "cuda"], r"MODEL.DEVICE is 'cuda', but torch sees no GPU"),
        (["SOLVER.MAX_ITERR", "3"], r"SOLVER.MAX_ITERR"),
    ],
)
def test_bad_settings_end_in_one_line(tmp_path, options, message):
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = train_net("--config-file", INSTANT_TEST, "OUTPUT_DIR", tmp_path / "run", *options)
    assert done.returncode == 1
    assert re.search(message, done.stderr.strip().splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()  # nothing was built


def test_missing_data_set_names_folder_and_command(tmp_path):
    config = CONFIGS / "CamVid-SemanticSegmentation" / "deeplabv3plus_mobilenetv2_ce_cpu.yaml"
    done = train_net("--config-file", config, env={"DETECTRON2_DATASETS": str(tmp_path)})
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert str(tmp_path / "camvid" / "train") in last and "git clone" in last


@pytest.mark.parametrize(
    "weights, message",
    [
        ("nowhere.pth", "there is no file nowhere.pth"),
        ("timm://mobilenetv2_100", "weights of mobilenetv2_100"),
        ("", "--eval-only needs a checkpoint"),
    ],
)
def test_bad_weights_end_in_one_line(tmp_path, weights, message):
    arguments = ["--config-file", INSTANT_TEST, "--eval-only", "OUTPUT_DIR", tmp_path / "run"]
    env = {"PIXCONTRAST_WEIGHTS_DIR": str(tmp_path)}
    (tmp_path / "mobilenetv2_100.safetensors").write_bytes(b"")
    done = train_net(*arguments, "MODEL.WEIGHTS", weights, env=env)
    assert done.returncode == 1
    assert message in done.stderr.strip().splitlines()[-1], done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_help_shows_examples():
    done = train_net("--help")
    assert done.returncode == 0
    for text in ("--resume", "--eval-only MODEL.WEIGHTS", "--num-gpus 8", "--dist-url"):
        assert text in done.stdout
