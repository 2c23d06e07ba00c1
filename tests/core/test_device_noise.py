"""Noise that a device draws for itself: the bits of the noise that numpy draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcache.core import device_noise, noise, posterior

SEEDS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1])


def bits(values: torch.Tensor) -> list[int]:
    return values.view(torch.int32).flatten().tolist()


def by_numpy(num: int, seed: int) -> torch.Tensor:
    out = np.full(num, np.nan, np.float32)
    noise.fill(out, seed)
    return torch.from_numpy(out)


@given(st.lists(SEEDS, min_size=1, max_size=4), st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_the_bits_are_those_that_numpy_draws(seeds: list[int], num: int) -> None:
    found = device_noise.fill_(torch.full((len(seeds), num), torch.nan), seeds)
    for row, seed in zip(found, seeds, strict=True):
        assert bits(row) == bits(by_numpy(num, seed))


def test_rows_are_the_same_however_many_are_made_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_noise, "CHUNK_VALUES", 2 * 2 * 3 * 5 * 7)
    seeds = [posterior.sample_seed(0, 3, key) for key in "abcde"]
    found = device_noise.fill_(torch.full((5, 2, 3, 5, 7), torch.nan), seeds)
    for row, seed in zip(found, seeds, strict=True):
        assert bits(row) == bits(by_numpy(row.numel(), seed))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_other_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"below 2\\*\\*64, not {seed}"):
        device_noise.fill_(torch.empty(2, 1), [0, seed])
