"""What a view of a long clip costs where its latents are stored in chunks of frames, and where not.

`python benchmarks/views.py [--rounds N] [--folder FOLDER]`

Clips of a minute (1,441 frames of 480x832: 361 latent frames of 16x60x104, bfloat16), zstd, read from the
page cache by `LatentLoader(view=Window(5))`: 5 latent frames of each, from anywhere, which are 20 of its
frames; then 20 latent frames. Both caches hold the same latents, are read in turn in one process, and give
the same batches. The clock runs from an epoch's first batch to its last.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.views.window import Window
from tests.tools.synthetic import write_cache

BUCKET, NUM_CLIPS, CHANNELS = "1441x480x832", 12, 16
CHUNKS = {"whole clips": None, "chunks of 4 frames": 4}
FRAMES = (5, 20)


def read(loader: LatentLoader, epoch: int) -> tuple[float, list[torch.Tensor]]:
    """Return clips per second of an epoch after its first, and its latents."""
    loader.set_epoch(epoch)
    batches = iter(loader)
    latents = [next(batches)["latents"].clone()]
    started = time.perf_counter()
    latents += [batch["latents"].clone() for batch in batches]
    return (NUM_CLIPS - 1) / (time.perf_counter() - started), latents


def compare(urls: dict[str, str], frames: int, rounds: int) -> None:
    """Read both caches in turn, and print a line for each."""
    view = Window(frames, middle=True)
    loaders = {name: LatentLoader(url, batch_size=1, view=view) for name, url in urls.items()}
    rates: dict[str, list[float]] = {name: [] for name in urls}
    for epoch in range(rounds + 1):
        found = {name: read(loader, epoch) for name, loader in loaders.items()}
        whole, chunked = (latents for _, latents in found.values())
        if not all(map(torch.equal, whole, chunked)):
            raise SystemExit("the two caches gave different batches")
        for name, (rate, _) in found.items():
            rates[name] += [rate] if epoch else []  # the first one warms up
    ratio = statistics.median(b / a for a, b in zip(*rates.values(), strict=True))
    said = ", ".join(f"{name} {statistics.median(r):.1f} samples/s" for name, r in rates.items())
    print(f"{frames:>2} of 361 latent frames: {said}: {ratio:.1f} x (median of {rounds} rounds)")


def main() -> None:
    """Write the caches, and read them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    print(f"{machine()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        urls = {name: str(Path(folder, name.replace(" ", "_"))) for name in CHUNKS}
        for name, url in urls.items():
            buckets, chunk_frames = {BUCKET: NUM_CLIPS}, CHUNKS[name]
            write_cache(url, buckets=buckets, channels=CHANNELS, chunk_frames=chunk_frames)
        for frames in FRAMES:
            compare(urls, frames, args.rounds)


if __name__ == "__main__":
    main()
