"""A stream of latents and states of texts, beside one of only the latents.

`python benchmarks/field_stream.py [--clips 64] [--words 100] [--rounds 7] [--threads 2] [--folder FOLDER]`

The sizes are Wan's: latents of 81x480x832 (16x21x60x104) and states of umT5 (512x4096), either 4.19 MB of
bfloat16, of which a text's own tokens are stored. Both are normal noise, in zstd, read from page cache.
Epochs of either stream alternate. The rates are compared with the bytes of a sample, as they are stored and
as a batch has them, padding included. 1.00 means that a byte of text takes as long as a byte of latents.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the jobs set it; see jobs/__init__.py

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import machine
from benchmarks.overhead import alternate
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.fields import add, cache_of

CLIP, STATES, BATCH = (81, 480, 832), (512, 4096), 8
FAMILY = "tests.tools.encoders.noise_text"


def make(folder: Path, num_clips: int, num_words: int) -> str:
    """A cache of clips with captions of so many words, and their states as the field `text`."""
    captions = [f"{n} " + "word " * (num_words - 1) for n in range(num_clips)]
    cache = cache_of(folder, captions, clip=CLIP, shard_clips=16)
    length, width = STATES
    add(cache, text={"kind": "text", "family": FAMILY, "length": length, "width": width})
    return cache.storage.url


def stored_bytes(folder: Path) -> int:
    """The bytes of all objects in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def epoch_of(loader: LatentLoader) -> Callable[[], float]:
    """Return what reads an epoch, and returns its seconds."""

    def read() -> float:
        started = time.perf_counter()
        num = sum(len(batch["key"]) for batch in loader)
        assert num == len(loader.cache)
        return time.perf_counter() - started

    return read


def given_bytes(loader: LatentLoader) -> float:
    """The bytes of a sample's tensors in a batch."""
    batch = next(iter(loader))
    tensors = [value for value in batch.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.nbytes for tensor in tensors) / len(batch["key"])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--words", type=int, default=100, help="of a caption, a token each")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each stream, in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where to write (a temporary folder)")
    args = parser.parse_args()
    print(f"{machine()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory(prefix="latentcache-", dir=args.folder) as name:
        url = make(Path(name), args.clips, args.words)
        options = {"batch_size": BATCH, "num_threads": args.threads}
        alone = LatentLoader(url, **options)
        both = LatentLoader(url, fields=["text"], **options)
        num = len(alone.cache)
        seconds = alternate(epoch_of(both), epoch_of(alone), args.rounds)
        latents = stored_bytes(Path(url, "latents")) / num
        stored = latents, latents + stored_bytes(Path(url, "fields")) / num
        given = given_bytes(alone), given_bytes(both)
    for n, what in enumerate(("latents", "latents and text")):
        rate, sizes = num / seconds[1 - n], (stored[n] / 1e6, given[n] / 1e6)
        print(f"{what}: {rate:.0f} samples/s of {sizes[0]:.2f} MB stored, {sizes[1]:.2f} MB given")
    of_stored, of_given = (of[1] / of[0] / seconds[2] for of in (stored, given))
    print(
        f"the rate with text, beside the rate without times the ratio of bytes: {of_stored:.2f} of those "
        f"that are stored, {of_given:.2f} of those that are given (median of {args.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
