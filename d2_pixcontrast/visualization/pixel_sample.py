"""The features that a model's classifier sees, at labelled pixels of a data set."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch


class PixelSample(NamedTuple):
    """Embeddings of some pixels.

    Attributes:
        embeddings: (N, D) float32.
        classes: (N,) int64.
    """

    embeddings: np.ndarray
    classes: np.ndarray


@torch.no_grad()
def sample_embeddings(
    model: torch.nn.Module,
    loader: Iterable[list[dict]],
    *,
    num_classes: int,
    per_class: int = 100,
    seed: int = 0,
) -> PixelSample:
    """Input of the classifier at ``per_class`` pixels of each class, chosen over all images.

    Which pixels are taken depends on the labels and the seed alone, so that two models whose
    features have the same stride are compared at the same pixels.

    Args:
        model: a model whose ``sem_seg_head.predictor`` is the final 1x1 convolution; it is left in
            evaluation mode.
        loader: test batches of one sample with "image" and "label" (H, W).
        num_classes: C; other labels are not taken.
        per_class: pixels per class, at most.
        seed: of the choice.
    """
    maps = []
    predictor = model.sem_seg_head.predictor
    handle = predictor.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    model.eval()
    features, labels = [], []
    try:
        for batch in loader:
            maps.clear()
            model(batch)
            height, width = batch[0]["image"].shape[-2:]
            feature = maps[0][0]
            # Detectron2 pads images at the right and the bottom; these rows have no label.
            multiple = max(model.backbone.size_divisibility, 1)
            padded = -(-height // multiple) * multiple
            stride = padded / feature.shape[1]
            feature = feature[:, : math.ceil(height / stride), : math.ceil(width / stride)]
            features.append(feature.flatten(1).t().float().cpu())
            labels.append(_nearest(batch[0]["label"], feature.shape[-2:]).flatten())
    finally:
        handle.remove()
    classes = torch.cat(labels).numpy()
    chosen = balanced_choice(classes, num_classes, per_class, seed)
    return PixelSample(torch.cat(features)[chosen].numpy(), classes[chosen])


def balanced_choice(classes: np.ndarray, num_classes: int, per_class: int, seed: int) -> np.ndarray:
    """Indices of up to ``per_class`` elements of each class in (N,) ``classes``, class by class."""
    rng = np.random.RandomState(seed)
    parts = [np.flatnonzero(classes == c) for c in range(num_classes)]
    return np.concatenate([rng.permutation(part)[:per_class] for part in parts])


def _nearest(label: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The label (H, W) at the centres of a grid of ``size`` cells."""
    label = torch.as_tensor(label).long()
    rows, columns = (
        ((torch.arange(cells) + 0.5) * length / cells).long()
        for cells, length in zip(size, label.shape)
    )
    return label[rows][:, columns]
