"""Writing a layout: files that follow from a cache, each whole, those that are there left as they are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

from latentcache.core.json_text import parse_json
from latentcache.errors import CacheError, ConfigError
from latentcache.exchange.clips import named
from latentcache.exchange.files import is_hidden
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage, redact
from latentcache.storage.urls import public_name

#: What a folder is an export of. Hidden, so that no trainer takes it for one of its files.
MARK = ".latentcache-export.json"
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
    """A file of a layout. make: returns its bytes; called by several threads, for different files."""

    path: str
    make: Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class Export:
    """What a cache is in a layout. last: files that say that the others are there.

    stanza: gives the trainer's configuration, for the URL of the folder. finish: a file that says how large
    the others are.
    """

    files: Sequence[File]
    stanza: Callable[[str], str]
    last: Sequence[File] = ()
    file_bytes: int = 0
    notes: Sequence[str] = ()
    finish: Callable[[Storage], File] | None = None


def mark_of(cache: Cache, layout: str, options: Options) -> dict[str, Any]:
    """Return what an export follows from: the same, and so the same files."""
    names = [*([options.text] if options.text else []), *options.fields]
    fields = {name: cache.field(name).snapshot for name in dict.fromkeys(names)}
    return {
        "layout": layout,
        "cache": public_name(cache.storage.absolute_url),
        "fingerprint": cache.manifest.fingerprint,
        "snapshot": cache.snapshot,
        "options": asdict(options),
        **({"fields": fields} if fields else {}),
    }


def claim(out: Storage, mark: dict[str, Any]) -> None:
    """Make a folder that of an export. Raises CacheError if it is another's, or somebody's files."""
    url = redact(out.url)
    if out.is_local and out.local_path().is_file():
        raise ConfigError(f"{url} is a file, and an export is a folder: name another place")
    data = json.dumps(mark, indent=1, sort_keys=True).encode()
    if not out.exists(MARK):
        if found := [*out.list(""), *out.folders("")]:
            raise CacheError(
                f"{url} is not empty, and is no export that was begun before: it holds "
                f"{', '.join(found[:3])}. "
                "Nothing was written. Give an empty folder."
            )
        out.create(MARK, data)
    there = _load(out)
    for name, value in json.loads(data).items():
        if there.get(name) != value:
            raise CacheError(
                f"{url} is an export with another {name} ({_short(there.get(name))}, not {_short(value)}), "
                "whose files would be mixed with these. Nothing was written. Give another folder."
            )


def _load(out: Storage) -> dict[str, Any]:
    try:
        found = parse_json(out.read(MARK))
        return found if isinstance(found, dict) else {}
    except ValueError:
        return {}


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


def missing_files(out: Storage, files: Sequence[File]) -> list[File]:
    """Return the files that are not there yet. A file that is there is whole."""
    there = {file.path for file in out.files()}
    return [file for file in files if file.path not in there]


def write_files(out: Storage, files: Sequence[File], file_bytes: int) -> Iterator[str]:
    """Write files in parallel, each under a temporary name first; yield the path of each that is there.

    Raises what making one raises, and StorageError; those before it are whole.
    """
    fitting = MEMORY_BYTES // max(1, file_bytes * TIMES_IN_MEMORY)
    threads = max(1, min(NUM_THREADS, fitting))

    def write(file: File) -> str:
        out.write(file.path, file.make())
        return file.path

    with ThreadPoolExecutor(threads) as pool:
        waiting: set[Future[str]] = set()
        try:
            for file in files:
                waiting.add(pool.submit(write, file))
                if len(waiting) >= 2 * threads:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            done, waiting = wait(waiting)
            yield from (future.result() for future in done)
        finally:
            for future in waiting:
                future.cancel()


def export(
    cache: Cache, layout: str, what: Export, out: Storage, options: Options
) -> Iterator[int]:
    """Write what is missing of an export; yield how many files are left, first of all of them."""
    _check_names(what.files)
    claim(out, mark_of(cache, layout, options))
    todo = missing_files(out, what.files)
    left = len(todo)
    yield left
    for _ in write_files(out, todo, what.file_bytes):
        left -= 1
        yield left
    last = [*what.last, *([what.finish(out)] if what.finish else [])]
    for file in missing_files(out, last):
        out.write(file.path, file.make())
