"""A cache of a million shards: time and memory to open it, to make a loader, and for its order.

    python benchmarks/million.py [--shards 1000000] [--folder /tmp/million]

Writes only what is planned and index.parquet; no latents are read. Also measures how long it takes to
continue in the middle of an epoch of ten million samples, and to pack the state.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from latentcache.reading.cache import open_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.order.epoch import BucketShards, Epoch, Order
from tests.tools.synthetic import write_index

T = TypeVar("T")
#: Latents of Wan 2.1 at 81 frames: 16x21, of three aspect ratios, 2 to 4 MB each.
BUCKETS = ("81x480x832", "81x832x480", "81x640x640", "1x480x832")
SHARD_CLIPS = 64


def main() -> None:
    """Parse the command line, write the tables and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--folder", help="where to write (a temporary folder)")
    args = parser.parse_args()
    folder = args.folder or tempfile.mkdtemp(prefix="latentcache-million-")
    clips = SHARD_CLIPS * args.shards // len(BUCKETS)
    write_index(folder, dict.fromkeys(BUCKETS, clips), SHARD_CLIPS)
    print(
        f"{args.shards} shards of {SHARD_CLIPS} clips in {len(BUCKETS)} buckets; before: {memory()}"
    )
    cache = timed("open_cache", lambda: open_cache(folder))
    # There is an index only, and no sample table that might have weights.
    options = {"batch_size": 8, "world_size": 8, "clip_weight": None}
    loader = timed("LatentLoader", lambda: LatentLoader(cache, **options))
    epoch = timed("order", lambda: Epoch(loader.order, loader.buckets, 0))
    timed("its first batch", lambda: epoch.batch(0))
    timed("a batch in the middle", lambda: epoch.batch(len(epoch) // 2))
    state = timed("state_dict", loader.state_dict)
    print(f"{'state':28} {len(json.dumps(state)):>9} bytes")
    timed("load_state_dict", lambda: loader.load_state_dict(state))
    resume(10_000_000)
    if args.folder is None:
        shutil.rmtree(folder)


def resume(num_samples: int) -> None:
    """Measure the first batch of an epoch that starts somewhere, and a whole epoch's order."""
    shards = [BucketShards(num_samples=np.full(num_samples // 32, 32), sample_bytes=2_250_000)]
    order = Order(batch_size=8)
    num_batches = order.num_batches(shards)
    for start in (0, num_batches // 2, num_batches - 1):
        name = f"{num_samples:,} samples, batch {start}"
        timed(name, lambda start=start: next(order.batches(shards, 0, start)))
    epoch = Epoch(order, shards, 0)
    timed(
        "all of rank 0 of 64", lambda: [epoch.batch(place) for place in range(0, num_batches, 64)]
    )


def timed(name: str, function: Callable[[], T]) -> T:
    """Call, and print how long it took and how much memory the process then holds."""
    started, cpu_started = time.perf_counter(), time.process_time()
    value = function()
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    print(f"{name:28} {wall_s:9.3f} s, of the processor {cpu_s:.3f} s   {memory()}")
    return value


def memory() -> str:
    """Return the memory that the process holds, and the most that it has held."""
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return f"RSS {rss >> 20} MB, at most {peak >> 20} MB"


if __name__ == "__main__":
    main()
