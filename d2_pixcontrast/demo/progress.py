"""Where the demo stands, on the screen."""

import sys
import time

from detectron2.engine import HookBase


class Progress:
    """Tells on the screen where the demo stands: one line that changes, or lines in a log."""

    def __init__(self, phases: dict[str, int]):
        """
        Args:
            phases: name to number of iterations, in their order.
        """
        self._phases = phases
        self._interactive = sys.stdout.isatty()
        self._start = self._shown = 0.0

    def hook(self, phase: str) -> HookBase:
        """A hook for the trainer of one phase."""
        return _ProgressHook(self, phase)

    def begin(self) -> None:
        """A phase starts."""
        self._start = self._shown = time.perf_counter()

    def step(self, phase: str, done: int) -> None:
        """``done`` iterations of a phase are done."""
        now, total = time.perf_counter(), self._phases[phase]
        if done < total and now - self._shown < (0.5 if self._interactive else 10):
            return
        self._shown = now
        per_iteration = (now - self._start) / done
        later = list(self._phases)[list(self._phases).index(phase) + 1 :]
        left = total - done
        everything = left + sum(self._phases[name] for name in later)
        self._show(
            f"{phase:9}{100 * done // total:4} %   iteration {done}/{total}   "
            f"{per_iteration:.2f} s each   {clock(left * per_iteration)} left, "
            f"all runs {clock(everything * per_iteration)}",
            last=done == total,
        )

    def _show(self, line: str, last: bool) -> None:
        if self._interactive:
            sys.stdout.write(f"\r{line}\x1b[K" + ("\n" if last else ""))
            sys.stdout.flush()
        else:
            say(line)


class _ProgressHook(HookBase):
    def __init__(self, progress: Progress, phase: str):
        self._progress = progress
        self._phase = phase

    def before_train(self):
        self._progress.begin()

    def after_step(self):
        self._progress.step(self._phase, self.trainer.iter + 1 - self.trainer.start_iter)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def say(line: str) -> None:
    """A line on the screen, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
