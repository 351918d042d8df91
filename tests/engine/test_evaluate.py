"""Which evaluations are run, under which names, and where their files go."""

import json

import pytest
import torch
from detectron2.modeling import build_model

from d2_pixcontrast.engine import Trainer, evaluate
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
