import pytest
import torch
from torch.nn import functional as F

from d2_pixcontrast.modeling.losses import SegmentationLoss


def make(loss_type="cross_entropy", class_weights=(), num_classes=4, ignore_value=255, **options):
    return SegmentationLoss(
        ignore_value=ignore_value,
        loss_type=loss_type,
        class_weights=list(class_weights),
        num_classes=num_classes,
        **options,
    )


def batch():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (2, 12, 16), generator=g)
    labels[:, :3] = 255
    return torch.randn(2, 4, 3, 4, generator=g).requires_grad_(), labels


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 2.0, 3.0)])
def test_is_torchs_cross_entropy_at_label_resolution(weights, align_corners):
    logits, labels = batch()
    expected = F.cross_entropy(
        F.interpolate(logits, (12, 16), mode="bilinear", align_corners=align_corners),
        labels,
        torch.tensor(weights) if weights else None,
        ignore_index=255,
    )
    loss = make(class_weights=weights, align_corners=align_corners)
    torch.testing.assert_close(loss(logits, labels), expected)
    other = make(class_weights=weights, align_corners=not align_corners)
    assert (other(logits, labels) - expected).abs() > 1e-4


def test_hard_pixel_mining_takes_the_hardest_fifth():
    logits, labels = batch()
    upsampled = F.interpolate(logits, (12, 16), mode="bilinear", align_corners=False)
    per_pixel = F.cross_entropy(upsampled, labels, ignore_index=255, reduction="none").flatten()
    expected = per_pixel.sort(descending=True).values[: int(0.2 * per_pixel.numel())].mean()
    torch.testing.assert_close(make("hard_pixel_mining")(logits, labels), expected)


@pytest.mark.parametrize("loss_type", ["cross_entropy", "hard_pixel_mining"])
def test_class_weights_are_the_configs_and_no_part_of_a_checkpoint(loss_type):
    logits, labels = batch()
    before, loss = make(loss_type, [1.0] * 4), make(loss_type, [5.0, 1.0, 2.0, 0.1])
    expected = loss(logits, labels)
    assert not before.state_dict()
    loss.load_state_dict(before.state_dict())
    assert loss(logits, labels) == expected != before(logits, labels)


@pytest.mark.parametrize("ignore_value", [255, 3])
@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0, 1.0)])
@pytest.mark.parametrize("loss_type", ["cross_entropy", "hard_pixel_mining"])
def test_an_all_void_crop_is_zero_not_nan(loss_type, weights, ignore_value):
    logits, labels = batch()
    labels[:] = ignore_value
    loss = make(loss_type, weights, ignore_value=ignore_value)(logits, labels)
    assert loss == 0
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.all(grad == 0)


def test_half_precision_logits_give_a_float32_loss():
    logits, labels = batch()
    assert make()(logits.half(), labels).dtype == torch.float32


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loss_type": "dice"}, "LOSS_TYPE is 'dice'"),
        ({"class_weights": (1.0, 2.0)}, r"CLASS_WEIGHTS needs 4 positive numbers, got 2"),
        ({"class_weights": (1.0, 2.0, 0.0, 1.0)}, r"needs 4 positive numbers"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("pixels", [1, 4, 5])
@pytest.mark.parametrize("weights", [(), (0.5, 1.0, 2.0, 3.0)])
def test_hard_pixel_mining_of_few_pixels_is_finite(pixels, weights):
    """A fifth of four pixels is none."""
    logits, labels = torch.randn(1, 4, 1, pixels, requires_grad=True), torch.zeros(1, 1, pixels)
    loss = make("hard_pixel_mining", weights)(logits, labels.long())
    loss.backward()
    assert loss > 0 and logits.grad.isfinite().all()
