"""The cross-entropy of the segmentation itself."""

import torch
from detectron2.projects.deeplab.loss import DeepLabCE
from torch import nn
from torch.nn import functional as F

_HARD_SHARE = 0.2  # of the pixels, in "hard_pixel_mining"


class SegmentationLoss(nn.Module):
    """Cross-entropy at label resolution; 0 instead of NaN where every pixel is ignored."""

    def __init__(
        self,
        *,
        ignore_value: int,
        loss_type: str,
        class_weights: list[float],
        num_classes: int,
        align_corners: bool = False,
    ):
        """
        Args:
            ignore_value: label without a class.
            loss_type: "cross_entropy", or "hard_pixel_mining" for the mean of the hardest 20 %.
            class_weights: one per class, or empty for equal ones.
            num_classes: C.
            align_corners: of the interpolation to label resolution.

        Raises:
            ValueError: unknown ``loss_type``, or not one positive weight per class.
        """
        super().__init__()
        self.ignore_value = ignore_value
        self.align_corners = align_corners
        if class_weights and (len(class_weights) != num_classes or min(class_weights) <= 0):
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS needs {num_classes} positive numbers, "
                f"got {len(class_weights)}: {list(class_weights)}"
            )
        weight = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("weight", weight, persistent=False)
        if loss_type == "cross_entropy":
            self.hard_pixels = None
        elif loss_type == "hard_pixel_mining":
            self.hard_pixels = DeepLabCE(
                ignore_value, top_k_percent_pixels=_HARD_SHARE, weight=weight
            )
            # Torch would store the config's weights in checkpoints, and take them from there.
            self.hard_pixels.criterion.register_buffer("weight", weight, persistent=False)
        else:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.LOSS_TYPE is {loss_type!r}; "
                "known are 'cross_entropy' and 'hard_pixel_mining'"
            )

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of (B, C, h, w) ``logits`` at the size of the (B, H, W) int64 ``labels``."""
        logits = F.interpolate(
            logits.float(), labels.shape[-2:], mode="bilinear", align_corners=self.align_corners
        )
        # Of fewer than five pixels the hardest fifth is none, whose mean would be NaN.
        if self.hard_pixels is not None and int(_HARD_SHARE * labels.numel()):
            return self.hard_pixels(logits, labels)
        total = F.cross_entropy(
            logits, labels, self.weight, ignore_index=self.ignore_value, reduction="sum"
        )
        valid = labels != self.ignore_value
        if self.weight is None:
            return total / valid.sum().clamp(min=1)
        # As torch's weighted mean, but finite when nothing is valid.
        weights = self.weight[labels.where(valid, 0)].where(valid, 0)
        return total / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
