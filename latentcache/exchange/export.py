"""Writing a layout: files that follow from a cache, each whole, those that are there left as they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import unicodedata
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

import google_crc32c

from latentcache.core.json_text import parse_json
from latentcache.errors import CacheError, ConfigError, StorageError
from latentcache.exchange.clips import named
from latentcache.exchange.files import is_hidden
from latentcache.exchange.journal import Journal
from latentcache.exchange.mark import MARK, Written, mark_bytes, read_mark, written
from latentcache.exchange.stopping import given_up_at
from latentcache.format.checksum import KEY
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage, redact
from latentcache.storage.urls import public_name

NUM_THREADS = 8
#: Bytes of files that are being made at a time; a file is in memory as tensors and as bytes.
MEMORY_BYTES, TIMES_IN_MEMORY = 1 << 30, 3
#: The longest name of a file on the disks that trainers read from.
MAX_NAME_BYTES = 255


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an export can be told. dtype: of latents; text: a field; seed: of samples and of shuffling."""

    bucket: str | None = None
    dtype: str | None = None
    text: str | None = None
    fields: tuple[str, ...] = ()
    seed: int = 0
    model: str | None = None


@dataclass(frozen=True)
class File:
    """A file of a layout. make: returns its bytes; called by several threads, for different files.

    is_free: its reader may change it, so it is written once, and never checked.
    """

    path: str
    make: Callable[[], bytes]
    is_free: bool = False


@dataclass(frozen=True, kw_only=True)
class Export:
    """What a cache is in a layout. last: files that say that the others are there.

    stanza: gives the trainer's configuration, for the URL of the folder. expect_place: raises ConfigError
    for a folder that this configuration cannot name. finish: a file that says how large the others are.
    """

    files: Sequence[File]
    stanza: Callable[[str], str]
    last: Sequence[File] = ()
    file_bytes: int = 0
    notes: Sequence[str] = ()
    finish: Callable[[Storage], File] | None = None
    expect_place: Callable[[str], None] | None = None


def mark_of(cache: Cache, layout: str, options: Options, files: Sequence[File]) -> dict[str, Any]:
    """Return what an export follows from: the same, and so the same files."""
    paths = "\n".join(file.path for file in files).encode()
    names = [*([options.text] if options.text else []), *options.fields]
    fields = {name: cache.field(name).snapshot for name in dict.fromkeys(names)}
    return {
        "layout": layout,
        "cache": public_name(cache.storage.absolute_url),
        "fingerprint": cache.manifest.fingerprint,
        "snapshot": cache.snapshot,
        "options": asdict(options),
        "names": f"{len(files)} files, CRC32C {google_crc32c.value(paths):08x}",
        **({"fields": fields} if fields else {}),
    }


def claim(out: Storage, mark: dict[str, Any]) -> None:
    """Make a folder that of an export. Raises CacheError if it is another's, or somebody's files."""
    url = redact(out.url)
    if out.is_local and out.local_path().is_file():
        raise ConfigError(f"{url} is a file, and an export is a folder: name another place")
    data = mark_bytes(mark)
    if not out.exists(MARK):
        found = [*out.list(""), *out.folders("")]
        if found and MARK not in found:  # else another run has begun the export at this moment
            raise CacheError(
                f"{url} is not empty, and is no export that was begun before: it holds "
                f"{', '.join(found[:3])}. "
                "Nothing was written. Give an empty folder."
            )
        if out.creates_exclusively(MARK):
            out.create(MARK, data)
        else:  # such as a disk without hard links: nothing here is lost where two begin at once
            out.write(MARK, data)
    try:
        there = read_mark(out)
    except ValueError as error:
        raise CacheError(
            f"{url}/{MARK} is damaged: {error}. So it is not known what this folder is an export of. "
            "Nothing was written. Give another folder."
        ) from None
    for name, value in parse_json(data).items():
        if name != KEY and there.get(name) != value:
            raise CacheError(
                f"{url} is an export with another {name} ({_short(there.get(name))}, not {_short(value)}), "
                f"whose files would be mixed with these.{_WHY.get(name, '')} Nothing was written. Give "
                "another folder."
            )


#: Why a mark may differ although the command is the same.
_WHY = {
    "snapshot": " The cache has grown, or has changed, since that export was begun.",
    "fields": " A field has grown, or has changed, since that export was begun.",
    "names": " It was begun by another version of latentcache.",
}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else f"SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _check_names(files: Sequence[File]) -> None:
    """Raise ConfigError for names that no disk holds or no import reads, before any file is written."""
    long = [
        name
        for file in files
        for name in file.path.split("/")
        if len(os.fsencode(name)) > MAX_NAME_BYTES
    ]
    if long:
        raise ConfigError(
            f"{len(long)} files would have names of more than {MAX_NAME_BYTES} bytes, which no disk holds: "
            f"{named(long)}. Nothing was written. Give their sources shorter names."
        )
    if hidden := [file.path for file in files if is_hidden(file.path)]:
        raise ConfigError(
            f"{len(hidden)} files would be hidden, or in hidden folders, which begin with a dot: "
            f"{named(hidden)}. An import leaves such files out, and some trainers do, too. Nothing was "
            "written. Give their sources names without a dot at the beginning."
        )


def _check_cases(out: Storage, files: Sequence[File]) -> None:
    """Raise ConfigError for files that would replace each other on a disk that knows no upper case."""
    if not (out.is_local and out.exists(MARK.upper())):
        return
    first: dict[str, str] = {}
    for file in files:
        other = first.setdefault(unicodedata.normalize("NFC", file.path).casefold(), file.path)
        if other != file.path:
            raise ConfigError(
                f"{named([other, file.path])} are one file on the disk of {redact(out.url)}, which takes "
                "upper and lower case for the same. No clip was written. Export to another disk, or give "
                "their sources other names."
            )


def write_files(
    out: Storage,
    files: Sequence[File],
    file_bytes: int,
    record: Callable[[str, Written], None],
) -> Generator[None]:
    """Write files in parallel, each as a whole; record the path of each and what it holds, then yield.

    Where it is ended early, what is being written is finished and recorded, and no other file is begun or
    made to its end. Raises what making one raises, and StorageError.
    """
    fitting = MEMORY_BYTES // max(1, file_bytes * TIMES_IN_MEMORY)
    threads = max(1, min(NUM_THREADS, fitting))
    stop = threading.Event()

    def write(file: File) -> tuple[str, Written]:
        with given_up_at(stop):
            data = file.make()
        out.write(file.path, data)
        return file.path, written(data)

    with ThreadPoolExecutor(threads) as pool:
        waiting: set[Future[tuple[str, Written]]] = set()
        try:
            for file in files:
                waiting.add(pool.submit(write, file))
                if len(waiting) >= 2 * threads:
                    yield from _record_some(waiting, record)
            while waiting:
                yield from _record_some(waiting, record)
        finally:
            stop.set()
            _finish(waiting, record)


def _record_some(
    waiting: set[Future[tuple[str, Written]]], record: Callable[[str, Written], None]
) -> Generator[None]:
    """Wait for files, record those that are there, and take them out of those that are waited for."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        record(*future.result())
        waiting.remove(future)
        yield


def _finish(
    waiting: Collection[Future[tuple[str, Written]]], record: Callable[[str, Written], None]
) -> None:
    """Cancel files that are not begun, and record those of the others that are written."""
    begun = [future for future in waiting if not future.cancel()]
    wait(begun)
    for future in begun:
        if future.exception() is None:
            with contextlib.suppress(StorageError):  # what ended the export is raised already
                record(*future.result())


def export(
    cache: Cache, layout: str, what: Export, out: Storage, options: Options
) -> Generator[int]:
    """Write what is missing of an export; yield how many files are left, first of all of them."""
    _check_names(what.files)
    if what.expect_place:
        what.expect_place(redact(out.absolute_url))
    claim(out, mark_of(cache, layout, options, what.files))
    _check_cases(out, what.files)
    with Journal(out) as journal:
        missing = {*journal.missing(file.path for file in what.files)}
        todo = [file for file in what.files if file.path in missing]
        left = len(todo)
        yield left
        with contextlib.closing(write_files(out, todo, what.file_bytes, journal.add)) as recorded:
            for _ in recorded:
                left -= 1
                yield left
        last = [*what.last, *([what.finish(out)] if what.finish else [])]
        for about in last:
            _write_last(out, journal, about)
        checked = [file.path for file in [*what.files, *last] if not file.is_free]
        journal.close(checked)


def _write_last(out: Storage, journal: Journal, file: File) -> None:
    if file.is_free:
        if not out.exists(file.path):
            out.write(file.path, file.make())
        return
    data = file.make()
    facts = written(data, about=True)
    if not journal.has(file.path, facts):
        out.write(file.path, data)
        journal.add(file.path, facts)
