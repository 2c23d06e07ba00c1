"""What was probed, kept in the cache's folder until the plan is there: a plan that was cut off goes on."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.errors import CacheError, StorageError
from latentcache.objects import read_table
from latentcache.run_log import versions
from latentcache.storage import Storage
from latentcache.tables import PROBE_SCHEMA, SOURCE_SCHEMA, to_parquet

log = logging.getLogger(__name__)

FOLDER = "probed"
#: Seconds between two writes.
FLUSH_INTERVAL_S = 30.0
#: What is older is passed over: files may have changed since. Until then their decoding finds that.
MAX_AGE_S = 7 * 86400.0
_FACTS = "latentcache.probed"
_NAME = re.compile(r"[0-9a-f]{12}-\d{6,}\.parquet")
#: One row a source. is_trusted: its shape was the corpus's to say, and only the identity was found.
SCHEMA = pa.schema(
    [
        SOURCE_SCHEMA.field("url"),
        pa.field("is_trusted", pa.bool_(), nullable=False),
        *(SOURCE_SCHEMA.field(name) for name in ("frames", "fps", "height", "width")),
        *(PROBE_SCHEMA.field(name) for name in ("duration_s", "identity")),
    ]
)

Found = Mapping[str, Any]


class SavedProbes:
    """Sources that were probed for a cache which has no plan yet; failures are not kept, but tried again.

    num_found: how many of this attempt's sources an earlier one has probed. Its methods raise
    StorageError where the cache's storage refuses: better now than after the whole corpus.
    """

    def __init__(self, storage: Storage, max_pixels: int) -> None:
        self._storage = storage
        self._conditions = {"max_pixels": max_pixels, **_decoders()}
        self.num_found = 0
        self._attempt = secrets.token_hex(6)
        self._number = 0
        self._rows: list[dict[str, Any]] = []
        self._flushed_at = time.monotonic()

    def add(self, url: str, is_trusted: bool, found: Found) -> None:
        """Keep what was found of a source; it is written with others, now and then."""
        self._rows.append({"url": url, "is_trusted": is_trusted, **found})
        if time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Write what was found since the last time."""
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=SCHEMA)
            facts = {_FACTS: {**self._conditions, "written_s": time.time()}}
            path = f"{FOLDER}/{self._attempt}-{self._number:06d}.parquet"
            self._storage.write(path, to_parquet(table, facts))
            self._number += 1
            self._rows.clear()
        self._flushed_at = time.monotonic()

    def find(self, urls: pa.ChunkedArray) -> Callable[[int, bool], Found | None]:
        """Return a function of (row of `urls`, is_trusted): what earlier attempts found, or None."""
        tables = [table for path in self._paths() if (table := self._read(path)) is not None]
        if not tables:
            return lambda row, is_trusted: None  # noqa: ARG005
        known = pa.concat_tables(tables).combine_chunks()
        value_set = known["url"].cast(pa.large_string()).combine_chunks()
        places = pc.index_in(urls.cast(pa.large_string()), value_set=value_set).to_numpy()
        names = [name for name in SCHEMA.names if name not in ("url", "is_trusted")]

        def look(row: int, is_trusted: bool) -> Found | None:
            if not places[row] >= 0:  # NaN where it is not there
                return None
            found = known.slice(int(places[row]), 1).to_pylist()[0]
            if found["is_trusted"] != is_trusted:
                return None
            self.num_found += 1
            return {name: found[name] for name in names if found[name] is not None}

        return look

    def remove(self) -> None:
        """Remove what all attempts kept: the plan has it now."""
        for path in self._paths():
            try:
                self._storage.delete(path)
            except StorageError as error:
                log.warning("%s is left, and does no harm: %s", path, error)

    def _paths(self) -> list[str]:
        return [f"{FOLDER}/{n}" for n in sorted(self._storage.list(FOLDER)) if _NAME.fullmatch(n)]

    def _read(self, path: str) -> pa.Table | None:
        """Read a table; None where it is damaged, old, or was made under other conditions."""
        try:
            table = read_table(self._storage, path)
            facts = json.loads(table.schema.metadata[_FACTS.encode()])
            age_s = time.time() - facts.pop("written_s")
            if facts != self._conditions or age_s > MAX_AGE_S:
                return None
            return table.select(SCHEMA.names).cast(SCHEMA)
        except (CacheError, FileNotFoundError, KeyError, TypeError, ValueError) as error:
            log.warning("%s is passed over, and its sources are probed again: %s", path, error)
            return None


def is_saved_probe(path: str) -> bool:
    """Tell whether this is the path of a table of what was probed."""
    folder, _, name = path.rpartition("/")
    return folder == FOLDER and _NAME.fullmatch(name) is not None


def _decoders() -> dict[str, str]:
    return {name: found for name, found in versions().items() if name in ("av", "decord")}
