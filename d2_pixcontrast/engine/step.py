"""One training step."""

import logging
import math
import time

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from ..contrast import ClassMemory

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
NORM_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_GRADIENT = "a gradient"
_SCALE_PERIOD = 20  # iterations between two looks at the loss scale
_SMALLEST_SCALE = 2.0**-8  # 2**16 at first, and halved by every gradient that is not finite
_SPIKE_WINDOW = 20  # iterations whose median a spike is compared with


class StepTrainer(SimpleTrainer):
    """Forward, backward, update, with or without mixed precision, on any device.

    Detectron2's AMPTrainer insists on CUDA and, in 0.5, on float16. A loss or gradient that is not
    finite stops the training before it reaches the weights, or has its step skipped; of the
    gradients of float16 some are expected to overflow, and the scaler skips these.
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        amp_dtype: str | None = None,
        max_skipped_steps: int = 0,
        spike_factor: float = 0.0,
    ):
        """
        Args:
            model, data_loader, optimizer: as for detectron2's SimpleTrainer.
            amp_dtype: "float16" (with loss scaling), "bfloat16", or None for full precision.
            max_skipped_steps: steps in a row that may be skipped because a loss or gradient is not
                finite; 0 = training stops at the first.
            spike_factor: a total loss above this times its recent median is logged; 0 = never.

        Raises:
            ValueError: another ``amp_dtype``, or a negative number.
        """
        super().__init__(model, data_loader, optimizer)
        if amp_dtype is not None and amp_dtype not in _DTYPES:
            raise ValueError(f"SOLVER.AMP.DTYPE is {amp_dtype!r}; known are {sorted(_DTYPES)}")
        for key, value in (
            ("MAX_SKIPPED_STEPS", max_skipped_steps),
            ("LOSS_SPIKE_FACTOR", spike_factor),
        ):
            if value < 0:
                raise ValueError(f"SOLVER.{key} is {value}; it cannot be negative")
        self._amp_dtype = _DTYPES.get(amp_dtype)
        self._device_type = next(model.parameters()).device.type
        self._max_skipped = max_skipped_steps
        self._spike_factor = spike_factor
        self._gradients_reach_all = False  # known after the first step
        self.skipped_in_a_row = 0
        self.grad_scaler = torch.amp.GradScaler(
            self._device_type, enabled=self._amp_dtype is torch.float16
        )

    def run_step(self):
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        written = self._written_by_forward() if self._max_skipped else {}
        with torch.autocast(
            self._device_type, self._amp_dtype, enabled=self._amp_dtype is not None
        ):
            loss_dict = self.model(data)
        losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        self._check_that_gradients_reach_all()
        norm = self._gradient_norm()
        if self._max_skipped and not self._is_finite(losses, norm):
            self._skip(loss_dict, data, written)
            return
        self.skipped_in_a_row = 0
        self._write_metrics(loss_dict, data_time, images=_names(data), norm=norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self._check_scale()

    def _write_metrics(self, loss_dict, data_time, prefix="", images=(), norm=None) -> None:
        """Record the losses, averaged over the ranks, under detectron2's names.

        Raises:
            FloatingPointError: a loss of any rank, or the gradient, whose ``norm`` is given, is not
                finite; names iteration, loss and images.
        """
        # All in one transfer, which waits for the backward pass anyhow.
        scalars = [*loss_dict.values(), *([] if norm is None else [norm])]
        values = torch.stack([value.detach().float() for value in scalars]).tolist()
        own = dict(zip(loss_dict, values))
        bad = [name for name, value in own.items() if not math.isfinite(value)]
        # Of all ranks alike: one that is not finite may be due to a loss of any of them.
        bad_gradient = norm is not None and not math.isfinite(values[-1])
        # The names travel only if they are needed.
        gathered = comm.gather((own, data_time, bad, images if bad or bad_gradient else ()))
        if bad and not comm.is_main_process():
            raise FloatingPointError(_not_finite(self.iter, bad, images))
        if not comm.is_main_process():
            return
        for _, _, names, their_images in gathered:
            if names:
                raise FloatingPointError(_not_finite(self.iter, names, their_images))
        if bad_gradient:
            everybodys = [name for *_, their_images in gathered for name in their_images]
            raise FloatingPointError(_not_finite(self.iter, [_GRADIENT], everybodys))
        storage = get_event_storage()
        means = {n: sum(losses[n] for losses, *_ in gathered) / len(gathered) for n in own}
        self._log_spike(sum(means.values()), means, images)
        storage.put_scalar("data_time", max(seconds for _, seconds, *_ in gathered))
        storage.put_scalar(f"{prefix}total_loss", sum(means.values()))
        storage.put_scalars(**means)

    def _log_spike(self, total: float, means: dict[str, float], images) -> None:
        history = get_event_storage().histories().get("total_loss")
        if not self._spike_factor or history is None or len(history.values()) < _SPIKE_WINDOW:
            return
        usual = history.median(_SPIKE_WINDOW)
        if total > self._spike_factor * usual:
            parts = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
            logging.getLogger(__name__).warning(
                f"Loss spike at iteration {self.iter}: {total:.4g}, the usual is {usual:.4g} "
                f"({parts}); images of this process: {', '.join(images)}"
            )

    def _check_that_gradients_reach_all(self) -> None:
        """DDP waits for every gradient, and would end the second step without a name.

        Raises:
            ValueError: with several processes a parameter that is trained has none after the first.
        """
        if self._gradients_reach_all or comm.get_world_size() == 1:
            return
        named = self.model.named_parameters()
        unread = [n for n, p in named if p.requires_grad and p.grad is None]
        if unread:
            raise ValueError(
                f"no loss depends on {len(unread)} parameters "
                f"({unread[0].removeprefix('module.')}, ...), for whose "
                "gradients several processes would wait: leave features that nothing reads out of "
                "MODEL.TIMM.OUT_FEATURES (or RESNETS.OUT_FEATURES), and let a term of your own use "
                "all that it has"
            )
        self._gradients_reach_all = True

    def _gradient_norm(self) -> torch.Tensor | None:
        """Of all gradients together; None with the scaler, which looks at them itself."""
        if self.grad_scaler.is_enabled():
            return None
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    def _check_scale(self) -> None:
        """Raises FloatingPointError where the scaler has skipped nothing but bad gradients for so
        long that its scale has vanished. Looked at now and then, since it waits for the device."""
        if not self.grad_scaler.is_enabled() or (self.iter + 1) % _SCALE_PERIOD:
            return
        scale = self.grad_scaler.get_scale()
        if scale < _SMALLEST_SCALE:
            raise FloatingPointError(
                f"not finite at iteration {self.iter}: {_GRADIENT}, for so long that the loss "
                f"scale of float16 has fallen to {scale:.2g}; SOLVER.AMP.DTYPE bfloat16 has none, "
                "and without SOLVER.AMP.ENABLED the first such iteration is named"
            )

    def _is_finite(self, losses: torch.Tensor, norm: torch.Tensor | None) -> bool:
        """Whether loss and gradients of all ranks are finite. Waits for the device."""
        finite = losses.detach().isfinite().float()
        if norm is not None:
            finite = finite * norm.isfinite()
        if comm.get_world_size() > 1:
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        return bool(finite)

    def _skip(self, loss_dict, data, written: dict[str, torch.Tensor]) -> None:
        """Leave weights, batch norm's statistics and data-set memories as before the step.

        Raises:
            FloatingPointError: too many steps in a row.
        """
        self.skipped_in_a_row += 1
        bad = [name for name, value in loss_dict.items() if not bool(value.detach().isfinite())]
        reports = comm.all_gather((bad, _names(data)))  # all ranks are here together
        guilty = [report for report in reports if report[0]]
        if guilty:
            text = "; ".join(_not_finite(self.iter, *report) for report in guilty)
        else:  # gradients are sums over the ranks
            text = _not_finite(self.iter, [_GRADIENT], [n for _, names in reports for n in names])
        if self.skipped_in_a_row > self._max_skipped:
            raise FloatingPointError(f"{text}; {self._max_skipped} steps before it were skipped")
        logging.getLogger(__name__).warning(f"{text}; the step is skipped")
        for name, buffer in self.model.named_buffers():
            if name in written:
                buffer.copy_(written[name])
        self.optimizer.zero_grad()
        if comm.is_main_process():
            get_event_storage().put_scalar("skipped_steps", self.skipped_in_a_row)

    def _written_by_forward(self) -> dict[str, torch.Tensor]:
        """Copies of the buffers that a bad batch can spoil. Not the banks of pixel contrast, which
        are large and take no vector that is not of length 1."""
        memories = [n for n, m in self.model.named_modules() if isinstance(m, ClassMemory)]
        return {
            name: buffer.clone()
            for name, buffer in self.model.named_buffers()
            if name.endswith(NORM_STATISTICS) or name.rpartition(".")[0] in memories
        }

    def state_dict(self) -> dict:
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if state["grad_scaler"]:  # empty if that step had none, which this one's may start afresh
            self.grad_scaler.load_state_dict(state["grad_scaler"])
        self.skipped_in_a_row = state.get("skipped_in_a_row", 0)


def _names(data) -> list[str]:
    """File names of a batch, if its samples are detectron2's dicts."""
    return [str(s["file_name"]) for s in data if isinstance(s, dict) and "file_name" in s]


def _not_finite(iteration: int, losses: list[str], images) -> str:
    return (
        f"not finite at iteration {iteration}: {', '.join(losses)}; images of that process: "
        f"{', '.join(images)}"
    )
