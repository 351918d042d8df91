import torch

from d2_pixcontrast.contrast import random_keys


def test_a_key_depends_on_its_image_alone():
    all_images = random_keys(3, 17, torch.arange(8), 50)
    some = random_keys(3, 17, torch.tensor([5, 2]), 50)
    assert torch.equal(some, all_images[[5, 2]])


def test_range_and_uniformity():
    keys = random_keys(0, 0, torch.arange(64), 4096).double() / 2**32
    assert keys.min() >= 0 and keys.max() < 1
    counts = torch.histc(keys.flatten(), 64, 0, 1)
    expected = keys.numel() / 64
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 20 < chi_square < 130  # 63 degrees of freedom: mean 63, standard deviation 11


def test_every_argument_changes_the_draw():
    def draw(seed=1, iteration=2, image=3, stream=0):
        return random_keys(seed, iteration, torch.tensor([image]), 1000, stream)[0].double()

    base = draw()
    others = [draw(seed=2), draw(iteration=3), draw(image=4), draw(stream=1), draw(seed=1 + 2**33)]
    for other in others:
        correlation = torch.corrcoef(torch.stack([base, other]))[0, 1]
        assert abs(correlation) < 0.15  # standard deviation 0.03


def test_rows_are_not_shifts_of_each_other():
    keys = random_keys(0, 0, torch.arange(200), 200)
    assert keys.unique().numel() > 0.999 * keys.numel()
