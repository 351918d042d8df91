"""The projection head that maps features to unit embeddings."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from .sampling import gather_pixels


class ProjectionHead(nn.Module):
    """Features to unit embeddings: Wang et al., ICCV 2021, section 3.3.

    "mlp" is 1x1 conv (C -> C), norm, ReLU, 1x1 conv (C -> dim); "linear" is one 1x1 conv.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        dim: int = 256,
        kind: str = "mlp",
        norm: Callable[[int], nn.Module | None] | None = nn.BatchNorm2d,
    ):
        """
        Args:
            in_channels: channels of the features.
            dim: channels of the embeddings.
            kind: "mlp" or "linear".
            norm: makes the norm layer of the mlp's hidden channels; None (or returning it): none.

        Raises:
            ValueError: unknown ``kind``, or ``dim`` below 1.
        """
        super().__init__()
        if dim < 1:
            raise ValueError(f"the projection needs at least one channel, got DIM {dim}")
        if kind == "linear":
            hidden = []
        elif kind == "mlp":
            norm_layer = norm(in_channels) if norm is not None else None
            # A bias before a norm layer would be subtracted again by it.
            conv = nn.Conv2d(in_channels, in_channels, 1, bias=norm_layer is None)
            hidden = [conv, *([norm_layer] if norm_layer is not None else []), nn.ReLU()]
        else:
            raise ValueError(f"unknown projection head {kind!r}; known are 'mlp' and 'linear'")
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
        return _unit(self.out(hidden))

    def rows(self, hidden: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """:meth:`at` from the output of ``self.hidden``."""
        rows = gather_pixels(hidden, index)
        return _unit(F.linear(rows, self.out.weight.flatten(1), self.out.bias))


def _unit(embeddings: torch.Tensor) -> torch.Tensor:
    # Half precision cannot hold the squares of small channels; the norm would be 0.
    if embeddings.dtype in (torch.float16, torch.bfloat16):
        embeddings = embeddings.float()
    return F.normalize(embeddings, dim=1)
