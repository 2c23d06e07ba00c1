"""A cache's own objects, read within bounds; where one is damaged, the error says what mends it."""

from __future__ import annotations

import os

import pyarrow as pa

from latentcache.errors import CorruptionError
from latentcache.format.tables import CACHE_JSON, INDEX, REJECTED, from_parquet, samples_folder
from latentcache.storage.folder import Storage
from latentcache.storage.urls import join, redact

#: Of an object: the plan of 10 million clips takes 0.5 GB, the sample table of 64 clips 10 kB and their
#: captions, and the snapshot of a million shards 10 MB.
MAX_PLAN_BYTES = 1 << 31
MAX_TABLE_BYTES = 1 << 28
#: A plan may take this part of the machine's memory, however small its file is.
PART_FOR_A_PLAN = 4


def read_bounded(storage: Storage, path: str, max_bytes: int = MAX_PLAN_BYTES) -> bytes:
    """Read an object that is no larger than `max_bytes`.

    Raises FileNotFoundError, and CorruptionError where it is larger.
    """
    data = storage.read_ranges(path, [(0, max_bytes + 1)])[0]
    if len(data) > max_bytes:
        raise damaged(storage, path, f"has more than {max_bytes} bytes, and no such object has")
    return data


def read_table(storage: Storage, path: str, columns: list[str] | None = None) -> pa.Table:
    """Read a table of the cache, or some of its columns.

    Raises FileNotFoundError, and CorruptionError where it cannot be read.
    """
    return read_sized_table(storage, path, columns)[0]


def read_sized_table(
    storage: Storage, path: str, columns: list[str] | None = None
) -> tuple[pa.Table, int]:
    """Read a table as `read_table` does; returns the bytes of its file, too."""
    most, max_memory = MAX_TABLE_BYTES, 0
    if is_planned(path):
        most, max_memory = MAX_PLAN_BYTES, _memory_bytes() // PART_FOR_A_PLAN
    data = read_bounded(storage, path, most)
    try:
        return from_parquet(data, columns, max_memory), len(data)
    except ValueError as error:
        raise damaged(storage, path, f"cannot be read ({error})") from error


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def damaged(storage: Storage, path: str, what: str) -> CorruptionError:
    """Return the error for an object of the cache that is not as it was written."""
    url = redact(storage.url)
    return CorruptionError(f"{redact(join(storage.url, path))} {what}. {advice(url, path)}")


def advice(url: str, path: str) -> str:
    """Return what mends an object of the cache at `url`, in one sentence."""
    if path == CACHE_JSON:
        return (
            "Restore it from a copy. Without one, move it and index.parquet away, run `latentcache "
            "precompute CONFIG.yaml` with the same configuration, corpus and model, stop it, and see "
            f"what fits: `latentcache verify {url}`."
        )
    if path == INDEX:
        return (
            "It holds nothing that the sample tables do not: run `latentcache resume "
            f"{url}` to write it anew."
        )
    if is_planned(path):
        return (
            "It was written when the cache was planned: run `latentcache precompute CONFIG.yaml` with "
            "the cache's configuration and corpus, which writes the same again, or restore it."
        )
    return (
        f"Encode its shard again: `latentcache verify {url} --repair`, then `latentcache resume "
        f"{url}`."
    )


def is_planned(path: str) -> bool:
    """Tell whether an object is written by the plan, and not by a shard's commit."""
    folders = ("plan/", f"{samples_folder(REJECTED)}/")
    return path.startswith(folders) or path == CACHE_JSON or path.endswith("zarr.json")
