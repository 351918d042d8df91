"""Representative anchors: means, update, and means over two ranks."""

import pytest
import torch
from test_distributed import spawn
from test_pixel_embeddings import CLASSES, level

from d2_pixcontrast.contrast import ClassAnchors, class_anchors, sum_over_ranks, update_anchors


def test_means_of_classes():
    sums = torch.tensor([[[2.0, 4.0], [0.0, 0.0]], [[3.0, 0.0], [1.0, 1.0]]])
    anchors = class_anchors(sums, torch.tensor([[4.0, 0.0], [3.0, 1.0]]))
    assert anchors.rows.tolist() == [[[0.5, 1.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 1.0]]]
    assert anchors.present.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("low_weight", [0.0, 0.7, 1.0])
def test_update_mixes_in_the_deepest_level_where_both_have_the_class(low_weight, normalize):
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(3, CLASSES, 5, generator=g, dtype=torch.float64)
    present = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    rows *= present[:, :, None]
    updated = update_anchors(
        ClassAnchors(rows, present), low_weight=low_weight, normalize=normalize
    )
    assert torch.equal(updated.present, present)
    for i in range(3):
        for n in range(CLASSES):
            if present[i, n] and present[2, n]:
                expected = low_weight * rows[i, n] + (1 - low_weight) * rows[2, n]
            else:
                expected = rows[i, n]
            if normalize and present[i, n]:
                expected = expected / expected.norm()
            torch.testing.assert_close(updated.rows[i, n], expected)


def test_opposite_anchors_have_a_bounded_gradient():
    rows = torch.tensor([[[0.3, 0.0]], [[-0.7, 0.0]]]).requires_grad_()
    anchors = ClassAnchors(rows, torch.ones(2, 1, dtype=torch.bool))
    update_anchors(anchors, low_weight=0.7).rows.sum().backward()
    assert rows.grad.isfinite().all() and rows.grad.abs().max() < 1e5


# Two ranks: shards of one batch, and a loss that differs from rank to rank.


def whole_batch(empty_rank=False):
    head, hidden, labels = level(3, batch=4)
    labels[2:] = labels[2:].where(labels[2:] != 3, -1)  # a class that only rank 0 has
    if empty_rank:
        labels[2:] = -1
    towards = torch.randn(2, 1, CLASSES, 6, generator=torch.Generator().manual_seed(1)).double()
    return head, hidden.detach(), labels, towards


def anchors_of(head, hidden, labels, all_ranks):
    sums, counts = head.pixels(hidden).class_sums(labels, CLASSES)
    return class_anchors(sums[None], counts[None], all_ranks=all_ranks).rows


def _anchors_of_rank(rank):
    results = []
    for empty_rank in (False, True):
        head, hidden, labels, towards = whole_batch(empty_rank)
        part = slice(2 * rank, 2 * rank + 2)
        rows = anchors_of(head, hidden[part], labels[part], all_ranks=True)
        (rows * towards[rank]).sum().backward()
        results.append((rows.detach(), [p.grad for p in head.out.parameters()]))
    return results


def test_anchors_of_two_ranks_and_their_gradient_are_those_of_one_process(tmp_path):
    """Also where one rank has no pixel with a class."""
    results = spawn(_anchors_of_rank, tmp_path)
    for i, empty_rank in enumerate([False, True]):
        head, hidden, labels, towards = whole_batch(empty_rank)
        expected = anchors_of(head, hidden, labels, all_ranks=False)
        (expected * towards).sum((1, 2, 3)).mean().backward()  # the mean of the ranks' losses
        for rank in range(2):
            torch.testing.assert_close(results[rank][i][0], expected.detach())
        for n, parameter in enumerate(head.out.parameters()):
            average = sum(results[rank][i][1][n] for rank in range(2)) / 2  # what DDP does
            torch.testing.assert_close(average, parameter.grad)


def test_one_process_sums_itself():
    tensor = torch.randn(2, 3)
    assert sum_over_ranks(tensor) is tensor
