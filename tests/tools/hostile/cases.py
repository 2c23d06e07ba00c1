"""What the cases have in common: two tables that they enter themselves in, and a sound cache to spoil."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentcache.format import checksum
from latentcache.format.paths import generation_path, sample_path
from latentcache.reading.cache import open_cache
from tests.tools.synthetic import Synthetic, write_cache

BUCKET = "5x32x32"
PLAN = generation_path(1)
SAMPLES = sample_path(BUCKET, 0)

Case = Callable[[Path], None]
#: Each writes one cache into a folder.
CASES: dict[str, Case] = {}
#: Each writes many, and reads them.
RANDOM: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def random(function: Case) -> Case:
    RANDOM[function.__name__] = function
    return function


def sound(folder: Path, format: str = "zarr", **options: Any) -> Synthetic:  # noqa: A002
    return write_cache(str(folder), format=format, buckets={BUCKET: 8}, **options)


def read_all(folder: Path) -> int:
    """Read a cache in every way that a trainer does; returns the number of samples."""
    from latentcache.reading.loader.loader import LatentLoader

    cache = open_cache(str(folder))
    cache.table()
    for n in range(len(cache)):
        cache[n]
    for _ in LatentLoader(cache, batch_size=2, num_threads=1):
        pass
    return len(cache)


def shard_path(written: Synthetic) -> str:
    from latentcache.format.shards import get_format

    layout = written.manifest.layouts()[BUCKET]
    return get_format(written.manifest.format).path(layout, 0)


def reseal(data: bytes) -> bytes:
    """Return a changed file with a CRC32C that fits, as somebody who means harm would."""
    mark = checksum.KEY.encode() + b"\x18\x08"
    place = data.rfind(mark) + len(mark)
    try:
        return checksum.seal(data[:place] + checksum.EMPTY.encode() + data[place + 8 :])
    except ValueError:  # the place itself was changed
        return data
