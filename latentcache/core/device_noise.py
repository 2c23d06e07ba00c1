"""The normal noise of `core.noise`, drawn by torch on the device where it is used: the same bits.

numpy's Philox4x64-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011)
is written here in torch's 64-bit integers, which wrap around. Sums of levels are exact in float32, as
`core.noise` says, so they are the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentcache.core.noise import BLOCK_WORDS, GROUP, LEVELS, MAX_SEED, SCALE, check_seed

#: Philox's multipliers of the words 0 and 2 of a block, and what is added to its two keys each round.
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
ROUNDS = 10
LOW = 0xFFFFFFFF
#: Values that are made at a time: each takes some 12 bytes of the device's memory meanwhile.
CHUNK_VALUES = 1 << 23


def fill_(noise: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Fill float32 noise [B, ...] on its device: row i depends only on its size and seeds[i].

    It is what `core.noise.fill` gives with the same seed. noise is contiguous. Raises ValueError for a
    seed that is not at least 0 and below 2**64.
    """
    for seed in seeds:
        check_seed(seed)
    rows = noise.view(len(noise), -1)
    num_values = rows.shape[1]
    at_once = max(1, CHUNK_VALUES // max(1, num_values))
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once]
        words = _words(seeds[first : first + at_once], num_values, noise.device)
        part.copy_(_mixed(_levels(words)).view(len(part), -1)[:, :num_values])
    return noise


def _words(seeds: Sequence[int], num_values: int, device: torch.device) -> torch.Tensor:
    """Return the words that make the values, int64 [B, words], whole blocks of Philox."""
    num_blocks = -(-num_values // (GROUP * BLOCK_WORDS))
    zeros = torch.zeros((2, len(seeds), num_blocks), dtype=torch.int64, device=device)
    # numpy counts before it makes a block: the first one is that of 1.
    multiplied, others = zeros.clone(), zeros
    multiplied[0] += torch.arange(1, num_blocks + 1, device=device)
    keys = torch.stack((_column(seeds, device), _column([0] * len(seeds), device)))[..., None]
    multipliers = _column(MULTIPLIERS, device)[:, None, None]
    steps = _column(KEY_STEPS, device)[:, None, None]
    for _ in range(ROUNDS):
        high, low = _product(multiplied, multipliers)
        multiplied = high.flip(0) ^ others ^ keys
        others = low.flip(0)
        keys = keys + steps
    block = torch.stack((multiplied[0], others[0], multiplied[1], others[1]), dim=-1)
    return block.view(len(seeds), -1)


def _column(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return unsigned numbers of 64 bits as the int64 that have their bits."""
    signed = [number - MAX_SEED if number >> 63 else number for number in numbers]
    return torch.tensor(signed, dtype=torch.int64).to(device, non_blocking=True)


def _product(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the upper and the lower 64 bits of products of unsigned numbers."""
    left_low, left_high = left & LOW, _upper(left)
    right_low, right_high = right & LOW, _upper(right)
    inner, outer = left_low * right_high, left_high * right_low
    carry = _upper(left_low * right_low) + (inner & LOW) + (outer & LOW)
    return left_high * right_high + _upper(inner) + _upper(outer) + _upper(carry), left * right


def _upper(numbers: torch.Tensor) -> torch.Tensor:
    """Return the upper 32 of 64 bits."""
    return (numbers >> 32) & LOW


def _levels(words: torch.Tensor) -> torch.Tensor:
    """Return the levels that each word's bits choose, four by four from the lowest: float32 [words, 16]."""
    levels = torch.tensor([*LEVELS, *(-level for level in LEVELS)], dtype=torch.float32) * SCALE
    numbers = torch.arange(256)
    pairs = torch.stack((levels[numbers & 15], levels[numbers >> 4]), dim=1).to(words.device)
    chosen = words.contiguous().view(torch.uint8).view(-1).int()  # the lowest byte comes first
    return pairs.index_select(0, chosen).view(-1, GROUP)


def _mixed(levels: torch.Tensor) -> torch.Tensor:
    """Return the product of levels [words, 16] and the Hadamard matrix of `core.noise`."""
    step = 1
    while step < GROUP:
        pairs = levels.view(-1, GROUP // (2 * step), 2, step)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        levels = torch.stack((first + second, first - second), dim=2)
        step *= 2
    return levels.reshape(-1, GROUP)
