"""Probing: finds the frames, duration, size and identity of sources, in parallel, in killable processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import pyarrow as pa

from latentcache.corpus.claims import implausible
from latentcache.corpus.saved_probes import (
    FLUSH_INTERVAL_S,
    Found,
    Known,
    SavedProbes,
    files_of,
)
from latentcache.decoders.rates import nominal_rate
from latentcache.errors import ClipError, StorageError
from latentcache.format.per_frame import PER_FRAME
from latentcache.format.schemas import PROBE_SCHEMA, SOURCE_SCHEMA
from latentcache.storage.spill import Spill

Row = dict[str, Any]
Probed = Future[dict[str, Any]] | Found

#: What a table of sources must already say so that the files' headers need not be read.
TRUSTED = {"video": ("frames", "fps", "height", "width"), "image": ("height", "width")}
#: Rows that become Python objects together.
READ_ROWS = 1024
#: Files of each kind that are checked again before an earlier attempt's results are used.
CHECKED = 64
#: Sources whose facts become Arrow arrays together.
CHUNK_ROWS = 1 << 13


def probe_sources(
    sources: pa.Table,
    pool: Prober,
    on_probed: Callable[[], object] = lambda: None,
    saved: SavedProbes | None = None,
) -> pa.Table:
    """Return `sources` with missing facts filled in and the columns of PROBE_SCHEMA added.

    A source whose bytes cannot be used gets a reason and a message; nothing raises for it. saved: what
    earlier attempts found, and where to keep what this one finds. Raises SourceError and MachineError
    where something else fails: a plan must not lose sources for that.
    """
    columns, asked = _Columns(), _Asked(saved)
    known = saved.find(sources) if saved else None
    times = PER_FRAME in sources.column_names
    if known and not _hold(known, pool):
        known = None
    try:
        for number, row in enumerate(_rows(sources)):
            trusted = is_trusted(row)
            found = known.look(number, row["kind"], trusted) if known else None
            if found and times and _lacks_times(row, found):
                found = None
            if saved and found:
                saved.num_found += 1
            options = {"identity_only": trusted, "times": times}
            probed = found or pool.probe(row["url"], row["kind"], **options)
            asked.add(_Source(row, probed, trusted))
            if len(asked) > pool.window:
                columns.add(asked.take())
                on_probed()
        while asked:
            columns.add(asked.take())
            on_probed()
    except BaseException:
        with suppress(StorageError):  # of two errors the first one says what is wrong
            asked.save()
        raise
    return columns.put_into(sources)


def _lacks_times(row: Row, found: Found) -> bool:
    """Tell whether an attempt without columns per frame has probed a video that they are for."""
    return row["kind"] == "video" and not is_trusted(row) and "times_s" not in found


@dataclass(slots=True)
class _Source:
    """A source that was asked for. is_trusted: see there; is_saved: it is with `SavedProbes`."""

    row: Row
    found: Probed
    is_trusted: bool
    is_saved: bool = False


class _Asked:
    """Sources that were asked for, in order. One that takes long keeps none behind it from being saved."""

    def __init__(self, saved: SavedProbes | None) -> None:
        self._sources: deque[_Source] = deque()
        self._saved = saved

    def __len__(self) -> int:
        return len(self._sources)

    def add(self, source: _Source) -> None:
        """Ask for one more source."""
        self._sources.append(source)

    def take(self) -> Found:
        """Wait for the first source; return its facts. Raises what `Prober.probe` does but ClipError."""
        first = self._sources[0]
        while not _is_done(first.found):
            self.save()
        facts = _facts(first)
        self._keep(first)
        self._sources.popleft()
        return facts

    def save(self) -> None:
        """Write what was found since the last write, in whatever order it came. Raises StorageError."""
        self._keep_all()
        if self._saved:
            self._saved.flush()

    def _keep_all(self) -> None:
        for source in self._sources:
            self._keep(source)

    def _keep(self, source: _Source) -> None:
        """Keep what a probe has found; failures are not kept but tried again."""
        future, row = source.found, source.row
        if self._saved is None or source.is_saved or not isinstance(future, Future):
            return
        if future.done() and not future.cancelled() and future.exception() is None:
            source.is_saved = True
            self._saved.add(row["file"], row["kind"], source.is_trusted, future.result())


def _is_done(found: Probed) -> bool:
    """Wait for a while; tell whether it was long enough."""
    if not isinstance(found, Future) or found.done():  # to wait costs more than most of the rest
        return True
    return bool(wait([found], FLUSH_INTERVAL_S).done)


def _hold(known: Known, pool: Prober) -> bool:
    """Tell, by checking some, whether files are still those that an earlier attempt probed."""
    looked_at = [
        (pool.probe(url, kind, identity_only=True), identity)
        for url, kind, identity in known.sample(CHECKED)
    ]
    try:
        return all(future.result()["identity"] == identity for future, identity in looked_at)
    except ClipError:
        return False


def _rows(sources: pa.Table) -> Iterator[Row]:
    names = [name for name in (*SOURCE_SCHEMA.names, "stamp") if name in sources.column_names]
    for batch in sources.select(names).to_batches(max_chunksize=READ_ROWS):
        some = pa.Table.from_batches([batch])
        yield from some.append_column("file", files_of(some)).to_pylist()


def is_trusted(row: Mapping[str, Any]) -> bool:
    """Tell whether the corpus itself says everything about a source's shape."""
    return all(row[name] is not None for name in TRUSTED[row["kind"]])


def _facts(source: _Source) -> Found:
    """Return what is known about a source: what its table says, or else what was found."""
    row, found = source.row, source.found
    if isinstance(found, Future):
        try:
            found = found.result()
        except ClipError as error:
            found = {"reason": error.reason, "message": str(error)}
    facts = {**found, **_claimed(row)}
    if row["kind"] == "image":
        facts["frames"] = 1
        facts["duration_s"] = 0.0
    elif source.is_trusted:
        facts["duration_s"] = row["frames"] / row["fps"]
    if row["kind"] == "video" and row["frames"] is not None and "reason" not in facts:
        facts |= implausible(facts)
    return facts


def _claimed(row: Row) -> Found:
    """Return what a table says of a source: of its rate the digits are few."""
    claimed = {name: row[name] for name in TRUSTED["video"] if row[name] is not None}
    return claimed | ({"fps": nominal_rate(row["fps"])} if row["fps"] is not None else {})


class Prober(Protocol):
    """Looks at sources: decoding processes at files, `corpus.cached` at clips of a cache."""

    @property
    def window(self) -> int:
        """Sources that are worth asking for at once; it may change. More would only hold memory."""
        ...

    def probe(
        self, url: str, kind: str, *, identity_only: bool = False, times: bool = False
    ) -> Future[dict[str, Any]]:
        """Find what `DecodePool.probe` finds."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class _Columns:
    """The facts about sources, by column: Arrow's arrays take a tenth of the memory of Python's objects."""

    TYPES: ClassVar = {
        **{name: SOURCE_SCHEMA.field(name).type for name in TRUSTED["video"]},
        **{field.name: field.type for field in PROBE_SCHEMA},
    }

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._rows: list[Found] = []
        self._spill = Spill()

    def add(self, facts: Found) -> None:
        self._rows.append(facts)
        if len(self._rows) >= CHUNK_ROWS:
            self._close_chunk()

    def _close_chunk(self) -> None:
        schema = pa.schema(self.TYPES.items())
        self._tables.append(self._spill.put(pa.Table.from_pylist(self._rows, schema=schema)))
        self._rows.clear()

    def put_into(self, sources: pa.Table) -> pa.Table:
        """Return the sources with these columns, which replace those that they have."""
        self._close_chunk()
        facts = pa.concat_tables(self._tables)
        for field in facts.schema:
            index = sources.schema.get_field_index(field.name)
            if index >= 0:
                sources = sources.set_column(index, field, facts[field.name])
            else:
                sources = sources.append_column(field, facts[field.name])
        return sources
