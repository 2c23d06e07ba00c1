"""What `copy` and `merge` do with the sources that caches know, before a clip is copied: time and memory.

    python benchmarks/copied_sources.py --sources 1000000 --caches 2

All caches know the same sources, which is the most work.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from latentcache.copying.owners import Owners, Union
from latentcache.copying.selection import Selection
from latentcache.copying.sources import NewSources
from latentcache.format.schemas import PLANNED_SOURCE_SCHEMA
from latentcache.planning.known_sources import KnownSources
from latentcache.planning.step import Step

CHUNK_ROWS = 1 << 16


def known(num: int) -> KnownSources:
    """Return so many sources, in chunks as they are read."""
    starts = range(0, num, CHUNK_ROWS)
    return KnownSources(pa.concat_tables([_rows(n, min(n + CHUNK_ROWS, num)) for n in starts]))


def _rows(first: int, end: int) -> pa.Table:
    columns = {
        "source": [f"folder/video_{n:08d}.mp4" for n in range(first, end)],
        "url": [f"s3://bucket/corpus/folder/video_{n:08d}.mp4" for n in range(first, end)],
        "kind": ["video"] * (end - first),
        "identity": [f"1234567-0123456789abcdef0123{n:08d}" for n in range(first, end)],
        "stamp": [f"1234567:1700000000.{n:08d}" for n in range(first, end)],
        "what": ["planned"] * (end - first),
    }
    return pa.table(columns, schema=PLANNED_SOURCE_SCHEMA)


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=1_000_000)
    parser.add_argument("--caches", type=int, default=2)
    args = parser.parse_args()
    caches: list[Any] = [SimpleNamespace(sources=known(args.sources)) for _ in range(args.caches)]
    Path("/proc/self/clear_refs").write_text("5")  # the peak is of what follows
    before, start = _kib("VmRSS"), time.perf_counter()
    union = Union([cache.sources for cache in caches])
    nothing = np.zeros(union.size, bool)
    NewSources(caches, Owners(union, None), Selection(), nothing, nothing).add_to(
        Step(kind="merge")
    )
    took_s, peak = time.perf_counter() - start, _kib("VmHWM") - before
    print(
        f"{args.sources} sources in each of {args.caches} caches: {took_s:.1f} s, "
        f"{took_s / args.sources * 1e6:.2f} us each; at most {peak >> 10} MiB, "
        f"{(peak << 10) / args.sources:.0f} bytes each"
    )


if __name__ == "__main__":
    main()
