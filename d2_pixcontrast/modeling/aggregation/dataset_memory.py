"""A data-set memory that the network reads: Jin et al., "Mining Contextual Information Beyond Image
for Semantic Segmentation", ICCV 2021 (MCIBI), and its follow-up MCIBI++ (TPAMI 2023)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from ..layers import classifier, conv_norm_relu
from ..terms import TrainingProgress
from .attention import GridAttention
from .consistency import consistency_loss
from .options import NetworkOptions, TrainingOptions


class AggregationOutput(NamedTuple):
    """What the aggregation gives for a batch.

    Attributes:
        features: (B, D, h, w), read by the final classifier.
        pixels: (B, D, h', w') pixel representations f; classes' means of them are the memory.
        context: (B, M, h'', w'') context within the image m, or None.
        pixel_logits: (B, C, h', w') of the stage-1 classifier on ``pixels``; None where nothing
            needs them.
        context_logits: (B, C, h'', w'') of the context head on ``context``; None without one.
        read_logits: (B, C, h', w') that the memory was read with.
    """

    features: torch.Tensor
    pixels: torch.Tensor
    context: torch.Tensor | None
    pixel_logits: torch.Tensor | None
    context_logits: torch.Tensor | None
    read_logits: torch.Tensor


class DatasetMemoryAggregation(nn.Module):
    """Augments each pixel by what the memory knows about its likely classes.

    Pixel representations f are classified (stage 1), the memory is read with these probabilities,
    f attends to what was read, and both are fused to o. The decoder's output is the context within
    the image, m: f attends to it as well ("attention", MCIBI), or it joins o as it is ("concat",
    MCIBI++). The last hidden layer of the stage-2 classifier ends the module; its 1x1 convolution
    to logits is the head's ``predictor``.

    Grids: the memory is read, and o computed, on the grid of f. Where m lives on another one, the
    coarser of the two is brought to the finer by bilinear interpolation, and there the output is.
    A decoder without a context (FCN) gives f itself, and all is on its grid.
    """

    def __init__(
        self,
        *,
        memory: nn.Module,
        pixels: nn.Module | None,
        pixel_stride: int,
        context_channels: int,
        context_stride: int,
        num_classes: int,
        network: NetworkOptions,
        training: TrainingOptions,
    ):
        """
        Args:
            memory: a :class:`~d2_pixcontrast.contrast.DatasetMemory` or a ``StatisticsMemory``.
            pixels: {name: (B, C, h, w)} to f; None: f is the decoder's output, and there is no m.
            pixel_stride: of f.
            context_channels, context_stride: of the decoder's output, be it m or f.
            num_classes: C.
            network: what is built.
            training: how it is trained.

        Raises:
            ValueError: the options exclude each other; the message names their keys.
        """
        super().__init__()
        with_context = pixels is not None
        network.check(with_context=with_context, decoder_channels=context_channels)
        training.check(with_hidden_context=with_context and network.fusion == "concat")
        channels, norm = network.channels, network.norm
        self.memory = memory
        self.pixels = pixels
        self.network, self.training_options = network, training
        self._grids_differ = context_stride != pixel_stride
        self._context_is_finer = context_stride < pixel_stride
        self.out_channels = channels
        self.out_stride = min(pixel_stride, context_stride)

        def attention(source_channels):
            return GridAttention(
                query_channels=channels,
                source_channels=source_channels,
                key_channels=network.key_channels,
                out_channels=channels,
                norm=norm,
            )

        def dropout():
            return nn.Dropout2d(network.dropout)

        self.stage1 = nn.Sequential(
            conv_norm_relu(channels, channels, 1, norm),
            dropout(),
            classifier(channels, num_classes),
        )
        # One attention per entry of a class, merged by a convolution.
        entries = memory.read_channels // channels
        self.memory_attentions = nn.ModuleList(attention(channels) for _ in range(entries))
        self.merge = conv_norm_relu(entries * channels, channels, 1, norm) if entries > 1 else None
        self.fuse = conv_norm_relu(2 * channels, channels, 3, norm)
        self.context_attention = self.context_fuse = self.context_head = None
        hidden_channels = channels
        if with_context and network.fusion == "attention":
            self.context_attention = attention(context_channels)
            self.context_fuse = conv_norm_relu(2 * channels, channels, 3, norm)
        elif with_context:
            hidden_channels += context_channels
        if with_context and network.context_head:
            self.context_head = nn.Sequential(
                conv_norm_relu(context_channels, channels, 1, norm),
                dropout(),
                classifier(channels, num_classes),
            )
        self.hidden = conv_norm_relu(hidden_channels, channels, 1, norm)
        self.dropout = dropout()

    @property
    def second_pass(self) -> bool:
        """Whether inference reads the memory again with the logits of a first pass."""
        return bool(self.network.second_pass)

    def forward(self, features: dict[str, torch.Tensor], decoded: torch.Tensor):
        """
        Args:
            features: {name: (B, C, h, w)} that the decoder read.
            decoded: (B, context_channels, h, w), what it made of them.

        Returns:
            An :class:`AggregationOutput`.
        """
        pixels, context = decoded, None
        if self.pixels is not None:
            pixels, context = self.pixels(features), decoded
        pixel_logits = context_logits = None
        if self.context_head is not None:
            context_logits = self.context_head(context)
        if self.training or context_logits is None:
            pixel_logits = self.stage1(pixels)
        read_logits = pixel_logits if context_logits is None else context_logits
        if context_logits is not None and self._grids_differ:
            read_logits = self._resized(read_logits, pixels.shape[-2:])
        return AggregationOutput(
            self._aggregate(pixels, context, read_logits),
            pixels,
            context,
            pixel_logits,
            context_logits,
            read_logits,
        )

    def again(self, output: AggregationOutput, logits: torch.Tensor) -> torch.Tensor:
        """A second pass, from coarse to fine (MCIBI++): final logits help to read the memory.

        Args:
            output: of the first pass.
            logits: (B, C, h, w) of the final classifier in the first pass.

        Returns:
            (B, D, h, w), read by the final classifier.
        """
        own, first = self.network.second_pass
        mixed = own * output.read_logits + first * self._resized(logits, output.pixels.shape[-2:])
        return self._aggregate(output.pixels, output.context, mixed)

    def _aggregate(self, pixels, context, read_logits) -> torch.Tensor:
        """f, m and the logits to read with, to the (B, D, h, w) input of the final classifier."""
        fused = self._fuse_memory(pixels, read_logits)
        if context is not None:
            fused = self._fuse_context(pixels, fused, context)
        return self.dropout(self.hidden(fused))

    def _fuse_memory(self, pixels, read_logits) -> torch.Tensor:
        """(B, D, h', w') o: f, and what f finds in the memory's image of the pixels."""
        read = self._read(read_logits).to(pixels.dtype)
        parts = read.chunk(len(self.memory_attentions), dim=1)
        attended = [a(pixels, part) for a, part in zip(self.memory_attentions, parts, strict=True)]
        attended = attended[0] if self.merge is None else self.merge(torch.cat(attended, dim=1))
        return self.fuse(torch.cat([pixels, attended], dim=1))

    def _read(self, logits) -> torch.Tensor:
        """(B, K * D, h', w') of the memory, for (B, C, h', w') logits."""
        if self.network.read == "zeros":
            batch, _, *size = logits.shape
            return logits.new_zeros(batch, self.memory.read_channels, *size)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        probabilities = logits.to(dtype).softmax(dim=1)
        return self.memory.read(probabilities, hard=self.network.read == "hard")

    def _fuse_context(self, pixels, fused, context) -> torch.Tensor:
        """o and the context within the image, on the finer of their grids."""
        if self._context_is_finer:
            fused = self._resized(fused, context.shape[-2:])
        if self.context_attention is not None:
            if self._context_is_finer:
                pixels = self._resized(pixels, context.shape[-2:])
            gathered = self.context_attention(pixels, context)
            return self.context_fuse(torch.cat([gathered, fused], dim=1))
        if self._grids_differ and not self._context_is_finer:
            context = self._resized(context, fused.shape[-2:])
        return torch.cat([fused, context], dim=1)

    def _resized(self, features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        aligned = self.network.align_corners
        return F.interpolate(features, size, mode="bilinear", align_corners=aligned)

    def losses(
        self,
        output: AggregationOutput,
        labels: torch.Tensor,
        *,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        predictor: nn.Module,
        progress: TrainingProgress,
    ) -> dict[str, torch.Tensor]:
        """Losses of the module by name, the same names in every step.

        Args:
            output: in training.
            labels: (B, H, W) int64.
            loss: (logits, labels) to a scalar.
            predictor: the final classifier.
            progress: where training stands.
        """
        options = self.training_options
        losses = {"loss_sem_seg_stage1": loss(output.pixel_logits, labels) * options.stage1_weight}
        if output.context_logits is not None:
            losses["loss_sem_seg_context"] = (
                loss(output.context_logits, labels) * options.context_weight
            )
        if options.consistency_weight:
            losses["loss_memory_consistency"] = self._consistency(predictor, progress)
        return losses

    def _consistency(self, predictor: nn.Module, progress: TrainingProgress) -> torch.Tensor:
        if progress.fraction < self.training_options.consistency_start:
            return sum(p.sum() for p in predictor.parameters()) * 0.0
        entries = self.memory.class_entries()
        value = consistency_loss(entries, self.hidden, self.dropout, predictor)
        return value * self.training_options.consistency_weight

    def update(
        self,
        output: AggregationOutput,
        labels: torch.Tensor,
        *,
        ignore_value: int,
        progress: TrainingProgress,
    ) -> dict[str, torch.Tensor]:
        """Let the memory learn from a batch, after the network has read it.

        Training forwards without gradients are no training steps (PreciseBN) and change nothing.
        With several ranks all have to call it.

        Args:
            output: of the batch.
            labels: (B, H, W) int64.
            ignore_value: label of pixels without a class.
            progress: where training stands.

        Returns:
            Scalars to record: the share of filled entries, and their mean length.
        """
        if torch.is_grad_enabled():
            self.memory.update(
                output.pixels.detach(),
                labels,
                momentum=self.training_options.momentum_at(progress),
                ignore_value=ignore_value,
            )
        entries = self.memory.class_entries()
        norms = entries.rows.float().norm(dim=1) * entries.mask
        return {
            "memory/fill_ratio": entries.mask.float().mean(),
            "memory/norm": norms.sum() / entries.mask.sum().clamp(min=1),
        }
