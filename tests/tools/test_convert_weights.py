"""The converter from the command line: once from end to end, and what is wrong in one line."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from conftest import INSTANT_TEST, ROOT, load_script
from detectron2.modeling import build_model
from foreign_networks import tiny_cfg, tiny_checkpoint, tiny_options

from d2_pixcontrast import inference_config
from d2_pixcontrast.engine import SemSegCheckpointer

SCRIPT = ROOT / "tools" / "convert_weights.py"


@pytest.fixture
def checkpoint(tmp_path):
    """(file of theirs, tensors by our names)."""
    theirs, wanted = tiny_checkpoint()
    path = tmp_path / "theirs.pth"
    average = {name: value + 1 for name, value in theirs.items()}
    torch.save({"state_dict": theirs, "ema_state_dict": average}, path)
    return path, wanted


def arguments(path, output, *options, source="mmseg", copy=()):
    command = ["--source", source, "--config-file", str(INSTANT_TEST), *copy]
    return [*command, str(path), str(output), *map(str, options or tiny_options())]


def test_options_may_come_last_and_the_input_is_not_replaced(checkpoint, tmp_path):
    path, _ = checkpoint
    before = path.read_bytes()
    done = command_line(*arguments(path, tmp_path / "ours.pth"), "--copy", "ema_state_dict")
    assert done.returncode == 0, done.stderr
    done = command_line(*arguments(path, path))
    assert (
        done.stderr.strip()
        == f"convert_weights.py: OUT would replace IN, {path}; give it another name"
    )
    assert path.read_bytes() == before


def command_line(*args):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *args],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_from_their_file_to_a_model_of_ours(tmp_path, checkpoint):
    path, wanted = checkpoint
    output = tmp_path / "ours.pth"
    done = command_line(*arguments(path, output))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2:] == [
        f"mapped {len(wanted)} of {len(wanted)} tensors, left 0",
        f"wrote {output}",
    ]
    assert any("ema_state_dict" in line and "--copy" in line for line in lines[:-2])
    model = build_model(inference_config(tiny_cfg())).eval()
    SemSegCheckpointer(model, strict=True).load(str(output))
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        image = torch.zeros(3, 33, 45)
        (out,) = model([{"image": image, "height": 33, "width": 45}])
    assert out["sem_seg"].shape == (8, 33, 45)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.pth", "theirs.pth"]


def test_a_truncated_file_is_one_line_and_writes_nothing(tmp_path, checkpoint):
    path, _ = checkpoint
    path.write_bytes(path.read_bytes()[:-2000])
    done = command_line(*arguments(path, tmp_path / "ours.pth"))
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("convert_weights.py: ") and f"{path}: it is damaged" in line
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.pth"]


@pytest.fixture
def main(monkeypatch):
    """The script's main in this process, with a command line."""
    module = load_script(SCRIPT)
    monkeypatch.setattr(logging, "disable", lambda level: None)

    def run(args):
        monkeypatch.setattr(sys, "argv", [SCRIPT.name, *args])
        module.main()

    return run


def refused(main, args):
    """The line that it exits with; Python gives 1 for a text."""
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    assert caught.value.code.startswith("convert_weights.py: ")
    return caught.value.code


def test_the_average_is_taken_when_asked_for(tmp_path, checkpoint, main):
    path, wanted = checkpoint
    output = tmp_path / "ours.pth"
    main(arguments(path, output, copy=("--copy", "ema_state_dict")))
    state = torch.load(output)["model"]
    assert all(torch.equal(value, wanted[name] + 1) for name, value in state.items())


def test_errors_are_one_line_and_write_nothing(tmp_path, checkpoint, main):
    path, _ = checkpoint
    output = tmp_path / "ours.pth"
    missing = tmp_path / "nothing.pth"
    assert f"no file {missing}" in refused(main, arguments(missing, output))
    # Of another code base, whose settings the config has but not its names.
    options = tiny_options(MODEL__SEM_SEG_HEAD__UPSAMPLE_LOGITS=False)
    message = refused(main, arguments(path, output, *options, source="sssegmentation"))
    assert f"{path} is no checkpoint of sssegmentation for this config" in message
    message = refused(main, arguments(path, output, "INPUT.FORMAT", "BGR"))
    assert "INPUT.FORMAT is 'BGR'" in message
    assert "NO_SUCH_KEY" in refused(main, arguments(path, output, "MODEL.NO_SUCH_KEY", 1))
    message = refused(main, arguments(path, output, copy=("--copy", "teacher")))
    assert "'teacher'" in message and "ema_state_dict" in message
    nowhere = tmp_path / "no" / "such" / "folder" / "ours.pth"
    assert "ours.pth" in refused(main, arguments(path, nowhere))
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.pth"]


def test_an_unknown_source_is_told_the_known_ones(tmp_path, checkpoint, main, capsys):
    path, _ = checkpoint
    with pytest.raises(SystemExit) as caught:
        main(arguments(path, tmp_path / "ours.pth", source="nobody"))
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "nobody" in message and "contrastiveseg" in message
