"""Representation-consistent learning: Jin et al., ICCV 2021, section 3.4."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ...contrast import MemoryEntries


def consistency_loss(
    entries: MemoryEntries, hidden: nn.Conv2d, dropout: nn.Module, predictor: nn.Module
) -> torch.Tensor:
    """Cross-entropy of the final classifier on the memory itself.

    Each filled entry goes through the classifier's layers as an image of one pixel, so that they
    learn to tell the stored representations apart. Batch norm takes its running statistics there
    and leaves them alone: those of a few entries are not those of pixels.

    Args:
        entries: (C * K, D) rows of the memory, their classes, and which are filled.
        hidden: the classifier's first layer: 1x1 convolution, norm, activation.
        dropout: between the two.
        predictor: from the hidden layer's channels to logits.

    Returns:
        Mean over the filled entries; 0 without any. Connected to the layers in both cases.
    """
    pixels = entries.rows.to(hidden.weight.dtype)[:, :, None, None]
    logits = predictor(dropout(with_running_statistics(hidden, pixels))).flatten(1)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    losses = F.cross_entropy(logits.to(dtype), entries.labels, reduction="none")
    return losses.where(entries.mask, 0).sum() / entries.mask.sum().clamp(min=1)


def with_running_statistics(layer: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    """``layer`` (detectron2's Conv2d) in training, but for its batch norm, which is as in eval.

    Gradients reach all of its parameters. It is done without switching the mode of the module,
    which other code may look at meanwhile; batch norm over several ranks does not communicate.
    """
    features = F.conv2d(features, layer.weight, layer.bias)
    norm = layer.norm
    if isinstance(norm, _BatchNorm):  # SyncBatchNorm is one, too
        features = F.batch_norm(
            features, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    elif norm is not None:
        features = norm(features)
    return layer.activation(features)
