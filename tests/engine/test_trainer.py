"""The trainer's parts that a single CPU process can show."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model
from detectron2.utils import comm

from d2_pixcontrast.engine import Trainer, trainer
from d2_pixcontrast.modeling import TimmBackbone


@pytest.mark.parametrize("sync_bn", [True, False])
def test_batch_norm_is_synchronised_on_several_gpus(small_cfg, monkeypatch, sync_bn):
    """Timm's norm layers hold activations, which torch's own conversion drops."""
    plain = build_model(small_cfg).eval()
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(trainer, "build_model", lambda cfg: plain)
    image = torch.randn(1, 3, 64, 64)
    before = plain.backbone(image)["res5"]
    small_cfg.MODEL.DEVICE, small_cfg.MODEL.SYNC_BN = "cuda", sync_bn
    model = Trainer.build_model(small_cfg).eval()
    synchronised = sum(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())
    assert (synchronised > 50) == sync_bn
    torch.testing.assert_close(model.backbone(image)["res5"], before)


def test_channels_last_is_the_same_network(small_cfg):
    images = [{"image": torch.rand(3, 61, 77) * 255, "height": 61, "width": 77}]
    outputs = []
    for channels_last in (False, True):
        small_cfg.MODEL.CHANNELS_LAST = channels_last
        torch.manual_seed(0)
        model = Trainer.build_model(small_cfg).eval()
        weights = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1]
        spatial = [w for w in weights if w.shape[2] > 1]  # of 1x1 both layouts are the same
        assert spatial and all(w.is_contiguous() != channels_last for w in spatial)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert all(w.is_contiguous(memory_format=layout) for w in weights)
        with torch.no_grad():
            outputs.append(model(images)[0]["sem_seg"])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
    assert outputs[0].std() > 1e-4


def test_detectron2s_deeplab_resnet(small_cfg):
    small_cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "meta", "MODEL.BACKBONE.NAME", "build_resnet_deeplab_backbone"),
            *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.OUT_FEATURES", ["res4", "res5"]),
            *("MODEL.RESNETS.RES4_DILATION", 2, "MODEL.RESNETS.RES5_DILATION", 4),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.STEM_TYPE", "deeplab"),
            *("MODEL.SEM_SEG_HEAD.DECODER", "DeepLabV3Decoder"),
            *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5"]),
            *("MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES", ["res4"]),
            *("MODEL.PIXEL_CONTRAST.IN_FEATURES", ["res5"]),
        ]
    )
    with torch.device("meta"):
        model = build_model(small_cfg)
        features = model.backbone(torch.zeros(1, 3, 64, 96))
        logits, _ = model.eval().sem_seg_head(features)
    assert not isinstance(model.backbone, TimmBackbone)
    assert features["res5"].shape == (1, 2048, 8, 12)  # output stride 8
    assert logits.shape == (1, 8, 64, 96)


@pytest.fixture
def interrupted_run(small_cfg):
    """The config of a training that has taken two of its four steps."""
    options = ["SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "DATASETS.TEST", ()]
    small_cfg.merge_from_list([*options, "SOLVER.IMS_PER_BATCH", 2, "TEST.EXPECTED_RESULTS", []])
    Path(small_cfg.OUTPUT_DIR).mkdir(parents=True)
    training = Trainer(small_cfg)
    training.max_iter = 2
    training.train()
    assert [p.name for p in Path(small_cfg.OUTPUT_DIR).glob("*.pth")] == ["model_final.pth"]
    Path(small_cfg.OUTPUT_DIR, "model_final.pth").rename(
        f"{small_cfg.OUTPUT_DIR}/model_0000001.pth"
    )
    return small_cfg


@pytest.mark.parametrize("tag", [None, "model_0000001.pth"])
def test_a_run_is_resumed_where_it_was_with_a_tag_or_without(interrupted_run, tag):
    file = Path(interrupted_run.OUTPUT_DIR, "last_checkpoint")
    file.unlink() if tag is None else file.write_text(tag)
    training = Trainer(interrupted_run)
    training.resume_or_load(resume=True)
    assert training.start_iter == training.data_loader.start_iter == 2
    assert training.scheduler.last_epoch == 2


def test_a_resumed_run_takes_the_schedule_of_its_config(interrupted_run, caplog):
    (Path(interrupted_run.OUTPUT_DIR) / "last_checkpoint").unlink()

    def groups(*options):
        interrupted_run.merge_from_list(list(options))
        training = Trainer(interrupted_run)
        training.resume_or_load(resume=True)
        assert any(training.optimizer.state.values())  # momentum
        keys = ("lr", "initial_lr", "weight_decay", "momentum")
        found = [[group[key] for key in keys] for group in training.optimizer.param_groups]
        assert training.scheduler.base_lrs == [group[1] for group in found]
        assert not math.isclose(found[0][0], found[0][1])  # within the schedule
        return torch.tensor(found, dtype=torch.float64)

    saved = torch.load(f"{interrupted_run.OUTPUT_DIR}/model_0000001.pth", weights_only=True)
    saved = saved["trainer"]["_trainer"]["optimizer"]["param_groups"]
    before = groups()
    assert before[:, 0].tolist() == [group["lr"] for group in saved]
    lr, decay, momentum = (
        interrupted_run.SOLVER[key] for key in ("BASE_LR", "WEIGHT_DECAY", "MOMENTUM")
    )
    with caplog.at_level(logging.WARNING):
        after = groups(
            *("SOLVER.BASE_LR", lr * 10, "SOLVER.WEIGHT_DECAY", decay * 3),
            *("SOLVER.MOMENTUM", momentum / 2),
        )
    torch.testing.assert_close(after, before * torch.tensor([10, 10, 3, 0.5]).double())
    for key, value in (("BASE_LR", lr), ("WEIGHT_DECAY", decay), ("MOMENTUM", momentum)):
        assert f"Resuming with SOLVER.{key} {interrupted_run.SOLVER[key]}, before {value}" in (
            caplog.text
        )


def test_a_resumed_run_draws_what_its_own_seed_says(interrupted_run):
    """Nobody else knows the seed of a run with SEED -1; here the fresh trainer has another one."""
    interrupted_run.SEED = 7
    training = Trainer(interrupted_run)
    assert training.data_loader.seed == training._progress_hook.seed == 7
    training.resume_or_load(resume=True)
    assert training.seed == training.data_loader.seed == training._progress_hook.seed == 0


def test_a_finished_run_is_evaluated_again_and_no_more(small_cfg, made_up_dataset):
    name, _ = made_up_dataset
    options = ["SOLVER.MAX_ITER", 2, "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)]
    small_cfg.merge_from_list([*options, "SOLVER.IMS_PER_BATCH", 2, "TEST.EXPECTED_RESULTS", []])
    folder = Path(small_cfg.OUTPUT_DIR)
    folder.mkdir(parents=True)

    def records():
        """{iteration: mIoU}; the last one is that of the final evaluation."""
        lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
        return {r["iteration"]: r.get("sem_seg/mIoU") for r in lines}

    training = Trainer(small_cfg)
    training.train()
    before = records()
    assert set(before) == {1, 2} and before[2] is not None
    weights = {k: v.clone() for k, v in training.model.state_dict().items()}
    for max_iter in (2, 1):  # a smaller MAX_ITER than it was trained with
        small_cfg.SOLVER.MAX_ITER = max_iter
        again = Trainer(small_cfg)
        again.resume_or_load(resume=True)
        again.train()
        assert again.start_iter == 2
        assert all(torch.equal(weights[k], v) for k, v in again.model.state_dict().items())
        assert records() == before
        saved = torch.load(folder / "model_final.pth", weights_only=True)
        assert saved["iteration"] == 1
        assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_every_solver_key_reaches_its_place(small_cfg):
    values = {
        **{"AMP.ENABLED": True, "AMP.DTYPE": "bfloat16", "MAX_SKIPPED_STEPS": 3},
        **{"LOSS_SPIKE_FACTOR": 7.0, "CHECKPOINTS_TO_KEEP": 2, "MAX_ITER": 9},
    }
    small_cfg.merge_from_list([p for k, v in values.items() for p in (f"SOLVER.{k}", v)])
    training = Trainer(small_cfg)
    step = training._trainer
    assert (step._amp_dtype, step._max_skipped, step._spike_factor) == (torch.bfloat16, 3, 7.0)
    assert (training.checkpointer.checkpoints_to_keep, training.max_iter) == (2, 9)
    small_cfg.SOLVER.AMP.ENABLED = False
    assert Trainer(small_cfg)._trainer._amp_dtype is None


def test_a_schedule_for_two_processes_is_scaled_to_one(small_cfg):
    """Detectron2's rule; config.yaml keeps what was configured, for a resume on other machines."""
    values = {"REFERENCE_WORLD_SIZE": 2, "IMS_PER_BATCH": 4, "BASE_LR": 0.1, "MAX_ITER": 10}
    small_cfg.merge_from_list([p for k, v in values.items() for p in (f"SOLVER.{k}", v)])
    Path(small_cfg.OUTPUT_DIR).mkdir(parents=True)
    training = Trainer(small_cfg)
    training.resume_or_load(resume=False)
    assert (training.max_iter, len(next(iter(training.data_loader)))) == (20, 2)
    lr = training.optimizer.param_groups[0]["initial_lr"]
    assert lr == pytest.approx(0.05 * small_cfg.SOLVER.BACKBONE_LR_MULTIPLIER)
    written = yaml.safe_load(Path(small_cfg.OUTPUT_DIR, "config.yaml").read_text())["SOLVER"]
    assert {key: written[key] for key in values} == values
