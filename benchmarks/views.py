"""What a view of a long clip costs where its latents are stored in chunks of frames, and where not.

`python benchmarks/views.py [--rounds N] [--folder FOLDER]`

Clips of a minute (1,441 frames of 480x832: 361 latent frames of 16x60x104, bfloat16), zstd, read from the
page cache by `LatentLoader(view=Window(20))`: 20 latent frames of each, from anywhere. Both caches hold the
same latents, are read in turn in one process, and give the same batches.
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

BUCKET, NUM_CLIPS, CHANNELS = "1441x480x832", 24, 16
CHUNKS = {"whole clips": None, "chunks of 4 frames": 4}
FRAMES = 20


def read(loader: LatentLoader, epoch: int) -> tuple[float, list[torch.Tensor]]:
    """Return clips per second of an epoch, and its latents."""
    loader.set_epoch(epoch)
    started = time.perf_counter()
    latents = [batch["latents"].clone() for batch in loader]
    return NUM_CLIPS / (time.perf_counter() - started), latents


def main() -> None:
    """Write the caches and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    print(f"{machine()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        view = Window(FRAMES, middle=True)
        loaders = {}
        for name, chunk_frames in CHUNKS.items():
            url = str(Path(folder, name.replace(" ", "_")))
            buckets = {BUCKET: NUM_CLIPS}
            write_cache(url, buckets=buckets, channels=CHANNELS, chunk_frames=chunk_frames)
            loaders[name] = LatentLoader(url, batch_size=1, view=view)
            read(loaders[name], 0)
        rates: dict[str, list[float]] = {name: [] for name in CHUNKS}
        for epoch in range(1, args.rounds + 1):
            found = {name: read(loader, epoch) for name, loader in loaders.items()}
            whole, chunked = (latents for _, latents in found.values())
            if not all(map(torch.equal, whole, chunked)):
                raise SystemExit("the two caches gave different batches")
            for name, (rate, _) in found.items():
                rates[name].append(rate)
    for name, of_name in rates.items():
        print(f"{name:20}{statistics.median(of_name):>9.1f} samples/s")
    ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
    print(f"{'ratio':20}{statistics.median(ratios):>9.1f} (median of {args.rounds} rounds)")


if __name__ == "__main__":
    main()
