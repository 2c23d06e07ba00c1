"""Stamps of a layout's files, by which an import that goes on sees that one of them is another now."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from latentcache.corpus.stamps import NUM_THREADS, stamp_from
from latentcache.errors import CorpusError
from latentcache.exchange.records import Found, Record
from latentcache.storage.folder import Storage, join, redact


def stamps_in(source: Storage, paths: Sequence[str]) -> dict[str, str]:
    """Return the stamp of each file that is there, by path.

    To be taken before the files are read: one that is replaced meanwhile then differs from its stamp.
    """
    if source.is_local:
        found = [stamp_of(source, path) for path in paths]
    else:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            found = list(pool.map(partial(stamp_of, source), paths))
    pairs = zip(paths, found, strict=True)
    return {path: stamp for path, stamp in pairs if stamp is not None}


def stamp_of(source: Storage, path: str) -> str | None:
    """Return size and time of change of a file, or its tag, without a colon; None if it is not there.

    Of a file system that says no more than the size, it is that. Raises CorpusError, StorageError.
    """
    if source.is_local:
        return _local_stamp(source, path)
    facts = source.facts(path)
    if facts is None:
        return None
    return (stamp_from(facts) or f"{facts.get('size')}").replace(":", "-")


def _local_stamp(source: Storage, path: str) -> str | None:
    try:
        facts = source.local_path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        url = redact(join(source.url, path))
        raise CorpusError(
            f"cannot look at {url}: {error.strerror}. Nothing was imported."
        ) from None
    return f"{facts.st_size}-{facts.st_mtime_ns}"


def stamped(found: Found, stamps: Mapping[str, str]) -> Found:
    """Return what a layout holds, with the stamps of its files. Clips of files that have none came late."""
    records = [
        dataclasses.replace(record, stamp=stamp)
        for record in found.records
        if (stamp := _joined([stamps.get(path) for path in _paths(found, record)])) is not None
    ]
    num_late = len(found.records) - len(records)
    return dataclasses.replace(found, records=records, num_late=num_late)


def has_changed(source: Storage, found: Found, record: Record) -> bool:
    """Tell whether a clip's file, or one beside it that must stay the same, has another stamp now."""
    return _joined([stamp_of(source, path) for path in _paths(found, record)]) != record.stamp


def _paths(found: Found, record: Record) -> tuple[str, ...]:
    return (record.path, *record.beside, *found.beside)


def _joined(stamps: Sequence[str | None]) -> str | None:
    return None if None in stamps else "+".join(map(str, stamps))
