"""The projection head that maps features to unit embeddings."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .pixel_embeddings import PixelEmbeddings, unit
from .sampling import gather_pixels


class ProjectionHead(nn.Module):
    """Features to unit embeddings: Wang et al., ICCV 2021, section 3.3.

    "mlp" is 1x1 conv (C -> C), norm, ReLU, 1x1 conv (C -> dim); "linear" is one 1x1 conv. An
    embedding that is 0 before the normalisation stays 0, and gets no gradient.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        dim: int = 256,
        kind: str = "mlp",
        norm: Callable[[int], nn.Module | None] | None = nn.BatchNorm2d,
        norm_last: bool = False,
    ):
        """
        Args:
            in_channels: channels of the features.
            dim: channels of the embeddings.
            kind: "mlp" or "linear".
            norm: makes the norm layer of the mlp's hidden channels; None (or returning it): none.
            norm_last: the norm layer follows the ReLU instead of preceding it (Pissas et al., ECCV
                2022).

        Raises:
            ValueError: unknown ``kind``, or ``dim`` below 1.
        """
        super().__init__()
        if dim < 1:
            raise ValueError(f"PROJECTOR.DIM is {dim}; the projection needs at least one channel")
        if kind == "linear":
            hidden = []
        elif kind == "mlp":
            norm_layer = norm(in_channels) if norm is not None else None
            # A bias before a norm layer would be subtracted again by it; with the ReLU in between
            # the published code has none either.
            conv = nn.Conv2d(in_channels, in_channels, 1, bias=norm_layer is None)
            layers = [nn.ReLU(), norm_layer] if norm_last else [norm_layer, nn.ReLU()]
            hidden = [conv, *(layer for layer in layers if layer is not None)]
        else:
            raise ValueError(f"PROJECTOR.TYPE is {kind!r}; known are 'mlp' and 'linear'")
        self.hidden = nn.Sequential(*hidden)
        self.out = nn.Conv2d(in_channels, dim, 1)
        self.dim = dim
        for module in (*self.hidden, self.out):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) features to (B, dim, h, w) embeddings of length 1, in float32 or wider."""
        return self.all_rows(self.hidden(features))

    def at(self, features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """(S, dim) embeddings at flat (B, h, w) positions ``index`` alone: rows of :meth:`forward`.

        The norm layer needs every pixel; the last convolution and the normalisation, which hold
        most of the memory, do not.
        """
        return self.rows(self.hidden(features), index)

    def all_rows(self, hidden: torch.Tensor) -> torch.Tensor:
        """:meth:`forward` from the output of ``self.hidden``, for callers that need it twice."""
        return unit(self.out(hidden))

    def rows(self, hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """:meth:`at` from the output of ``self.hidden``."""
        rows = gather_pixels(hidden, index)
        return unit(F.linear(rows, self.out.weight.flatten(1), self.out.bias))

    def pixels(self, hidden: torch.Tensor) -> PixelEmbeddings:
        """:meth:`all_rows` for sums by class and products with anchors alone: far cheaper."""
        return PixelEmbeddings(hidden, self.out.weight.flatten(1), self.out.bias)
