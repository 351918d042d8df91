"""Unit embeddings of all pixels of a batch that are never written down."""

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# Shorter embeddings have no direction: what is left of them is rounding. They count as 0 and get no
# gradient, which would be beyond all bounds. With few channels there are such pixels: where no ReLU
# lets anything pass, and a new projection has no bias.
_SHORTEST = 1e-6


class PixelEmbeddings:
    """The unit vectors u / |u| with u = weight @ hidden + bias, of every pixel.

    Sums by class and products with a few anchors are linear in u, so that they can be had from
    ``hidden`` and 1 / |u|, and |u|^2 is a quadratic form of ``hidden``. At the shallow levels of an
    encoder, where the pixels are, this takes a fraction of the time and memory of the embeddings.
    Where ``hidden`` has more channels than u, u itself is kept instead of it.

    The graph keeps ``hidden`` (or u); maps of its size are computed again in the backward pass.
    |u|^2 is exact to about eps |weight|^2 |hidden|^2: a bias that all but cancels the product (to a
    thousandth, in float32) leaves no length to speak of. The published heads have none such.
    """

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor):
        """
        Args:
            hidden: (B, K, h, w). Half precision is widened to float32 where it matters.
            weight: (D, K).
            bias: (D,).
        """
        self._maps, self._weight, self._bias = hidden.flatten(2), weight, bias
        if hidden.shape[1] > len(weight):
            self._maps = _affine(weight, self._maps, bias)
            self._weight = self._bias = None
            squares = _recomputed(_squares, self._maps)
        else:
            squares = _quadratic_form(self._maps, weight, bias)
        self._inverse_lengths = squares.where(squares > _SHORTEST**2, torch.inf).rsqrt()

    def class_sums(
        self, labels: torch.Tensor, num_classes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the unit vectors of every class, and its number of pixels.

        Args:
            labels: (B, h, w) int64; pixels with ids outside 0..C-1 are left out.
            num_classes: C.

        Returns:
            (C, D) and (C,), in float32 or wider.
        """
        sums, shares, counts = _recomputed(
            _weighted_class_sums, self._maps, self._inverse_lengths, labels.flatten(1), num_classes
        )
        if self._weight is None:
            return sums, counts
        with torch.autocast(sums.device.type, enabled=False):
            weight, bias = self._weight.to(sums.dtype), self._bias.to(sums.dtype)
            return torch.addmm(shares[:, None] * bias, sums, weight.t()), counts

    def cosines(self, anchors: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """(N, S) products of anchors (N, D) with the unit vectors at flat (B, h, w) ``index``."""
        pixels = self._maps.shape[2]
        image = torch.div(index, pixels, rounding_mode="floor")
        inverse = self._inverse_lengths.flatten()[index]
        rows = _wide(self._maps[image, :, index % pixels])
        with torch.autocast(rows.device.type, enabled=False):
            if self._weight is None:
                return anchors @ rows.t() * inverse
            weight, bias = self._weight.to(rows.dtype), self._bias.to(rows.dtype)
            return torch.addmm((anchors @ bias)[:, None], anchors @ weight, rows.t()) * inverse


def unit(embeddings: torch.Tensor) -> torch.Tensor:
    """(B, D, ...) embeddings brought to length 1 over D, in float32 or wider; 0 stays 0."""
    embeddings = _wide(embeddings)
    lengths = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    return embeddings * lengths.where(lengths > _SHORTEST, torch.inf).reciprocal()


def _wide(tensor):
    # Half precision cannot hold the squares of small channels.
    return tensor.to(_wide_dtype(tensor))


def _wide_dtype(tensor):
    return torch.promote_types(tensor.dtype, torch.float32)


def _affine(weight, maps, bias):
    """weight @ maps + bias for maps (B, K, P), in the memory layout of ``maps``."""
    # The callers multiply both, which is slow where their layouts differ.
    if maps.stride(1) == 1:  # channels last
        rows, weight = maps.transpose(1, 2), weight.t().expand(len(maps), -1, -1)
        return torch.baddbmm(bias, rows, weight).transpose(1, 2)
    # matmul would copy the maps to fold the batch into their columns.
    return torch.baddbmm(bias[:, None], weight.expand(len(maps), -1, -1), maps)


def _recomputed(function, *args):
    # The variant without reentrance is the one that DDP and autograd.grad can do with.
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def _squares(maps):
    """(B, P) |u|^2 for maps u (B, D, P)."""
    return _wide(maps).square().sum(1)


def _quadratic_form(maps, weight, bias):
    """(B, P) |u|^2 with u = weight @ maps + bias for maps (B, K, P)."""
    dtype = _wide_dtype(maps)
    with torch.autocast(maps.device.type, enabled=False):
        weight, bias = weight.to(dtype), bias.to(dtype)
        return _QuadraticForm.apply(maps, weight.t() @ weight, 2 * (bias @ weight)) + bias @ bias


class _QuadraticForm(torch.autograd.Function):
    """(B, P) m' gram m + linear' m for the columns m of maps (B, K, P) and a symmetric gram (K, K).

    Nothing has to be computed a second time for its gradient, unlike with a checkpoint.
    """

    @staticmethod
    def forward(ctx, maps, gram, linear):
        ctx.save_for_backward(maps, gram, linear)
        maps = _wide(maps)
        return _affine(gram, maps, linear).mul_(maps).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        maps, gram, linear = ctx.saved_tensors
        dtype, maps, grad = maps.dtype, _wide(maps), grad[:, None]
        scaled = maps * grad
        of_gram = torch.bmm(scaled, maps.transpose(1, 2)).sum(0)
        of_linear = scaled.sum((0, 2))
        del scaled
        return _affine(2 * gram, maps, linear).mul_(grad).to(dtype), of_gram, of_linear


def _weighted_class_sums(maps, shares, labels, num_classes):
    """Sums by class of shares (B, P) times maps (B, K, P), and of the shares; numbers of pixels."""
    maps = _wide(maps)
    classes = torch.arange(num_classes, device=labels.device)
    member = (labels[:, None] == classes[:, None]).to(maps.dtype)  # (B, C, P)
    with torch.autocast(maps.device.type, enabled=False):
        weighted = member * shares[:, None]
        sums = torch.bmm(weighted, maps.transpose(1, 2)).sum(0)
    return sums, weighted.sum((0, 2)), member.sum((0, 2))
