"""Probe results kept in the cache's folder until there is a plan: planning that was cut off continues."""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.core.json_text import OTHER_SHAPE, parse_json
from latentcache.core.machine import versions
from latentcache.errors import CacheError, StorageError
from latentcache.format.schemas import PROBE_SCHEMA, SOURCE_SCHEMA
from latentcache.format.tables import read_table, to_parquet
from latentcache.storage.folder import Storage

log = logging.getLogger(__name__)

FOLDER = "probed"
#: Seconds between two writes.
FLUSH_INTERVAL_S = 30.0
#: Older tables are skipped: files may have changed since.
MAX_AGE_S = 7 * 86400.0
#: Sources that wait for a write, at most.
MAX_WAITING = 1 << 16
#: Those of them that are Python's objects, each of which takes 1 kB.
CHUNK_ROWS = 1 << 12
#: URLs that become Python objects at a time.
DIGESTED_ROWS = 1 << 16
_FACTS = "latentcache.probed"
_NAME = re.compile(r"[0-9a-f]{12}-\d{6,}\.parquet")
#: One row per source, known by the digest of its URL, which may hold a secret, and its stamp. is_trusted:
#: its shape was the corpus's to say, and only the identity was found.
SCHEMA = pa.schema(
    [
        pa.field("file_digest", pa.string(), nullable=False),
        SOURCE_SCHEMA.field("kind"),
        pa.field("is_trusted", pa.bool_(), nullable=False),
        *(SOURCE_SCHEMA.field(name) for name in ("frames", "fps", "height", "width")),
        *(PROBE_SCHEMA.field(name) for name in ("duration_s", "identity", "times_s")),
    ]
)

Found = Mapping[str, Any]
_FOUND = [name for name in SCHEMA.names if name not in ("file_digest", "kind", "is_trusted")]


class SavedProbes:
    """Sources that were probed for a cache without a plan; failures are not kept but tried again.

    by_time: nobody counts frames, and their numbers may be those that files declare.
    num_found: how many of this attempt's sources an earlier attempt probed. Its methods raise
    StorageError if the cache's storage refuses: better now than after the whole corpus.
    """

    def __init__(self, storage: Storage, max_pixels: int, *, by_time: bool = False) -> None:
        self._storage = storage
        self._conditions = {"max_pixels": max_pixels, "by_time": by_time, **_decoders()}
        self.num_found = 0
        self._attempt = secrets.token_hex(6)
        self._number = 0
        self._tables: list[pa.Table] = []
        self._rows: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()

    def add(self, file: str, kind: str, is_trusted: bool, found: Found) -> None:
        """Keep what was found of a source; it is written with others. file: see `files_of`."""
        self._rows.append(
            {"file_digest": _digest(file), "kind": kind, "is_trusted": is_trusted, **found}
        )
        if len(self._rows) >= CHUNK_ROWS:
            self._close_chunk()
        late = time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S
        if late or len(self._tables) * CHUNK_ROWS >= MAX_WAITING:
            self.flush()

    def _close_chunk(self) -> None:
        if self._rows:
            self._tables.append(pa.Table.from_pylist(self._rows, schema=SCHEMA))
            self._rows.clear()

    def flush(self) -> None:
        """Write what was found since the last write."""
        self._close_chunk()
        if self._tables:
            table = pa.concat_tables(self._tables)
            facts = {_FACTS: {**self._conditions, "written_s": time.time()}}
            path = f"{FOLDER}/{self._attempt}-{self._number:06d}.parquet"
            self._storage.write(path, to_parquet(table, facts))
            self._number += 1
            self._tables.clear()
        self._flushed_at = time.monotonic()

    def find(self, sources: pa.Table) -> Known | None:
        """Return what earlier attempts found of sources whose files are as they were; None if nothing."""
        tables = [
            table for path in saved_tables(self._storage) if (table := self._read(path)) is not None
        ]
        return Known(pa.concat_tables(tables).combine_chunks(), sources) if tables else None

    def remove(self) -> None:
        """Remove what all attempts kept, because the plan now has it."""
        for path in saved_tables(self._storage):
            try:
                self._storage.delete(path)
            except StorageError as error:
                log.warning("%s could not be removed, and does no harm: %s", path, error)

    def _read(self, path: str) -> pa.Table | None:
        """Read a table; None if it is damaged, old, or made under other conditions."""
        try:
            table = read_table(self._storage, path)
            facts = parse_json(table.schema.metadata[_FACTS.encode()])
            age_s = time.time() - facts.pop("written_s")
            if facts != self._conditions or age_s > MAX_AGE_S:
                return None
            return table.select(SCHEMA.names).cast(SCHEMA)
        except (CacheError, FileNotFoundError, *OTHER_SHAPE) as error:
            log.warning("%s is skipped, and its sources are probed again: %s", path, error)
            return None


class Known:
    """What was found of sources, by row in the corpus. A source of another kind is another source."""

    def __init__(self, found: pa.Table, sources: pa.Table) -> None:
        self._urls, self._found = sources["url"], found
        batches = pa.table({"file": files_of(sources)}).to_batches(max_chunksize=DIGESTED_ROWS)
        digests = (_digest(file) for batch in batches for file in batch["file"].to_pylist())
        wanted = pa.array(digests, pa.large_string())
        self._places: dict[tuple[str, bool], npt.NDArray[np.int64]] = {}
        for kind, trusted in itertools.product(("video", "image"), (False, True)):
            mask = pc.and_(pc.equal(found["kind"], kind), pc.equal(found["is_trusted"], trusted))
            rows = np.flatnonzero(mask.to_numpy())
            value_set = found["file_digest"].cast(pa.large_string()).filter(mask).combine_chunks()
            at = pc.fill_null(pc.index_in(wanted, value_set=value_set), -1).to_numpy()
            if len(rows):
                self._places[kind, trusted] = np.where(at < 0, -1, rows[at])

    def look(self, row: int, kind: str, is_trusted: bool) -> Found | None:
        """Return what was found about the source in a row, or None."""
        places = self._places.get((kind, is_trusted))
        if places is None or places[row] < 0:
            return None
        facts = self._facts(int(places[row]))
        return {name: facts[name] for name in _FOUND if facts[name] is not None}

    def sample(self, number: int) -> list[tuple[str, str, str]]:
        """Return URL, kind and identity of some sources that were found, spread over the corpus."""
        found = [
            (int(row), int(places[row]))
            for places in self._places.values()
            for row in np.flatnonzero(places >= 0)[
                :: max(1, np.count_nonzero(places >= 0) // number)
            ]
        ]
        facts = [(self._urls[row].as_py(), self._facts(place)) for row, place in found]
        return [(url, fact["kind"], fact["identity"]) for url, fact in facts]

    def _facts(self, place: int) -> dict[str, Any]:
        return self._found.slice(place, 1).to_pylist()[0]  # type: ignore[no-any-return]


def files_of(sources: pa.Table) -> pa.ChunkedArray:
    """Return what the file of each source is told by: its URL, and its stamp if it was looked at."""
    if "stamp" not in sources.column_names:
        return sources["url"]
    return pc.binary_join_element_wise(sources["url"], pc.fill_null(sources["stamp"], ""), "\n")


def saved_tables(storage: Storage) -> list[str]:
    """Return the paths of the probe results of a cache without a plan."""
    return [f"{FOLDER}/{name}" for name in sorted(storage.list(FOLDER)) if _NAME.fullmatch(name)]


def is_saved_probe(path: str) -> bool:
    """Tell whether this is the path of a table of probe results."""
    folder, _, name = path.rpartition("/")
    return folder == FOLDER and _NAME.fullmatch(name) is not None


def _digest(file: str) -> str:
    return hashlib.blake2b(file.encode(), digest_size=16).hexdigest()


def _decoders() -> dict[str, str]:
    return {name: found for name, found in versions().items() if name in ("av", "decord")}
