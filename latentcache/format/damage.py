"""What is said of a damaged object of a cache: what is wrong with it, and what repairs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from latentcache.errors import CorruptionError
from latentcache.format.paths import CACHE_JSON, INDEX, QUANTISER, is_planned
from latentcache.storage.folder import Storage
from latentcache.storage.urls import join, redact

T = TypeVar("T")

#: What else an object that is gone can mean to a reader, who may hold an earlier snapshot.
CLEANED = (
    "If `latentcache clean` has removed it since its clips were retired, open the newest snapshot"
)


def damaged(
    storage: Storage, path: str, what: str, *, may_be_cleaned: bool = False
) -> CorruptionError:
    """Return the error for an object of the cache that is not as it was written.

    may_be_cleaned: it is gone, and a reader may hold an earlier snapshot, so that this is no damage.
    """
    fix = advice(redact(storage.url), path)
    if may_be_cleaned:
        fix = f"{CLEANED}. Else {fix[0].lower()}{fix[1:]}"
    return CorruptionError(f"{redact(join(storage.url, path))} {what}. {fix}")


def advice(url: str, path: str) -> str:
    """Return what repairs an object of the cache at `url`, in one sentence."""
    if path == CACHE_JSON:
        return (
            "Restore it from a copy. Without one, move it and index.parquet away, run `latentcache "
            "precompute CONFIG.yaml` with the same configuration, corpus and model, stop it, and see "
            f"what fits: `latentcache verify {url}`."
        )
    if path == INDEX:
        return (
            "It holds nothing that the sample tables do not: run `latentcache resume "
            f"{url}` or `latentcache verify {url} --repair` to write it again."
        )
    if path == QUANTISER:
        return (
            "Remove it if it is there, and run `latentcache precompute CONFIG.yaml` with the cache's "
            "configuration and model, which writes it again; or restore it from a copy."
        )
    if path.endswith("zarr.json"):
        return (
            "It follows from what is planned: run `latentcache precompute CONFIG.yaml` with the cache's "
            "configuration and corpus, which writes it again."
        )
    if is_planned(path):
        return (
            "It was written when the cache was planned, and nothing else holds what it says: restore it "
            "from a copy. Shards that are committed can be read without it if it is a plan."
        )
    return (
        f"Plan its clips again: `latentcache verify {url} --repair`, then encode them: `latentcache "
        f"resume {url}`."
    )


def read_twice(read: Callable[[], T]) -> T:
    """Return what `read` does; what is damaged is read once more, for the connection may have been cut.

    Raises CorruptionError where it is damaged again.
    """
    try:
        return read()
    except CorruptionError:
        return read()
