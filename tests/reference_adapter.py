"""The project's own code behind the interface of the reference vectors: one function per kind.

Arguments and results are float64 numpy arrays (labels: integers); the README beside the vectors
describes them.
"""

import torch

from d2_pixcontrast.contrast import ClassEntries, DatasetMemory, pixel_contrast_loss


def pixel_contrast_batch(anchors, labels, temperature, base_temperature):
    """anchors (A, V, D) unit vectors, labels (A,); the contrast set is the batch, self left out."""
    rows = torch.from_numpy(anchors).double().requires_grad_()
    result = pixel_contrast_loss(
        rows.flatten(0, 1),
        torch.from_numpy(labels).long().repeat_interleave(rows.shape[1]),
        temperature=float(temperature),
        base_temperature=float(base_temperature),
    )
    result.loss.backward()
    return {"loss": result.loss.detach().numpy(), "grad_anchors": rows.grad.numpy()}


def pixel_contrast_memory(anchors, labels, bank, fill, temperature, base_temperature):
    """anchors (N, D), labels (N,), bank (C, M, D) whose slots >= fill (C,) are empty."""
    rows = torch.from_numpy(anchors).double().requires_grad_()
    entries = ClassEntries(torch.from_numpy(bank).double(), torch.from_numpy(fill).long())
    result = pixel_contrast_loss(
        rows,
        torch.from_numpy(labels).long(),
        bank=[entries],
        temperature=float(temperature),
        base_temperature=float(base_temperature),
    )
    result.loss.backward()
    return {"loss": result.loss.detach().numpy(), "grad_anchors": rows.grad.numpy()}


def dataset_memory_update(memory_before, features, labels, momentum, strategy, ignore_value):
    """memory_before (C, D), rows of zeros are empty; features (B, D, h, w), labels (B, H, W)."""
    memory = DatasetMemory(
        *memory_before.shape, strategy=strategy.removesuffix("_similarity"), dtype=torch.float64
    )
    memory.entries.copy_(torch.from_numpy(memory_before)[:, None])
    memory.update(
        torch.from_numpy(features).double(),
        torch.from_numpy(labels).long(),
        momentum=float(momentum),
        ignore_value=int(ignore_value),
    )
    return {"memory_after": memory.entries[:, 0].numpy()}
