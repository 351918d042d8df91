"""Randomness of the data as a function of (seed, position), whatever process computes it."""

import random
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["epoch_permutation", "seeded"]


@contextmanager
def seeded(seed: int, position: int):
    """Seed the global generators of ``random``, numpy and torch (CPU), and restore them after.

    Detectron2's augmentations, its users' and ours draw from these. The state therefore depends on
    (seed, position) alone: not on the worker, its rank or what it has done before. Numpy's
    ``RandomState`` is used because its streams are the same in all versions of numpy.

    Args:
        seed: of the run; any non-negative integer below 2**64.
        position: of the sample in the training stream, from 0.
    """
    stream = np.random.RandomState(_words(seed) + _words(position))
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    random.seed(int(stream.randint(2**31)))
    # Not torch.manual_seed(), which would seed the GPUs of the training process too.
    torch.default_generator.manual_seed(int(stream.randint(2**31)))
    np.random.set_state(stream.get_state())
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def epoch_permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which epoch ``epoch`` visits ``size`` samples: an int array (size,)."""
    # One word more than in seeded(), so that no epoch shares its stream with a sample.
    return np.random.RandomState(_words(seed) + _words(epoch) + [1]).permutation(size)


def _words(number: int) -> list[int]:
    return [number & 0xFFFFFFFF, number >> 32]
