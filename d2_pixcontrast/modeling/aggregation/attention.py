"""Attention between the positions of two feature maps."""

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import conv_norm_relu


class GridAttention(nn.Module):
    """Every position of one map gathers from all positions of another one.

    Queries and keys are embedded by two 1x1 convolutions with norm and ReLU each, values and the
    result by one. The fused kernel never writes the table of all pairs out: memory grows with the
    number of positions, time with its square. (As in Jin et al., ICCV 2021, section 3.3.)
    """

    def __init__(
        self,
        *,
        query_channels: int,
        source_channels: int,
        key_channels: int,
        out_channels: int,
        norm: str,
    ):
        """
        Args:
            query_channels: of the map that asks.
            source_channels: of the map that is gathered from.
            key_channels: E, of queries, keys and values.
            out_channels: of the result.
            norm: name of the norm layers.
        """
        super().__init__()
        self.query = _two_layers(query_channels, key_channels, norm)
        self.key = _two_layers(source_channels, key_channels, norm)
        self.value = conv_norm_relu(source_channels, key_channels, 1, norm)
        self.out = conv_norm_relu(key_channels, out_channels, 1, norm)

    def forward(self, asking: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """softmax(Q K^T / sqrt(E)) V, for every image of the batch.

        Args:
            asking: (B, query_channels, h, w).
            source: (B, source_channels, h', w').

        Returns:
            (B, out_channels, h, w).
        """
        gathered = F.scaled_dot_product_attention(
            _positions(self.query(asking)),
            _positions(self.key(source)),
            _positions(self.value(source)),
        )
        gathered = gathered[:, 0].transpose(1, 2).unflatten(2, asking.shape[-2:])
        return self.out(gathered)


def _two_layers(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        conv_norm_relu(in_channels, out_channels, 1, norm),
        conv_norm_relu(out_channels, out_channels, 1, norm),
    )


def _positions(features: torch.Tensor) -> torch.Tensor:
    """(B, E, h, w) to (B, 1, h * w, E): one head. The fused kernels want E contiguous."""
    return features.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
