"""Write what cached clips decode to, beside their sources: clips as mp4, images as PNG."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from latentcache.core.devices import resolve_device
from latentcache.core.records import ClipId
from latentcache.errors import ConfigError
from latentcache.format.snapshot import read_index
from latentcache.inspecting import preview
from latentcache.inspecting.choose import find_places, sample_places
from latentcache.inspecting.clip_reader import Pair, PairReader
from latentcache.reading.cache import Cache, open_cache
from latentcache.redaction import printable

from . import parsers
from .cli import (
    OK,
    is_override,
    made_folder,
    run_job,
    storage_options,
    stored_config,
)

#: Keys that are listed where none was given.
LISTED = 10


def main() -> int:
    """Parse the command line and run."""
    return run_job(run, parsers.preview())


def run(args: argparse.Namespace) -> int:
    """Decode and write; returns the exit status."""
    if args.seed < 0 or (args.sample is not None and args.sample < 1):
        raise ConfigError("--sample is at least 1, and --seed at least 0")
    device = resolve_device(args.device, "--device")
    overrides = [word for word in args.words if is_override(word)]
    keys = [word for word in args.words if not is_override(word)]
    cache = open_cache(args.cache, storage_options(overrides, others=True))
    config = stored_config(cache.manifest, args.cache, overrides, args.allow_encoder)
    places = find_places(cache, keys) + _sampled(cache, args.sample or 0, args.seed)
    places = list(dict.fromkeys(places))
    with PairReader(cache, config, device) as reader:
        if not places:
            return _list_keys(cache, reader)
        pairs = (reader.pair(place, source=args.source) for place in places)
        folder = made_folder(Path(args.output), "Give another one with -o.")
        if args.grid:
            _write_grid(folder, list(map(_told, pairs)))
        else:
            names = preview.file_names([reader.clip(place).key for place in places])
            _write_each(folder, names, map(_told, pairs))
    return OK


def _sampled(cache: Cache, num: int, seed: int) -> list[ClipId]:
    return sample_places(cache, read_index(cache.storage), num, seed) if num else []


def _list_keys(cache: Cache, reader: PairReader) -> int:
    print(f"{len(cache)} clips are ok. Name some, or add --sample N. Some keys:")
    for place in _sampled(cache, LISTED, seed=0):
        print(f"  {printable(reader.clip(place).key)}")
    return OK


def _told(pair: Pair) -> Pair:
    """Say how close a pair is, or why it cannot be told."""
    if pair.quality is not None:
        ssim = pair.quality.mean_ssim
        more = "" if ssim is None else f", SSIM {ssim:.4f}"
        print(f"{printable(pair.clip.key)}: PSNR {pair.quality.psnr_db:.1f} dB{more}", flush=True)
    elif pair.problem:
        print(
            f"{printable(pair.clip.key)}: decoded without its source: {pair.problem}",
            file=sys.stderr,
        )
    return pair


def _write_each(folder: Path, names: Sequence[str], pairs: Iterable[Pair]) -> None:
    for name, pair in zip(names, pairs, strict=True):
        frames = preview.frames_of(pair)
        if pair.clip.frames == 1:
            path = folder / f"{name}.png"
            preview.write_png(path, next(frames))
        else:
            path = folder / f"{name}.mp4"
            preview.write_mp4(path, frames, pair.fps)
        print(f"wrote    {path}")


def _write_grid(folder: Path, pairs: Sequence[Pair]) -> None:
    frames, fps = preview.tiled([(preview.cell_of(pair), pair.fps) for pair in pairs])
    if all(pair.clip.frames == 1 for pair in pairs):
        path = folder / "grid.png"
        preview.write_png(path, next(itertools.islice(frames, 1)))
    else:
        path = folder / "grid.mp4"
        preview.write_mp4(path, frames, fps)
    print(f"wrote    {path}")


if __name__ == "__main__":
    sys.exit(main())
