"""One training step."""

import time

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class StepTrainer(SimpleTrainer):
    """Forward, backward, update, with or without mixed precision, on any device.

    Detectron2's AMPTrainer insists on CUDA and, in 0.5, on float16.
    """

    def __init__(self, model, data_loader, optimizer, amp_dtype: str | None = None):
        """
        Args:
            model, data_loader, optimizer: as for detectron2's SimpleTrainer.
            amp_dtype: "float16" (with loss scaling), "bfloat16", or None for full precision.

        Raises:
            ValueError: another ``amp_dtype``.
        """
        super().__init__(model, data_loader, optimizer)
        if amp_dtype is not None and amp_dtype not in _DTYPES:
            raise ValueError(f"SOLVER.AMP.DTYPE is {amp_dtype!r}; known are {sorted(_DTYPES)}")
        self._amp_dtype = _DTYPES.get(amp_dtype)
        self._device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self._device_type, enabled=self._amp_dtype is torch.float16
        )

    def run_step(self):
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(
            self._device_type, self._amp_dtype, enabled=self._amp_dtype is not None
        ):
            loss_dict = self.model(data)
        losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        # Stops the training when a loss is not finite, before the weights are touched.
        self._write_metrics(loss_dict, data_time)
        self._record_single_loss(loss_dict)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _record_single_loss(self, loss_dict: dict) -> None:
        """Detectron2 records one loss as the total alone; its name belongs in the record, too."""
        if len(loss_dict) == 1 and comm.is_main_process():
            storage = get_event_storage()
            storage.put_scalars(**dict.fromkeys(loss_dict, storage.latest()["total_loss"][0]))

    def state_dict(self) -> dict:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.grad_scaler.load_state_dict(state["grad_scaler"])
