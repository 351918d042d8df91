"""Every term on every batch: the same losses in every step, finite, and gradients for all."""

import pytest
import torch
from fuzz_cases import TEMPERATURES, Batch, assert_finite, batches, cases
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from d2_pixcontrast.contrast import MINING_MODES, Bane, MemoryBank, Mining, ProjectionHead
from d2_pixcontrast.modeling.terms import (
    TERM_REGISTRY,
    Contextrast,
    MultiScaleContrast,
    PixelContrast,
    TermInputs,
    TrainingProgress,
)

CHANNELS = {"res2": 3, "res3": 5, "res5": 4}
NAMES = list(CHANNELS)

BANES = st.none() | st.builds(
    Bane,
    st.sampled_from([0.1, 33.3, 50.0, 100.0]),
    st.sampled_from(["other", "confused"]),
    st.sampled_from([1, 7, 1000]),
)
MININGS = st.builds(
    Mining,
    st.sampled_from(MINING_MODES),
    st.sampled_from([1, 3, 1000]),
    st.sampled_from([1, 5, 1000]),
    st.sampled_from([0.01, 0.5, 1.0]),
    st.sampled_from(["", *MINING_MODES]),
)
FORMS = st.sampled_from(["mlp without norm", "mlp", "linear"])
WARMUPS = st.sampled_from([0.0, 0.0, 0.5])


def projector(channels: int, form: str, batch: Batch, norm_last: bool = False) -> ProjectionHead:
    # Batch norm needs two values per channel; it fails on one pixel in any network.
    one_pixel = len(batch.labels) == 1 and (1, 1) in batch.grids
    norm = nn.BatchNorm2d if form == "mlp" and not one_pixel else None
    return ProjectionHead(
        channels, dim=6, kind=form.split()[0], norm=norm, norm_last=norm is not None and norm_last
    )


# Where no channel varies, batch norm divides gradients by sqrt(eps), and embeddings of length near
# 0 enlarge them again: an overflow of float16, upon which the grad-scaler scales down, also so far.
FLOAT16_SCALE = 2.0**-16


def check(term, batch: Batch, in_half_precision: bool) -> None:
    """Three training steps, of which a warm-up of 0.5 takes two."""
    if batch.dtype == torch.float16:
        batch.magnitude = min(batch.magnitude, 1.0)  # the projector itself would overflow
    dtype = batch.dtype if in_half_precision and batch.dtype != torch.float32 else None
    for iteration in range(3):
        features = {
            name: batch.features(channels, grid, stream=10 * iteration + i)
            for i, ((name, channels), grid) in enumerate(zip(CHANNELS.items(), batch.grids))
        }
        features = {n: (f if dtype else f.float()).requires_grad_() for n, f in features.items()}
        inputs = TermInputs(
            features=features,
            logits=batch.logits(batch.grids[0]),
            labels=batch.labels,
            ignore_value=batch.ignore_value,
            progress=TrainingProgress(iteration, max_iter=4, seed=batch.seed),
        )
        term.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            losses, scalars = term(inputs)
        assert tuple(losses) == term.loss_names
        assert all(loss.shape == () and loss >= 0 for loss in losses.values())
        assert not any(value.requires_grad for value in scalars.values())
        assert_finite(losses=losses, scalars=scalars)
        (sum(losses.values()) * (FLOAT16_SCALE if dtype == torch.float16 else 1)).backward()
        assert_finite(gradients={n: p.grad for n, p in term.named_parameters()})
        for feature in features.values():
            if feature.grad is not None:
                assert_finite(gradient=feature.grad)
    for name, buffer in term.named_buffers():
        assert_finite(**{name.replace(".", "_"): buffer})


@cases("pixel_contrast")
@given(
    batch=batches(num_grids=3),
    half=st.booleans(),
    form=FORMS,
    bane=BANES,
    mining=MININGS,
    memory=st.none() | st.tuples(*[st.sampled_from(s) for s in ([0, 1, 9], [2, 20], [1, 30])]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    options=st.fixed_dictionaries(
        {
            "temperature": TEMPERATURES,
            "base_temperature": TEMPERATURES,
            "sampler": st.sampled_from(["per_image", "per_class"]),
            "max_samples": st.sampled_from([1, 5, 64]),
            "max_views": st.sampled_from([1, 4, 50]),
            "anchors_per_class": st.sampled_from([1, 6, 20]),
            "with_batch": st.booleans(),
            "warmup": WARMUPS,
            "in_features": st.sampled_from([["res5"], NAMES]),
        }
    ),
)
def test_pixel_contrast(batch, half, form, bane, mining, memory, dtype, options):
    torch.manual_seed(batch.seed)
    bank = None
    if memory is not None:
        sizes = dict(zip(("region_size", "pixel_size", "pixels_per_group"), memory))
        bank = MemoryBank(batch.num_classes, 6, **sizes, dtype=dtype)
    channels = sum(CHANNELS[name] for name in options["in_features"])
    term = PixelContrast(
        projector=projector(channels, form, batch),
        num_classes=batch.num_classes,
        bank=bank,
        mining=mining,
        bane=bane,
        **options,
    )
    check(term, batch, half)


@cases("contextrast")
@given(
    batch=batches(num_grids=3),
    half=st.booleans(),
    form=FORMS,
    options=st.fixed_dictionaries(
        {
            "temperature": TEMPERATURES,
            "warmup": WARMUPS,
            "low_weight": st.sampled_from([0.0, 0.5, 0.7, 1.0]),
            "normalize": st.booleans(),
            "detach": st.booleans(),
            "all_ranks": st.booleans(),
            "positives_per_class": st.sampled_from([1, 5, 4096]),
            "bane": BANES,
        }
    ),
)
def test_contextrast(batch, half, form, options):
    torch.manual_seed(batch.seed)
    max_positives = options.pop("positives_per_class") * batch.num_classes
    term = Contextrast(
        max_positives=max_positives,
        projectors=[projector(channels, form, batch) for channels in CHANNELS.values()],
        in_features=NAMES,
        num_classes=batch.num_classes,
        level_weights=(0.1, 0.3, 1.0),
        **options,
    )
    check(term, batch, half)


@cases("multi_scale")
@given(
    batch=batches(num_grids=3),
    half=st.booleans(),
    form=FORMS,
    options=st.fixed_dictionaries(
        {
            "temperature": TEMPERATURES,
            "warmup": WARMUPS,
            "cross_features": st.sampled_from([[], ["res5"], ["res5", "res3"]]),
            "max_samples": st.sampled_from([1, 5, 10000]),
            "max_views": st.sampled_from([1, 5, 2500]),
            "min_pixels": st.sampled_from([1, 5, 1000]),
            "balance": st.sampled_from(["weight", "min"]),
        }
    ),
)
def test_multi_scale_contrast(batch, half, form, options):
    torch.manual_seed(batch.seed)
    term = MultiScaleContrast(
        projectors=[projector(c, form, batch, norm_last=True) for c in CHANNELS.values()],
        in_features=NAMES,
        num_classes=batch.num_classes,
        scale_weights=(1.0, 0.7, 0.1),
        **options,
    )
    check(term, batch, half)


def test_every_registered_term_is_tried_here():
    tried = {"PixelContrast", "Contextrast", "MultiScaleContrast"}
    assert {name for name, _ in TERM_REGISTRY if not name.startswith("_")} >= tried
    ours = {n for n, term in TERM_REGISTRY if term.__module__.startswith("d2_pixcontrast")}
    assert ours == tried


def test_the_check_can_fail():
    batch = Batch(torch.zeros(1, 4, 4).long(), [(2, 2)] * 3, 2, 255, 1, torch.float32, "noise", 1.0)
    term = PixelContrast(
        projector=projector(4, "linear", batch), in_features=["res5"], num_classes=2, warmup=0
    )
    nn.init.constant_(term.projector.out.weight, torch.nan)
    with pytest.raises(AssertionError):
        check(term, batch, False)
