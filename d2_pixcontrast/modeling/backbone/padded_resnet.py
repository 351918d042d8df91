"""Detectron2's ResNet with the padding that its features need to lie where the labels do."""

from detectron2.modeling.backbone import ResNet
from torch import nn


class PaddedResNet(ResNet):
    """A ResNet whose images are padded to a multiple of its largest stride.

    Detectron2's own takes images as they are. A side of 473 pixels then gives 60 rows at stride 8,
    which a loss stretches over 473 and an evaluation, which knows no more than the stride, over
    480: what has been learnt is off by up to 7 pixels at the far end.
    """

    # TorchScript compiles properties, and knows no ShapeSpec.
    __jit_unused_properties__ = ["size_divisibility"]

    @property
    def size_divisibility(self) -> int:
        return max(shape.stride for shape in self.output_shape().values())


def pad_resnet(backbone: nn.Module | None) -> None:
    """Turn a ResNet of detectron2 into a :class:`PaddedResNet`, in place; leave others alone."""
    if type(backbone) is ResNet:
        backbone.__class__ = PaddedResNet
