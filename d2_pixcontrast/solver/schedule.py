"""The polynomial schedule as a function of where training stands."""

from fvcore.common.param_scheduler import ParamScheduler


class WarmupPolySchedule(ParamScheduler):
    """``(1 - end) * (1 - where) ** power + end``, times a linear warm-up, never below a constant
    ending.

    Stateless: the factor depends on ``where`` alone, so that a run can be resumed with another
    MAX_ITER. ``where`` outside [0, 1] is clamped.
    """

    def __init__(
        self,
        power: float,
        *,
        warmup_length: float = 0.0,
        warmup_factor: float = 1.0,
        warmup_method: str = "linear",
        end: float = 0.0,
        constant_ending: float = 0.0,
    ):
        """
        Args:
            power: of the polynomial.
            warmup_length: share of the training, in [0, 1].
            warmup_factor: factor at the first iteration.
            warmup_method: "linear" or "constant".
            end: factor that the polynomial falls to.
            constant_ending: smallest factor after the warm-up.

        Raises:
            ValueError: unknown ``warmup_method``.
        """
        if warmup_method not in ("linear", "constant"):
            raise ValueError(
                f"SOLVER.WARMUP_METHOD is {warmup_method!r}; known are 'linear' and 'constant'"
            )
        self.power = power
        self.warmup_length = warmup_length
        self.warmup_factor = warmup_factor
        self.warmup_method = warmup_method
        self.end = end
        self.constant_ending = constant_ending

    def __call__(self, where: float) -> float:
        where = min(max(where, 0.0), 1.0)
        factor = (1.0 - self.end) * (1.0 - where) ** self.power + self.end
        factor = max(factor, self.constant_ending)
        if where >= self.warmup_length:
            return factor
        progress = where / self.warmup_length if self.warmup_method == "linear" else 0.0
        return factor * (self.warmup_factor + (1.0 - self.warmup_factor) * progress)
