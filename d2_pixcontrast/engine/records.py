"""What a run records, such that a resumed run records the same as an uninterrupted one."""

import json
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

from .checkpoint_files import write_atomically
from .run_folder import unused_name

WINDOW = 20  # values that a record's median runs over, and iterations between two records


class MetricsWriter(EventWriter):
    """Appends to ``metrics.json`` what detectron2's JSONWriter would, without loss or repetition.

    One JSON object a line: values of one iteration, medians of the last :data:`WINDOW` where they
    are noisy. :meth:`resume` removes what the resumed run is about to write again.
    """

    def __init__(self, path: str, max_iter: int):
        """
        Args:
            path: of the file.
            max_iter: of the training.
        """
        self._path = Path(path)
        self._max_iter = max_iter
        self._last = -1  # newest iteration that has been written
        self._file = None

    def resume(self, start_iter: int) -> None:
        """Keep the records before ``start_iter``, and no line that a crash has torn.

        The file of another run in the same folder, which is not resumed, is moved aside.
        """
        if not self._path.exists():
            return
        if start_iter == 0:
            self._path.rename(unused_name(self._path))
            return
        lines = self._path.read_text(errors="replace").splitlines()
        kept = [
            (i, line) for line in lines if (i := _iteration(line)) is not None and i < start_iter
        ]
        self._last = max((i for i, _ in kept), default=-1)
        text = "".join(f"{line}\n" for _, line in kept)
        write_atomically(self._path, lambda file: file.write(text.encode()))

    def write(self) -> None:
        """Append what is new, but not amid a window or a step, where a crash leads us."""
        storage = get_event_storage()
        values = storage.latest_with_smoothing_hint(WINDOW)
        at_end = (storage.iter + 1) % WINDOW == 0 or storage.iter >= self._max_iter - 1
        if not at_end or all(iteration < storage.iter for _, iteration in values.values()):
            return
        records: dict[int, dict] = {}
        for name, (value, iteration) in values.items():
            if iteration > self._last:
                records.setdefault(iteration, {"iteration": iteration})[name] = value
        if self._file is None:
            self._file = self._path.open("a")
        for iteration in sorted(records):
            self._file.write(json.dumps(records[iteration], sort_keys=True) + "\n")
            self._last = iteration
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class RecordsHook(HookBase):
    """Makes the recent values of all scalars part of the checkpoint.

    Records hold medians of the last values, and the best result so far: without them the first
    records after a resume would be other ones.
    """

    def __init__(self, writer: MetricsWriter | None):
        """
        Args:
            writer: of this run, on the main process.
        """
        self._writer = writer
        self._state: dict | None = None

    def before_train(self):
        storage, start = self.trainer.storage, self.trainer.start_iter
        if self._state is not None:
            for name, values in self._state["values"].items():
                for value, iteration in values:
                    storage.iter = iteration
                    storage.put_scalar(name, value, smoothing_hint=self._state["smoothed"][name])
            storage.iter = start
        if self._writer is not None:
            self._writer.resume(start)

    def state_dict(self) -> dict:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:  # before the training
            return self._state or {"values": {}, "smoothed": {}}
        values = {name: h.values()[-WINDOW:] for name, h in storage.histories().items()}
        return {
            "values": {n: [[float(v), int(i)] for v, i in pairs] for n, pairs in values.items()},
            "smoothed": dict(storage.smoothing_hints()),
        }

    def load_state_dict(self, state: dict) -> None:
        self._state = state


def _iteration(line: str) -> int | None:
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return None
