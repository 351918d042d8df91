"""Inference in overlapping windows."""

import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn

AVERAGES = ("logits", "probabilities")


class SlidingWindow(nn.Module):
    """Applies a model to windows of the image and averages its outputs where they overlap.

    It takes and gives what the model does, so that it can stand wherever the model can. Logits are
    averaged unless ``average`` says "probabilities": with one window that is the image the result
    is the model's. The mean of probabilities is given as its logarithm, whose softmax it is.

    All windows have the same size. The last one of a row or column is moved back to the image's
    border. An image that is smaller than the window is padded below and to the right with the
    mean colour, as training crops are, and the padding's scores are cut off.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        size: tuple[int, int],
        stride: tuple[int, int],
        pad_value: list[float],
        average: str = "logits",
    ):
        """
        Args:
            model: maps a list of detectron2's input dicts to a list of dicts with "sem_seg".
            size: (height, width) of a window in pixels of the model's input.
            stride: (down, right) between neighbouring windows, at most ``size``.
            pad_value: colour of the padding, one number per channel: the model's pixel mean.
            average: "logits" or "probabilities".

        Raises:
            ValueError: a size or stride is not positive, the stride would leave gaps, or another
                ``average``.
        """
        super().__init__()
        if average not in AVERAGES:
            raise ValueError(f"TEST.SLIDING.AVERAGE is {average!r}; known are {list(AVERAGES)}")
        for length, step in zip(size, stride, strict=True):
            if not 1 <= step <= length:
                raise ValueError(
                    f"TEST.SLIDING.STRIDE {tuple(stride)} has to be between 1 and "
                    f"TEST.SLIDING.SIZE {tuple(size)}, so that windows leave no gaps"
                )
        self.model = model
        self.size = tuple(size)
        self.stride = tuple(stride)
        self.average = average
        self.pad_value = torch.tensor(pad_value, dtype=torch.float32).view(-1, 1, 1)
        self.train(model.training)  # a new module claims to train

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: dicts with "image", a (3, h, w) tensor, and optionally "height" and
                "width" of the output.

        Returns:
            per image {"sem_seg": (C, height, width) logits}. Each window's network runs alone;
            beyond it this takes C x h x w numbers of the logits' type on their device.
        """
        return [{"sem_seg": self._scores(inputs)} for inputs in batched_inputs]

    def _scores(self, inputs: dict) -> Tensor:
        image = inputs["image"]
        height, width = image.shape[-2:]
        logits = self._mean_logits(self._pad(image))[:, :height, :width]
        size = inputs.get("height", height), inputs.get("width", width)
        if size == (height, width):
            return logits
        return sem_seg_postprocess(logits, (height, width), *size)

    def _mean_logits(self, image: Tensor) -> Tensor:
        """(C, h, w) logits of an image that is no smaller than a window."""
        (rows, columns), (height, width) = self.size, image.shape[-2:]
        tops = window_starts(height, rows, self.stride[0])
        lefts = window_starts(width, columns, self.stride[1])
        total = None
        for top in tops:
            for left in lefts:
                window = image[:, top : top + rows, left : left + columns]
                inputs = {"image": window, "height": rows, "width": columns}
                logits = self.model([inputs])[0]["sem_seg"]
                if self.average == "probabilities":
                    logits = logits.softmax(dim=0)
                if total is None:
                    total = logits.new_zeros(len(logits), height, width)
                total[:, top : top + rows, left : left + columns] += logits
        # Windows that cover a pixel: those of its row times those of its column.
        down = _coverage(tops, rows, height).to(total)
        right = _coverage(lefts, columns, width).to(total)
        mean = total.div_(down[:, None] * right)
        if self.average == "logits":
            return mean
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()

    def _pad(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        rows, columns = max(height, self.size[0]), max(width, self.size[1])
        if (rows, columns) == (height, width):
            return image
        padded = self.pad_value.to(image.device).repeat(1, rows, columns)
        padded[:, :height, :width] = image
        return padded


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """First pixels of the windows along one side; the last window ends at the border.

    Args:
        length: of the side, at least ``size``.
        size, stride: of the windows.
    """
    last = length - size
    return [*range(0, last, stride), last]


def _coverage(starts: list[int], size: int, length: int) -> Tensor:
    """(length,) float: how many windows cover each pixel of a side."""
    count = torch.zeros(length)
    for start in starts:
        count[start : start + size] += 1
    return count
