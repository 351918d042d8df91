"""Which evaluations are run, under which names, and where their files go."""

import copy
import json

import pytest
import torch
import torch.distributed as dist
from conftest import INSTANT_TEST
from detectron2.modeling import build_model
from ranks import run_ranks

from d2_pixcontrast.engine import Trainer, evaluate, load_cfg
from d2_pixcontrast.engine.trainer import merge_results
from d2_pixcontrast.evaluation import SemSegEvaluator
from d2_pixcontrast.modeling.inference import MultiScaleFlip, SlidingWindow


@pytest.fixture
def cfg(small_cfg, made_up_dataset, tmp_path):
    name, _ = made_up_dataset
    small_cfg.merge_from_list(
        [
            *("DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "TEST.EXPECTED_RESULTS", []),
            *("TEST.AUG.SCALES", [0.8, 1.0], "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2),
            *("MODEL.WEIGHTS", str(tmp_path / "weights.pth"), "INPUT.MIN_SIZE_TEST", 60),
            *("INPUT.CROP.SIZE", [64, 64], "MODEL.SEM_SEG_HEAD.TERMS", []),
        ]
    )
    torch.manual_seed(0)
    torch.save({"model": build_model(small_cfg).state_dict()}, small_cfg.MODEL.WEIGHTS)
    return small_cfg


def by_hand(cfg, wrap):
    """The scores of the wrapped model, by a loop over the test set."""
    model = build_model(cfg)
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS)["model"])
    model = wrap(model.eval())
    evaluator = SemSegEvaluator(cfg.DATASETS.TEST[0], boundary_width=2)
    with torch.no_grad():
        for batch in Trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0]):
            evaluator.process(batch, model(batch))
    return evaluator.evaluate()["sem_seg"]


def test_eval_only_with_windows_and_scales(cfg, tmp_path):
    cfg.merge_from_list(
        [
            *("TEST.SLIDING.ENABLED", True, "TEST.SLIDING.SIZE", [48, 64]),
            *("TEST.SLIDING.STRIDE", [30, 40], "TEST.AUG.ENABLED", True),
            *("TEST.BOUNDARY_IOU.ENABLED", True, "TEST.BOUNDARY_IOU.WIDTH", 2.0),
        ]
    )
    results = evaluate(cfg, Trainer)
    assert list(results) == ["sem_seg", "sem_seg_TTA"]

    def windows(model):
        mean = cfg.MODEL.PIXEL_MEAN
        return SlidingWindow(model, size=(48, 64), stride=(30, 40), pad_value=mean)

    expected = {
        "sem_seg": by_hand(cfg, windows),
        "sem_seg_TTA": by_hand(
            cfg, lambda m: MultiScaleFlip(windows(m), scales=[0.8, 1.0], flip=True)
        ),
    }
    for task, scores in expected.items():
        assert results[task] == pytest.approx(scores, nan_ok=True)
    assert results["sem_seg"] != results["sem_seg_TTA"]
    for folder, task in (("", "sem_seg"), ("inference_TTA", "sem_seg_TTA")):
        path = tmp_path / "output" / folder / "sem_seg_evaluation.json"
        assert json.loads(path.read_text())["sem_seg"]["mBIoU"] == results[task]["mBIoU"]


def test_without_the_keys_there_is_one_evaluation(cfg, tmp_path):
    results = evaluate(cfg, Trainer)
    assert list(results) == ["sem_seg"] and "mBIoU" not in results["sem_seg"]
    assert not (tmp_path / "output" / "inference_TTA").exists()


def test_several_data_sets_do_not_overwrite_each_other(cfg, tmp_path):
    cfg.merge_from_list(
        ["DATASETS.TEST", (*cfg.DATASETS.TEST, "shapes_sem_seg_val"), "TEST.AUG.ENABLED", True]
    )
    folders = {
        Trainer.build_evaluator(cfg, name, folder)._output_dir.rstrip("/")
        for name in cfg.DATASETS.TEST
        for folder in ("", "inference_TTA")
    }
    assert len(folders) == 4
    results = {"a": {"sem_seg": 1}, "b": {"sem_seg": 2}}
    merge_results(results, {"a": {"sem_seg_TTA": 3}, "b": {"sem_seg_TTA": 4}})
    assert results == {
        "a": {"sem_seg": 1, "sem_seg_TTA": 3},
        "b": {"sem_seg": 2, "sem_seg_TTA": 4},
    }


def test_training_tests_at_several_scales_once_at_its_end(cfg, tmp_path):
    cfg.merge_from_list(
        [
            *("MODEL.WEIGHTS", "", "TEST.EVAL_PERIOD", 1, "TEST.AUG.ENABLED", True),
            *("TEST.EXPECTED_RESULTS", [["sem_seg_TTA", "mIoU", 50.0, 50.0]]),
        ]
    )
    (tmp_path / "output").mkdir()
    calls = []

    class CountingTrainer(Trainer):
        @classmethod
        def test_with_TTA(cls, cfg, model):
            calls.append("TTA")
            return super().test_with_TTA(cfg, model)

        @classmethod
        def test(cls, cfg, model, evaluators=None):
            calls.append("single")
            return super().test(cfg, model, evaluators)

    trainer = CountingTrainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    assert calls == ["single", "single", "TTA"]
    assert set(results) == {"sem_seg", "sem_seg_TTA"}
    lines = [json.loads(x) for x in (tmp_path / "output" / "metrics.json").open()]
    assert lines[-1]["sem_seg_TTA/mIoU"] == results["sem_seg_TTA"]["mIoU"]
    assert trainer.model.training  # evaluation leaves the model as it was


def _statistics_after_tests(rank, folder):
    """Batch norm's of two evaluations, each after statistics that only this rank has."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", world_size=2, rank=rank)
    cfg = load_cfg(str(INSTANT_TEST), ["DATASETS.TEST", "()"])
    torch.manual_seed(rank)
    norms = torch.nn.Sequential(
        torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3, track_running_stats=False)
    )
    found = []
    for test in (Trainer.test, Trainer.test_with_TTA):
        norms(torch.randn(2, 3, 4, 4))
        before = [norms[0].running_mean.clone(), norms[0].running_var.clone()]
        test(cfg, norms)
        after = [norms[0].running_mean, norms[0].running_var]
        found.append((before, copy.deepcopy(after)))
    torch.save(found, f"{folder}/rank{rank}.pth")
    dist.destroy_process_group()


def test_all_ranks_evaluate_the_network_that_is_saved(tmp_path):
    """The first one's. Without SyncBN each has batch norm's statistics of its own images."""
    run_ranks(_statistics_after_tests, (str(tmp_path),), 2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in range(2))
    for (saved, evaluated), (before, others) in zip(first, second, strict=True):
        for own, here, differs, there in zip(saved, evaluated, before, others, strict=True):
            assert not torch.equal(own, differs)
            assert torch.equal(own, here) and torch.equal(own, there)
