"""Probing: sources to frames, duration, height, width and identity, in parallel, in killable processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from latentcache.decoders.pool import DecodePool
from latentcache.errors import ClipError, CorpusError
from latentcache.tables import PROBE_SCHEMA, SOURCE_SCHEMA

#: What a table of sources must already say for the files' headers to be left unread.
TRUSTED = {"video": ("frames", "fps", "height", "width"), "image": ("height", "width")}
#: Requests under way at once; more would only hold memory.
WINDOW = 256


def probe_sources(
    sources: pa.Table, pool: DecodePool, on_probed: Callable[[], object] = lambda: None
) -> pa.Table:
    """Return `sources` with missing facts filled in and the columns of PROBE_SCHEMA added.

    A source that cannot be used gets a reason and a message; nothing raises for it. Raises CorpusError
    where the sources' storage does not answer: a plan must not lose them for that.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _FILLED}
    pending: list[tuple[dict[str, Any], Any]] = []
    for batch in sources.select(SOURCE_SCHEMA.names).to_batches(max_chunksize=WINDOW):
        for row in batch.to_pylist():
            pending.append(
                (row, pool.probe(row["url"], row["kind"], identity_only=is_trusted(row)))
            )
            if len(pending) > WINDOW:
                _collect(*pending.pop(0), columns)
                on_probed()
    for row, future in pending:
        _collect(row, future, columns)
        on_probed()
    return _with_columns(sources, columns)


_FILLED = ("frames", "fps", "height", "width", *PROBE_SCHEMA.names)


def is_trusted(row: Mapping[str, Any]) -> bool:
    """Tell whether the corpus itself says everything about a source's shape."""
    return all(row[name] is not None for name in TRUSTED[row["kind"]])


def _collect(row: Mapping[str, Any], future: Any, columns: Mapping[str, list[Any]]) -> None:
    try:
        found = {**future.result(), "reason": None, "message": None}
    except ClipError as error:
        if error.reason == "unreachable":
            raise CorpusError(f"the corpus cannot be read: {error}") from error
        found = {"reason": error.reason, "message": str(error)}
    facts = {**found, **{name: row[name] for name in TRUSTED["video"] if row[name] is not None}}
    if row["kind"] == "image":
        facts["frames"] = 1
        facts["duration_s"] = 0.0
    elif is_trusted(row):
        facts["duration_s"] = row["frames"] / row["fps"]
    for name, values in columns.items():
        values.append(facts.get(name))


def _with_columns(sources: pa.Table, columns: Mapping[str, list[Any]]) -> pa.Table:
    types = {field.name: field.type for field in (*SOURCE_SCHEMA, *PROBE_SCHEMA)}
    for name, values in columns.items():
        array = pa.array(values, type=types[name])
        index = sources.schema.get_field_index(name)
        if index >= 0:
            sources = sources.set_column(index, pa.field(name, types[name]), array)
        else:
            sources = sources.append_column(pa.field(name, types[name]), array)
    return sources
