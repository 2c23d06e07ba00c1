from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from latentcache.core import noise, posterior

MASK = (1 << 64) - 1
#: Of statistics over so many values, more than five standard errors are no luck.
NUM = 1 << 20
FIVE_ERRORS = 5.0


def philox_words(seed: int, number: int) -> list[int]:
    """Return the four words of a counter by Philox4x64-10, as Salmon et al. write it down."""
    counter, key = [number, 0, 0, 0], [seed, 0]
    for n in range(10):
        if n:
            key = [(key[0] + 0x9E3779B97F4A7C15) & MASK, (key[1] + 0xBB67AE8584CAA73B) & MASK]
        a, b = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (b >> 64) ^ counter[1] ^ key[0],
            b & MASK,
            (a >> 64) ^ counter[3] ^ key[1],
            a & MASK,
        ]
    return counter


def value(seed: int, place: int) -> float:
    """Return one value of the noise in plain integers."""
    number, r = divmod(place, 16)
    word = philox_words(seed, number // 4 + 1)[number % 4]  # numpy counts before it makes words
    total = 0
    for s in range(16):
        bits = word >> (4 * s) & 15
        level = noise.LEVELS[bits & 7] * (-1 if bits & 8 else 1)
        total += level * (-1) ** (r & s).bit_count()
    return total / 2048


def drawn(num: int, seed: int) -> np.ndarray:
    out = np.full(num, np.nan, np.float32)
    noise.fill(out, seed)
    return out


def test_the_reference_is_philox() -> None:
    """The vector is the authors', of an empty counter and key: kat_vectors in Random123."""
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox_words(0, 0) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("num", [0, 1, 15, 16, 17, 16 * noise.MIXED_WORDS + 40])
def test_values_are_those_of_plain_integers(seed: int, num: int) -> None:
    places = sorted({*range(min(num, 40)), *range(max(0, num - 60), num)})
    assert drawn(num, seed)[places].tolist() == [value(seed, place) for place in places]


def test_values_go_on_over_the_chunks_that_are_computed_at_a_time() -> None:
    chunk = noise.CHUNK_WORDS * noise.GROUP
    found = drawn(2 * chunk + 7, 5)
    for edge in (chunk, 2 * chunk):
        places = range(edge - 5, edge + 7)
        assert found[edge - 5 : edge + 7].tolist() == [value(5, place) for place in places]


def test_a_tensor_of_any_shape_gets_the_values_of_its_seed_in_order() -> None:
    seed = posterior.sample_seed(0, 3, "a.mp4#0")
    found = posterior.draw_(torch.empty(2, 3, 5, 7), seed)
    assert found.flatten().tolist() == [value(seed, place) for place in range(2 * 3 * 5 * 7)]


def test_threads_draw_what_one_draws_alone() -> None:
    sizes = [70_000 + 13 * n for n in range(16)]
    alone = [drawn(size, n) for n, size in enumerate(sizes)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(drawn, sizes, range(len(sizes))))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_other_seeds_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"below 2\\*\\*64, not {seed}"):
        drawn(1, seed)


def exact_distribution() -> tuple[np.ndarray, np.ndarray]:
    """Return the values that can come, and the exact probability of each, from the 16 levels."""
    top = noise.LEVELS[-1]
    one = np.zeros(2 * top + 1)
    for level in noise.LEVELS:
        one[[top - level, top + level]] += 1 / 16
    whole = one
    for _ in range(4):  # 2, 4, 8, 16 levels
        size = 2 * len(whole) - 1
        whole = np.fft.irfft(np.fft.rfft(whole, 2 * size) ** 2, 2 * size)[:size]
    return (np.arange(len(whole)) - len(whole) // 2) * noise.SCALE, whole


def normal_cdf(values: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in values.tolist()])


def test_the_distribution_is_normal_as_far_as_the_module_says() -> None:
    values, chances = exact_distribution()
    steps = np.cumsum(chances)
    normal = normal_cdf(values)
    assert np.abs(steps - chances / 2 - normal).max() < 1e-4
    moments = {k: float((chances * values**k).sum()) for k in (2, 4, 6, 8)}
    expected = {2: 1.0, 4: 3.0, 6: 15.0, 8: 105.0}
    within = {2: 1e-9, 4: 1e-6, 6: 1e-3, 8: 4e-3}
    for k, moment in moments.items():
        assert moment == pytest.approx(expected[k], rel=within[k])
    for far, share in ((4, 0.97), (5, 0.85)):
        beyond = chances[values > far].sum() / (0.5 * math.erfc(far / math.sqrt(2)))
        assert beyond == pytest.approx(share, abs=0.01)
    assert values.max() < 9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, posterior.sample_seed(0, 0, "a")])
def test_moments_and_distribution_of_what_is_drawn_are_normal(seed: int) -> None:
    values = drawn(NUM, seed).astype(np.float64)
    for k, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        error = math.sqrt(math.prod(range(1, 2 * k, 2)) - moment**2) / math.sqrt(NUM)
        assert abs((values**k).mean() - moment) < FIVE_ERRORS * error
    ordered = np.sort(values)
    places = np.arange(0, NUM, 64)
    distance = np.abs(normal_cdf(ordered[places]) - places / NUM).max()
    # Kolmogorov: 2 exp(-2 n d^2) is the chance of a distance d; here it is below one in a million.
    assert distance < math.sqrt(math.log(2e6) / 2 / NUM) + 64 / NUM


def test_values_are_independent_of_those_beside_them() -> None:
    values = drawn(NUM, 3).astype(np.float64).reshape(-1, noise.GROUP)
    limit = FIVE_ERRORS / math.sqrt(len(values))
    for f in (lambda x: x, lambda x: (x**2 - 1) / math.sqrt(2), np.sign):
        together = np.corrcoef(f(values), rowvar=False) - np.eye(noise.GROUP)
        assert np.abs(together).max() < limit
    flat = values.reshape(-1)
    for lag in (1, 15, 16, 17, 64, 4096):
        assert abs((flat[lag:] * flat[:-lag]).mean()) < FIVE_ERRORS / math.sqrt(NUM)


def test_noise_of_other_seeds_is_independent() -> None:
    """Of seeds beside each other, that differ in one bit, and of keys, epochs and seeds of a loader."""
    num = NUM // 16
    seeds = [0, 1, 2, 3, *(1 << n for n in (7, 31, 32, 62))]
    seeds += [
        posterior.sample_seed(*p) for p in ((0, 0, "a"), (0, 1, "a"), (1, 0, "a"), (0, 0, "b"))
    ]
    rows = {seed: drawn(num, seed).astype(np.float64) for seed in seeds}
    for one, other in itertools.combinations(rows.values(), 2):
        assert abs((one * other).mean()) < FIVE_ERRORS / math.sqrt(num)
        both = ((one**2 - 1) * (other**2 - 1)).mean()
        assert abs(both) < FIVE_ERRORS * 2 / math.sqrt(num)
        assert (one == other).mean() < 0.001


@pytest.mark.parametrize("start", [0, 1, 15, 16, 63, 64, 65, 16 * noise.CHUNK_WORDS + 9])
@pytest.mark.parametrize("num", [0, 1, 63, 64, 16 * noise.MIXED_WORDS + 40])
def test_noise_from_any_place_on_is_that_of_the_whole(start: int, num: int) -> None:
    out = np.full(num, np.nan, np.float32)
    noise.fill(out, 7, start)
    np.testing.assert_array_equal(out, drawn(start + num, 7)[start:])


@pytest.mark.parametrize(
    "frames", [[0], [360], [5, 6, 7], [9, 3, 3, 4], range(0, 361, 2), range(360, -1, -1)]
)
@pytest.mark.parametrize("size", [(3, 5), (80, 90)])
def test_noise_of_some_frames_is_that_of_the_whole(
    frames: list[int], size: tuple[int, int]
) -> None:
    whole = posterior.draw_(torch.empty(2, 361, *size), 11)
    found = posterior.draw_frames((2, 361, *size), frames, 11)
    assert torch.equal(found, whole[:, list(frames)])


def test_noise_of_few_frames_draws_only_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = noise.fill

    def counting(out: np.ndarray, seed: int, start: int = 0) -> None:
        sizes.append(len(out))
        original(out, seed, start)

    monkeypatch.setattr(posterior, "fill", counting)
    posterior.draw_frames((4, 361, 32, 48), [7, 8, 200], 0)
    assert sum(sizes) == 4 * 3 * 32 * 48
