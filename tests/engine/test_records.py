"""metrics.json of an interrupted run is that of an uninterrupted one."""

import json

import pytest
from detectron2.engine import TrainerBase, hooks

from d2_pixcontrast.engine.records import WINDOW, MetricsWriter, RecordsHook


class Loop(TrainerBase):
    """Records a loss in every step, something else in every seventh, and a result now and then."""

    def __init__(self, path, max_iter, stop=None):
        super().__init__()
        self.stop = stop
        writer = MetricsWriter(path, max_iter)
        self.records = RecordsHook(writer)
        self.register_hooks([self.records, hooks.PeriodicWriter([writer], period=WINDOW)])
        self.saved = {}

    def run_step(self):
        if self.iter == self.stop:
            raise KeyboardInterrupt
        self.storage.put_scalars(loss=(self.iter * 37 % 101) / 7)
        if self.iter % 7 == 0:
            self.storage.put_scalars(seldom=self.iter**0.5)

    def after_step(self):
        if self.iter in (24, 50):
            self.storage.put_scalars(**{"sem_seg/mIoU": self.iter / 3}, smoothing_hint=False)
        super().after_step()
        self.saved[self.iter] = self.records.state_dict()


def whole(path, max_iter=70):
    Loop(path, max_iter).train(0, max_iter)
    return path.read_text()


@pytest.mark.parametrize("saved", [0, 5, 18, 19, 20, 24, 30, 39, 50, 52, 68])
@pytest.mark.parametrize("lost", [1, 9])
def test_resumed_records_are_equal(tmp_path, saved, lost):
    """Killed ``lost`` iterations after the checkpoint of iteration ``saved``."""
    expected = whole(tmp_path / "whole.json")
    path = tmp_path / "metrics.json"
    first = Loop(path, 70, stop=min(saved + lost, 69))
    with pytest.raises(KeyboardInterrupt):
        first.train(0, 70)
    path.write_text(path.read_text() + '{"iteration": 5') if path.exists() else None  # torn
    second = Loop(path, 70)
    second.records.load_state_dict(json.loads(json.dumps(first.saved[saved])))
    second.train(saved + 1, 70)
    assert path.read_text() == expected


def test_format_is_detectron2s(tmp_path):
    records = [json.loads(line) for line in whole(tmp_path / "m.json").splitlines()]
    assert [r["iteration"] for r in records] == [14, 19, 24, 35, 39, 50, 56, 59, 63, 69]
    losses = sorted((i * 37 % 101) / 7 for i in range(20))
    assert records[1]["loss"] == pytest.approx((losses[9] + losses[10]) / 2)
    assert records[2]["sem_seg/mIoU"] == 8.0


def test_records_of_another_run_are_moved_aside(tmp_path):
    path = tmp_path / "metrics.json"
    first = whole(path)
    second = whole(path, max_iter=20)
    third = whole(path, max_iter=40)
    assert path.read_text() == third
    assert (tmp_path / "metrics.1.json").read_text() == first
    assert (tmp_path / "metrics.2.json").read_text() == second
