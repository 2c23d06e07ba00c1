"""What reading costs beside the bytes themselves: CPU time per sample, alternating within one process.

`python benchmarks/reading.py [--samples N] [--rounds N] [--folder FOLDER]`

Samples are 2.25 MB of bfloat16, from page cache. CPU time is user and system time of the process, so
other work on the machine disturbs it less than wall time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numcodecs.blosc
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from latentcache import open_cache
from latentcache.core import posterior
from latentcache.reading.cache import Cache
from latentcache.reading.loader.batch_memory import Recycler
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.loader.prefetch import compute_alone
from tests.tools.synthetic import write_cache

BUCKET = "49x480x720"
BATCH = 8
#: One piece of this work: reads or computes some samples, and returns how many.
Work = Callable[[], int]


def measure(works: dict[str, Work], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Run all in turn, in each round; returns (CPU, wall) seconds per sample of every round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for work in works.values():
        work()  # warm up
    for _ in range(rounds):
        for name, work in works.items():
            cpu, wall = time.process_time(), time.perf_counter()
            num = work()
            spent = ((time.process_time() - cpu) / num, (time.perf_counter() - wall) / num)
            found[name].append(spent)
    return found


def show(title: str, found: dict[str, list[tuple[float, float]]]) -> None:
    """Print the median of each, and of its ratio to the first in the same round."""
    print(f"\n{title}")
    base = next(iter(found.values()))
    for name, rounds in found.items():
        cpu, wall = (statistics.median(r[i] for r in rounds) * 1e6 for i in (0, 1))
        ratio, by_wall = (
            statistics.median(b[i] / r[i] for b, r in zip(base, rounds, strict=True))
            for i in (0, 1)
        )
        print(
            f"  {name:44} {cpu:7.0f} us CPU, {wall:7.0f} us wall a sample; rate against the first: "
            f"{ratio:.2f} by CPU, {by_wall:.2f} by wall"
        )


def make(folder: Path, codec: str, stored: str, samples: int) -> Cache:
    """A cache of random latents."""
    url = str(folder / f"{codec}-{stored}")
    write_cache(
        url, codec=codec, stored=stored, channels=16, buckets={BUCKET: samples}, shard_clips=32
    )
    return open_cache(url)


def stream(cache: Cache, threads: int, **options: object) -> Work:
    """The loader, for one epoch."""
    loader = LatentLoader(cache, batch_size=BATCH, num_threads=threads, **options)  # type: ignore[arg-type]
    return lambda: sum(len(batch["key"]) for batch in loader)


def chunks_of(cache: Cache) -> list[bytes]:
    """The stored bytes of all samples."""
    found = []
    for shard in cache.shards(BUCKET)[0].tolist():
        path = f"latents/{BUCKET}/c/{shard}" + "/0" * len(cache.buckets[BUCKET].shape)
        places = [(c.offset, c.length) for c in cache.rows(BUCKET, shard).chunks]
        found += cache.storage.read_ranges(path, places)
    return found


def flat(path: Path, num: int, size: int) -> Work:
    """Preadv of a flat file into one buffer."""
    buffer = np.empty(size, np.uint8)

    def work() -> int:
        fd = os.open(path, os.O_RDONLY)
        for n in range(num):
            os.preadv(fd, [buffer], n * size)
        os.close(fd)
        return num

    return work


def bare(chunks: list[bytes], size: int, threads: int) -> Work:
    """Only decompression, into batches that are freed."""
    memory = Recycler(1 << 28)

    def batch(some: list[bytes]) -> int:
        out = memory.empty((len(some), size), torch.uint8).numpy()
        for chunk, row in zip(some, out, strict=True):
            numcodecs.blosc.decompress(chunk, row)
        return len(some)

    def work() -> int:
        batches = [chunks[i : i + BATCH] for i in range(0, len(chunks), BATCH)]
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(batch, batches))

    return work


def repeat(call: Callable[[], object], times: int = 16) -> Work:
    """Make as many calls, in one thread, as the threads that read make."""

    def work() -> int:
        with ThreadPoolExecutor(1, initializer=compute_alone, initargs=(2,)) as pool:
            pool.submit(lambda: [call() for _ in range(times)]).result()
        return times

    return work


def bench_files(folder: Path, args: argparse.Namespace) -> None:
    """Uncompressed samples against a flat file."""
    cache = make(folder, "none", "mean", args.samples)
    chunks = chunks_of(cache)
    path = folder / "flat"
    path.write_bytes(b"".join(chunks))
    works: dict[str, Work] = {
        "flat file, preadv into one buffer": flat(path, len(chunks), len(chunks[0]))
    }
    for threads in (1, 2):
        for check in (False, True):
            name = f"loader, {threads} threads, check={check}"
            works[name] = stream(cache, threads, normalise=False, check=check)
    works["loader, 2 threads, check=True, normalised"] = stream(cache, 2)
    show("uncompressed", measure(works, args.rounds))


def bench_compressed(folder: Path, args: argparse.Namespace) -> None:
    """Compressed samples against only decompression, with as many threads."""
    cache = make(folder, "zstd", "mean", args.samples)
    size = int(np.prod(cache.buckets[BUCKET].shape)) * 2
    chunks = chunks_of(cache)
    ratio = sum(map(len, chunks)) / len(chunks) / size
    for threads in (1, 2):
        works: dict[str, Work] = {"only decompression": bare(chunks, size, threads)}
        for check in (False, True):
            works[f"loader, check={check}"] = stream(cache, threads, normalise=False, check=check)
        works["loader, check=True, normalised"] = stream(cache, threads)
        title = f"blosc zstd-5 of {ratio:.2f}, {threads} threads"
        show(title, measure(works, args.rounds))


def bench_moments(folder: Path, args: argparse.Namespace) -> None:
    """Posterior samples, and the steps that make them."""
    cache = make(folder, "zstd", "moments", args.samples // 2)
    works = {
        f"loader, 2 threads, {posterior}": stream(cache, 2, posterior=posterior)
        for posterior in ("mode", "sample")
    }
    show("moments, 4.5 MB a sample", measure(works, args.rounds))


def bench_parts(folder: Path, args: argparse.Namespace) -> None:  # noqa: ARG001
    """Single steps on one sample of 1.1 million elements."""
    noise, mean = torch.empty(16, 13, 60, 90), torch.randn(16, 13, 60, 90).to(torch.bfloat16)
    data = as_bytes = mean.view(torch.uint8).numpy().reshape(-1)
    works = {
        "copy": repeat(lambda: as_bytes.copy()),
        "CRC32C": repeat(lambda: google_crc32c.value(data)),
        "noise": repeat(lambda: posterior.draw_(noise, 1)),
        "exp": repeat(lambda: torch.exp(noise)),
        "normalise": repeat(lambda: noise.copy_(mean).sub_(0.5).mul_(2.0).to(torch.bfloat16)),
    }
    found = measure(works, args.rounds)
    show("parts of one sample", found)
    cpu_s = statistics.median(cpu for cpu, _ in found["noise"])
    print(f"  noise: {cpu_s * 1e9 / noise.numel():.2f} ns an element")


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", help="where to write (a temporary folder)")
    args = parser.parse_args()
    print(f"{machine()}, torch {torch.__version__}, CRC32C in {google_crc32c.implementation}")
    with tempfile.TemporaryDirectory(prefix="latentcache-", dir=args.folder) as folder:
        for bench in (bench_files, bench_compressed, bench_moments, bench_parts):
            bench(Path(folder), args)


if __name__ == "__main__":
    main()
