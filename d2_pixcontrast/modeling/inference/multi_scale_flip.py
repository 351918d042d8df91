"""Test-time augmentation: several scales, and mirrored."""

import torch
from torch import Tensor, nn

from ...data.resample import RegionTransform


class MultiScaleFlip(nn.Module):
    """The mean of a model's softmax probabilities over scales and mirror images.

    Each view is made from the *original* image by one resize. The model gives logits at the
    output's size; their softmax is averaged there. Mirrored views are mirrored back, and classes
    that mean left and right change places.

    On the logits' device this takes the sum, one view's logits and their softmax at a time: three
    times C x height x width numbers of 4 bytes (2048x1024 and 19 classes: 0.5 GB; 2048x1536 and 150
    classes: 5.7 GB), and what the network itself needs at the largest scale.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scales: list[float],
        flip: bool = True,
        flip_pairs: list[tuple[int, int]] = (),
    ):
        """
        Args:
            model: maps a list of detectron2's input dicts to a list of dicts with "sem_seg";
                :class:`SlidingWindow` is one, too.
            scales: factors on the test size.
            flip: also look at the mirror image at each scale.
            flip_pairs: ids of the classes (left, right) that a mirror image exchanges.

        Raises:
            ValueError: no scale, or one that is not positive.
        """
        super().__init__()
        if not scales or min(scales) <= 0:
            raise ValueError(f"TEST.AUG.SCALES is {tuple(scales)}: it needs positive factors")
        self.model = model
        self.scales = tuple(scales)
        self.flip = flip
        self.flip_pairs = [tuple(pair) for pair in flip_pairs]
        self.train(model.training)  # a new module claims to train

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """
        Args:
            batched_inputs: dicts with "image", a uint8 (3, h, w) tensor of the test size; where
                this is not the original one "original_image", (3, H, W); "height" and "width" of
                the output (default: the original size).

        Returns:
            per image {"sem_seg": (C, height, width) float32 probabilities}.
        """
        return [{"sem_seg": self._probabilities(inputs)} for inputs in batched_inputs]

    def _probabilities(self, inputs: dict) -> Tensor:
        original = inputs.get("original_image", inputs["image"])
        height = inputs.get("height", original.shape[-2])
        width = inputs.get("width", original.shape[-1])
        total, views = None, 0
        for scale in self.scales:
            image = inputs["image"] if scale == 1 else _resized(inputs["image"], original, scale)
            for mirrored in (False, True) if self.flip else (False,):
                view = image.flip(-1) if mirrored else image
                outputs = self.model([{"image": view, "height": height, "width": width}])
                probabilities = outputs[0]["sem_seg"].float().softmax(dim=0)
                if mirrored:
                    probabilities = self._unmirror(probabilities)
                total = probabilities if total is None else total.add_(probabilities)
                views += 1
        return total.div_(views)

    def _unmirror(self, probabilities: Tensor) -> Tensor:
        order = list(range(len(probabilities)))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        if self.flip_pairs:
            probabilities = probabilities[order]
        return probabilities.flip(-1)


def _resized(image: Tensor, original: Tensor, scale: float) -> Tensor:
    """``original`` (3, H, W) uint8, resized to ``scale`` times the size of ``image`` (3, h, w).

    As the mapper does it, so that the factor 1 would give ``image`` itself.
    """
    height, width = (max(int(side * scale + 0.5), 1) for side in image.shape[-2:])
    resize = RegionTransform(0, 0, *original.shape[-2:], height, width)
    pixels = resize.apply_image(original.permute(1, 2, 0).contiguous().cpu().numpy())
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
