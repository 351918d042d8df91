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
    features have the same stride are compared at the same pixels. No more than the chosen features
    and those of one image are held at a time.

    Args:
        model: a model whose ``sem_seg_head.predictor`` is the final 1x1 convolution; it is left in
            evaluation mode.
        loader: test batches of one sample with "image" and "label" (H, W).
        num_classes: C; other labels are not taken.
        per_class: pixels per class, at most.
        seed: of the choice.

    Raises:
        ValueError: there is no image.
    """
    maps = []
    rng = np.random.RandomState(seed)
    classes, keys = np.zeros(0, np.int64), np.zeros(0)
    embeddings = None
    predictor = model.sem_seg_head.predictor
    handle = predictor.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    model.eval()
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
            label = _nearest(batch[0]["label"], feature.shape[-2:]).flatten().numpy()
            if embeddings is None:
                embeddings = np.zeros((0, len(feature)), np.float32)
            # A pixel stays for as long as its random key is among the smallest of its class.
            held = len(classes)
            classes = np.concatenate([classes, label])
            keys = np.concatenate([keys, rng.random_sample(len(label))])
            chosen = smallest_keys(classes, keys, num_classes, per_class)
            new = chosen[chosen >= held] - held
            rows = feature.flatten(1)[:, torch.as_tensor(new, device=feature.device)].t().float()
            embeddings = np.concatenate([embeddings[chosen[chosen < held]], rows.cpu().numpy()])
            chosen = np.concatenate([chosen[chosen < held], new + held])
            classes, keys = classes[chosen], keys[chosen]
    finally:
        handle.remove()
    if embeddings is None:
        raise ValueError("there is no image to take pixels of")
    order = smallest_keys(classes, keys, num_classes, per_class)
    return PixelSample(embeddings[order], classes[order])


def smallest_keys(
    classes: np.ndarray, keys: np.ndarray, num_classes: int, per_class: int
) -> np.ndarray:
    """Indices of the ``per_class`` smallest (N,) ``keys`` of each class in (N,) ``classes``, class
    by class, in ascending order of the keys. Ids outside 0..C-1 are no class."""
    order = np.lexsort((keys, classes))
    order = order[(classes[order] >= 0) & (classes[order] < num_classes)]
    _, first, count = np.unique(classes[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, count)
    return order[rank < per_class]


def _nearest(label: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The label (H, W) at the centres of a grid of ``size`` cells."""
    label = torch.as_tensor(label).long()
    rows, columns = (
        ((torch.arange(cells) + 0.5) * length / cells).long()
        for cells, length in zip(size, label.shape)
    )
    return label[rows][:, columns]
