"""The network as one graph, from an image as it is read to logits of its size."""

import contextlib
from collections.abc import Iterator

import torch
from detectron2.modeling import SemanticSegmentor
from timm.layers import padding
from torch import nn
from torch.nn import functional as F

from .swin import largest_window, windows_by_index

# Of the traced image, where the smallest is not larger; neither square nor divisible by anything.
_EXAMPLE_SIZE = (129, 161)


class InferenceGraph(nn.Module):
    """Normalisation, padding, network and cropping: what ``SemanticSegmentor`` does in evaluation.

    Takes a (1, 3, H, W) float image, RGB whatever the config's INPUT.FORMAT is, with values from 0
    to 255. Gives (1, C, H, W) logits.
    """

    def __init__(self, model: nn.Module, image_format: str = "RGB"):
        """
        Args:
            model: see :func:`~d2_pixcontrast.engine.load_inference_model`.
            image_format: the model's own order of channels, "RGB" or "BGR".

        Raises:
            ValueError: the model is no ``SemanticSegmentor``, or another order of channels.
        """
        super().__init__()
        if not isinstance(model, SemanticSegmentor):
            raise ValueError(
                f"MODEL.META_ARCHITECTURE built a {type(model).__name__}; only a "
                "SemanticSegmentor can be exported"
            )
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}; RGB and BGR can be exported")
        self.backbone = model.backbone
        self.head = model.sem_seg_head
        self.register_buffer("mean", model.pixel_mean.clone())
        self.register_buffer("std", model.pixel_std.clone())
        self.flip = image_format == "BGR"
        self.divisor = max(model.backbone.size_divisibility, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        if self.flip:
            image = image.flip(1)
        image = (image - self.mean) / self.std
        image = _pad_to_multiple(_pad_to_multiple(image, 2, self.divisor), 3, self.divisor)
        logits, _ = self.head(self.backbone(image))
        if not getattr(self.head, "upsample_logits", True):
            logits = F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=False)
        return _first(_first(logits, 2, height), 3, width)


def smallest_side(graph: InferenceGraph) -> int:
    """The least height and width of images that :func:`trace` makes a graph for.

    Above what images are padded to a multiple of and the network's largest stride, 32 as a rule; of
    a Swin transformer also above one attention window on its coarsest features (32 times 7 or 12).
    """
    strides = [shape.stride for shape in graph.backbone.output_shape().values()]
    return max(graph.divisor, max(strides) * max(largest_window(graph.backbone), 1)) + 1


def trace(graph: InferenceGraph) -> torch.export.ExportedProgram:
    """The graph as torch.export sees it, for images of any height and width from
    :func:`smallest_side` on."""
    smallest = smallest_side(graph)
    sizes = {
        2: torch.export.Dim("height", min=smallest),
        3: torch.export.Dim("width", min=smallest),
    }
    example = torch.zeros(1, 3, *example_size(graph, _EXAMPLE_SIZE))
    with torch.no_grad(), _timm_padding_in_integers(), windows_by_index():
        return torch.export.export(
            graph.eval(),
            (example,),
            dynamic_shapes={"image": sizes},
            # Padding inside backbones is a computed 0 that torch cannot prove to be one.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def example_size(graph: InferenceGraph, wanted: tuple[int, int]) -> tuple[int, int]:
    """A height and a width as wanted, or else the smallest two that differ as much."""
    more = max(smallest_side(graph) - min(wanted), 0)
    return wanted[0] + more, wanted[1] + more


@contextlib.contextmanager
def _timm_padding_in_integers() -> Iterator[None]:
    """timm's "same" padding without math.ceil, which an exported program cannot store."""

    def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> int:
        steps = (size + stride - 1) // stride
        return max((steps - 1) * stride + (kernel_size - 1) * dilation + 1 - size, 0)

    original = padding.get_same_padding
    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = original


# Padding and cropping by indices: with pad() and slices, torch.export would split the sizes into
# those that need padding and those that do not, and keep one of the two.


def _pad_to_multiple(image: torch.Tensor, dim: int, divisor: int) -> torch.Tensor:
    """Zeros at the end of ``dim``, up to the next multiple of ``divisor``."""
    size = image.shape[dim]
    index = torch.arange((size + divisor - 1) // divisor * divisor, device=image.device)
    inside = (index < size).to(image.dtype).unflatten(0, [-1] + [1] * (image.dim() - 1 - dim))
    return image.index_select(dim, index.clamp(max=size - 1)) * inside


def _first(values: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    return values.index_select(dim, torch.arange(size, device=values.device))
