"""Seeds made of seeds, and chance that can be repeated."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def mixed(seed: int, number: int) -> int:
    """A seed of 64 bits for the number-th part of what `seed` decides.

    SplitMix64: Steele et al. 2014, doi:10.1145/2660193.2660195.
    """
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@contextmanager
def repeatable(seed: int, *, device: torch.device) -> Iterator[None]:
    """In here torch draws on `device` what `seed` decides; outside nothing is drawn by it."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield
