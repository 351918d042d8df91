"""Checkpoints: what is dropped, what is refused, and what an interrupted write leaves."""

import functools
import http.server
import logging
import os
import threading
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import save_file

from d2_pixcontrast import inference_config
from d2_pixcontrast.engine import SemSegCheckpointer
from d2_pixcontrast.solver import build_optimizer


@pytest.fixture
def training_checkpoint(small_cfg, tmp_path):
    small_cfg.MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES = ["res5"]
    model = build_model(small_cfg)
    SemSegCheckpointer(model, str(tmp_path)).save("model_0000009", iteration=9)
    return model, str(tmp_path / "model_0000009.pth")


def equal_weights(a, b):
    own = b.state_dict()
    return all(torch.equal(v, a.state_dict()[k]) for k, v in own.items())


def test_terms_and_auxiliary_head_are_dropped_with_one_line(small_cfg, training_checkpoint, caplog):
    trained, path = training_checkpoint
    plain = build_model(inference_config(small_cfg))
    with caplog.at_level(logging.INFO):
        SemSegCheckpointer(plain, strict=True).load(path)
    assert equal_weights(trained, plain)
    lines = [r.getMessage() for r in caplog.records if "only training needs" in r.getMessage()]
    dropped = len(trained.state_dict()) - len(plain.state_dict())
    assert len(lines) == 1 and lines[0].startswith(f"Dropped {dropped} tensors")


def test_safetensors_and_data_parallel_prefix(small_cfg, training_checkpoint, tmp_path):
    trained, _ = training_checkpoint
    plain_cfg = inference_config(small_cfg)
    state = {k: v.contiguous() for k, v in trained.state_dict().items()}
    save_file(state, tmp_path / "whole.safetensors")
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "prefixed.pth")
    for name in ("whole.safetensors", "prefixed.pth"):
        for cfg in (plain_cfg, small_cfg):  # without and with terms and auxiliary head
            model = build_model(cfg)
            SemSegCheckpointer(model, strict=True).load(str(tmp_path / name))
            assert equal_weights(trained, model), name


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_weights_by_url(small_cfg, training_checkpoint, tmp_path, monkeypatch):
    trained, _ = training_checkpoint
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        plain = build_model(inference_config(small_cfg))
        SemSegCheckpointer(plain, strict=True).load(url + "model_0000009.pth")
        with pytest.raises(ValueError, match=f"cannot get {url}nowhere.pth: .*404"):
            SemSegCheckpointer(plain).load(url + "nowhere.pth")
        server.shutdown()
    assert equal_weights(trained, plain)


def test_other_classes_fine_tune_but_do_not_evaluate(small_cfg, training_checkpoint):
    trained, path = training_checkpoint
    small_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    other = build_model(inference_config(small_cfg))
    SemSegCheckpointer(other).load(path)
    assert torch.equal(
        other.backbone.state_dict()["body.conv_stem.weight"],
        trained.backbone.state_dict()["body.conv_stem.weight"],
    )
    message = r"model_0000009.pth does not fit this model: .*predictor.weight is \(8, .*\(5, "
    with pytest.raises(ValueError, match=message) as caught:
        SemSegCheckpointer(other, strict=True).load(path)
    assert "missing" not in str(caught.value)
    config = Path(path).with_name("config.yaml")
    config.write_text(trained_with := "SEED: 0")
    with pytest.raises(ValueError, match=f"{message}.*; it was probably trained with {config}$"):
        SemSegCheckpointer(other, strict=True).load(path)
    assert config.read_text() == trained_with
    config.unlink()


@pytest.mark.parametrize("name", ["empty.pth", "cut.pth", "text.pth", "cut.safetensors"])
def test_damaged_files_are_named(small_cfg, training_checkpoint, tmp_path, name):
    trained, path = training_checkpoint
    if name == "cut.safetensors":
        save_file({"a": torch.zeros(100)}, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
    else:
        whole = Path(path).read_bytes()
    content = {"empty": b"", "text": b"<!DOCTYPE html>", "cut": whole[: len(whole) // 2]}
    (tmp_path / name).write_bytes(content[name.split(".")[0]])
    with pytest.raises(ValueError, match=name) as caught:
        SemSegCheckpointer(trained).load(str(tmp_path / name))
    assert "\n" not in str(caught.value).strip()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(small_cfg, training_checkpoint, tmp_path):
    trained, _ = training_checkpoint
    torch.save({"model": {}, "x": Payload(str(tmp_path / "ran"))}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth .*would run code"):
        SemSegCheckpointer(trained).load(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_foreign_and_missing_files(small_cfg, training_checkpoint, tmp_path):
    trained, _ = training_checkpoint
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"foreign.pth does not fit the backbone mobilenetv2_035"):
        SemSegCheckpointer(trained).load(str(tmp_path / "foreign.pth"))
    with pytest.raises(ValueError, match=r"there is no file .*nowhere.pth"):
        SemSegCheckpointer(trained).load(str(tmp_path / "nowhere.pth"))


def test_backbone_weights_alone_do_not_evaluate(small_cfg, weights_dir):
    plain = build_model(inference_config(small_cfg))
    path = str(weights_dir / "mobilenetv2_035.safetensors")
    SemSegCheckpointer(plain).load(path)
    with pytest.raises(ValueError, match="fills the backbone alone"):
        SemSegCheckpointer(plain, strict=True).load(path)
    with pytest.raises(ValueError, match="fills the backbone alone"):
        SemSegCheckpointer(plain, strict=True).load("timm://mobilenetv2_035")


def test_a_write_that_fails_leaves_the_last_good_checkpoint(
    small_cfg, training_checkpoint, tmp_path, monkeypatch
):
    trained, path = training_checkpoint
    checkpointer = SemSegCheckpointer(trained, str(tmp_path))
    before = Path(path).read_bytes()

    def fails_half_way(data, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails_half_way)
    for name in ("model_0000009", "model_0000019"):
        with pytest.raises(OSError, match="No space left"):
            checkpointer.save(name)
    assert Path(path).read_bytes() == before
    assert checkpointer.get_checkpoint_file() == path
    assert not list(tmp_path.glob("*.partial"))


def test_untagged_checkpoints_are_not_resumed(small_cfg, training_checkpoint, tmp_path):
    trained, path = training_checkpoint
    checkpointer = SemSegCheckpointer(trained, str(tmp_path))
    checkpointer.save("model_best", tag=False)
    assert (tmp_path / "model_best.pth").is_file()
    assert checkpointer.get_checkpoint_file() == path


def test_another_model_is_told_with_the_way_out(small_cfg, tmp_path):
    model = build_model(small_cfg)
    optimizer = build_optimizer(small_cfg, model)
    SemSegCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000001")
    small_cfg.MODEL.SEM_SEG_HEAD.TERMS = []
    model = build_model(small_cfg)
    checkpointer = SemSegCheckpointer(
        model, str(tmp_path), optimizer=build_optimizer(small_cfg, model)
    )
    with pytest.raises(ValueError, match=r"0000001\.pth: its .* other parameters .* run's TERMS"):
        checkpointer.resume_or_load("", resume=True)


def test_other_groups_of_parameters_are_told_with_the_way_out(small_cfg, tmp_path):
    """As in a run from before norms decayed."""
    small_cfg.SOLVER.WEIGHT_DECAY, model = 0.1, build_model(small_cfg)
    for decay in (0.0, None):
        small_cfg.SOLVER.WEIGHT_DECAY_NORM = decay
        optimizer = build_optimizer(small_cfg, model)
        checkpointer = SemSegCheckpointer(model, str(tmp_path), optimizer=optimizer)
        if decay is not None:
            checkpointer.save("model_0000001")
    message = r"model_0000001\.pth: its optimiser groups .*SOLVER\.WEIGHT_DECAY_NORM 0\.0"
    with pytest.raises(ValueError, match=message):
        checkpointer.resume_or_load("", resume=True)
    small_cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    optimizer = build_optimizer(small_cfg, model)
    SemSegCheckpointer(model, str(tmp_path), optimizer=optimizer).resume_or_load("", resume=True)
