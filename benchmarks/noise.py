"""What the noise of posterior samples costs beside torch's own, on one core, alternating in one process.

`python benchmarks/noise.py [--rounds N]`

Both fill the same float32 tensor: of a video's latent (1.1 million values), of an image's (16,384), and
of a small image's (4,096). torch: `normal_` with a generator that is seeded before, as `torch.randn` draws.
Figures are CPU time; ratios are of the two in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from latentcache.core import posterior

SHAPES = ((16, 13, 60, 90), (16, 1, 32, 32), (4, 1, 32, 32))
#: Values that are drawn between two looks at the clock: the clock must not count.
LEAST_VALUES = 1 << 20


def cpu_ns(draw: Callable[[torch.Tensor, int], object], noise: torch.Tensor) -> float:
    """Return the CPU time of one value."""
    times = max(1, LEAST_VALUES // noise.numel())
    started = time.process_time_ns()
    for seed in range(times):
        draw(noise, seed)
    return (time.process_time_ns() - started) / times / noise.numel()


def with_torch(noise: torch.Tensor, seed: int) -> None:
    """Draw as torch does."""
    noise.normal_(generator=torch.Generator().manual_seed(seed))


def main() -> None:
    """Print a line per shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{machine()}, torch {torch.__version__}, numpy {np.__version__}")
    for shape in SHAPES:
        noise = torch.empty(shape)
        cpu_ns(posterior.draw_, noise), cpu_ns(with_torch, noise)  # warm up
        found = [(cpu_ns(posterior.draw_, noise), cpu_ns(with_torch, noise)) for _ in range(rounds)]
        ours, theirs = (statistics.median(column) for column in zip(*found, strict=True))
        ratio = statistics.median(b / a for a, b in found)
        print(
            f"{list(shape)}: {ours:.2f} ns a value, torch {theirs:.2f}; {ratio:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
