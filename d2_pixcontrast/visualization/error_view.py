"""What a checkpoint gets wrong in an image, and which of it boundary-aware negatives would take."""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn import functional as F

from ..contrast import Bane, nearest_resize, sample_boundary_negatives
from ..modeling.terms import PixelContrast, Term, TermInputs, TrainingProgress


class ErrorView(NamedTuple):
    """One image on the grid (h, w) that negatives are chosen on.

    Attributes:
        image: (H, W, 3) uint8, as the model gets it.
        label, prediction: (h, w) int64.
        group: (h, w) int64, the error map of each pixel; -1 where there is no error.
        distance: (h, w) float32, to the boundary of the error map, in pixels of the grid.
        chosen: (h, w) bool, the negatives.
        embeddings: (D, h, w) float32 unit vectors of the term, or None without one.
    """

    image: torch.Tensor
    label: torch.Tensor
    prediction: torch.Tensor
    group: torch.Tensor
    distance: torch.Tensor
    chosen: torch.Tensor
    embeddings: torch.Tensor | None


def level_names(term: Term) -> list[str]:
    """The features whose grids a term embeds; of concatenated ones the first, which sets theirs."""
    return term.in_features[:1] if isinstance(term, PixelContrast) else list(term.in_features)


def embed(term: Term, inputs: TermInputs, level: str) -> torch.Tensor:
    """(B, D, h, w) unit embeddings of a term at one of its :func:`level_names`."""
    if isinstance(term, PixelContrast):
        return term.projector(inputs.concatenated(term.in_features))
    return term.projectors[term.in_features.index(level)](inputs.features[level])


@torch.no_grad()
def view_errors(
    model: torch.nn.Module,
    sample: dict,
    bane: Bane,
    *,
    num_classes: int,
    ignore_value: int,
    term: Term | None = None,
    level: str = "",
    seed: int = 0,
    index: int = 0,
) -> ErrorView:
    """Look at one image with a model, which is left in evaluation mode.

    Args:
        model: with ``backbone`` and ``sem_seg_head.predictor``, the final 1x1 convolution.
        sample: of a test loader, with "image" and "label".
        bane: how negatives are chosen.
        num_classes: C.
        ignore_value: label of pixels without a class.
        term: embeds the pixels, on its own grid; None = the logits' grid, without embeddings.
        level: one of the term's :func:`level_names`.
        seed: of the ties.
        index: of the image; another one has other ties.

    Raises:
        ValueError: the sample has no label.
    """
    if "label" not in sample:
        raise ValueError(f"{sample['file_name']} has no label, and so no errors to look at")
    model.eval()
    with _recorded(model) as record:
        model([sample])
    height, width = sample["image"].shape[-2:]
    padded = record["size"]
    label = nearest_resize(torch.as_tensor(sample["label"])[None], (height, width))
    # The padding of the image, at the right and the bottom, is of no class.
    padding = (0, padded[1] - width, 0, padded[0] - height)
    inputs = TermInputs(
        features={**record["features"], "decoder": record["decoded"]},
        logits=record["logits"],
        labels=F.pad(label, padding, value=ignore_value).to(record["logits"].device),
        ignore_value=ignore_value,
        progress=TrainingProgress(seed=seed),
        first_image=index,
    )
    embeddings = embed(term, inputs, level) if term is not None else None
    grid = (inputs.logits if embeddings is None else embeddings).shape[-2:]
    # Cut before anything is chosen: the border of the image is no boundary, but padding would be.
    rows, columns = (math.ceil(n * g / p) for n, g, p in zip((height, width), grid, padded))
    maps = [m[:, :rows, :columns] for m in (inputs.labels_at(grid), inputs.predictions_at(grid))]
    negatives = sample_boundary_negatives(
        *maps,
        inputs.random_keys(rows * columns, 0),
        num_classes=num_classes,
        ignore_value=ignore_value,
        keep_percent=bane.keep_percent,
        target=bane.target,
    )
    found = (*maps, negatives.group, negatives.distance, negatives.mask)
    return ErrorView(
        sample["image"].permute(1, 2, 0),
        *(m[0].cpu() for m in found),
        None if embeddings is None else embeddings[0, :, :rows, :columns].cpu(),
    )


@contextlib.contextmanager
def _recorded(model) -> Iterator[dict]:
    """What the model's forward within the context passes on: size of the batch's padded images,
    features of the backbone, input and output of the classifier."""
    record = {}

    def keep_features(_, inputs, output):
        record.update(size=inputs[0].shape[-2:], features=output)

    def keep_logits(_, inputs, output):
        record.update(decoded=inputs[0], logits=output)

    handles = [
        model.backbone.register_forward_hook(keep_features),
        model.sem_seg_head.predictor.register_forward_hook(keep_logits),
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
