"""Stamps: what is known of a file without reading it, by which a source is told that has not changed."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from latentcache.errors import LatentCacheError, UnreachableError
from latentcache.storage.parts import file_of
from latentcache.storage.source_files import file_facts
from latentcache.storage.urls import refused_scheme

#: Files that are looked at a time: remote ones cost a request each.
NUM_THREADS = 32
#: Files that a thread looks at before it takes others: handing over one by one costs more than looking.
MAX_TOGETHER = 256


def stamp_sources(
    urls: Sequence[str], options: Mapping[str, Any] | None, schemes: Sequence[str] = ()
) -> list[str | None]:
    """Return size and time of change, or ETag, of each source's file; None if they cannot be had.

    schemes: `corpus.schemes`; nothing on other file systems is looked at.

    A source without a stamp is looked at by its content. If their storage does not answer, no more are
    asked for: whoever reads the sources says so.
    """
    (stamps,) = stamp_groups([urls], options, schemes)
    return stamps


def stamp_groups(
    groups: Iterable[Sequence[str]], options: Mapping[str, Any] | None, schemes: Sequence[str] = ()
) -> Iterator[list[str | None]]:
    """Yield what `stamp_sources` returns, for one group of sources after the other."""
    is_down = threading.Event()

    def stamp(url: str) -> str | None:
        if is_down.is_set() or refused_scheme(url, schemes):
            return None
        try:
            facts = file_facts(url, options)
        except UnreachableError:
            is_down.set()
            return None
        except (FileNotFoundError, LatentCacheError):
            return None
        return stamp_from(facts)

    def stamp_all(some: Sequence[str]) -> list[str | None]:
        return list(map(stamp, some))

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for urls in groups:
            files = list(map(file_of, urls))
            distinct = list(dict.fromkeys(files))
            size = min(MAX_TOGETHER, -(-len(distinct) // NUM_THREADS)) or 1
            together = [distinct[start : start + size] for start in range(0, len(distinct), size)]
            found = itertools.chain.from_iterable(pool.map(stamp_all, together))
            stamps = dict(zip(distinct, found, strict=True))
            yield [stamps[file] for file in files]


def stamp_from(facts: Mapping[str, Any]) -> str | None:
    """Return the stamp of a file of which a file system says so much; None if it says too little."""
    changed = next((facts[name] for name in _CHANGED if facts.get(name) is not None), None)
    return None if changed is None else f"{facts.get('size')}:{changed}"


#: What file systems say of a file's content, the strongest first: stores' tags, then times.
_CHANGED = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "blob_id",  # of the Hugging Face Hub
    "mtime_ns",
    "LastModified",
    "mtime",
    "updated",
)
