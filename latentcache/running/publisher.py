"""The snapshot as a run keeps it, beside what other runs on the same cache publish."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow as pa

from latentcache.core.records import ShardId, ShardReport
from latentcache.format.schemas import INDEX_SCHEMA
from latentcache.format.snapshot import build_index, current_index, known_index, publish
from latentcache.storage.folder import Storage


class RunSnapshot:
    """Publishes what a run commits, at most every `interval_s` seconds.

    In memory are only the rows since it last did so: what is published comes from storage each time, so
    that a row that another run has added or renewed is neither lost nor put back. on_published is called
    with the number of shards.
    """

    def __init__(
        self,
        storage: Storage,
        interval_s: float,
        on_published: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._storage = storage
        self._interval_s = interval_s
        self._on_published = on_published
        self._pending: dict[ShardId, Mapping[str, Any]] = {}
        self._published_at = 0.0

    def open(self, replaced: Collection[ShardId]) -> None:
        """Publish what is committed, without the shards that this run is about to replace."""
        table = current_index(self._storage)
        rows = [row for row in table.to_pylist() if _shard(row) not in replaced]
        self._publish(_to_table(rows))

    def add(self, report: ShardReport) -> None:
        """Add a committed shard; publishes now and then."""
        row = {name: getattr(report, name) for name in INDEX_SCHEMA.names}
        self._pending[_shard(row)] = row
        if time.monotonic() - self._published_at > self._interval_s:
            self._publish(self._merged())

    def close(self) -> pa.Table:
        """Publish everything that is committed, by this run or by another, and return it.

        What another run commits or publishes meanwhile is found by looking once more: of several runs
        the last that publishes has seen what all have committed.
        """
        table = build_index(self._storage, self._merged())
        while True:
            self._publish(table)
            now = build_index(self._storage, table)
            if now.equals(table):
                return table
            table = now

    def _merged(self) -> pa.Table:
        """Return the rows that are published now, and those of this run that are not."""
        published = {_shard(row): row for row in known_index(self._storage).to_pylist()}
        return _to_table([*{**published, **self._pending}.values()])

    def _publish(self, table: pa.Table) -> None:
        if not table.equals(known_index(self._storage)):
            publish(self._storage, table)
            self._on_published(table.num_rows)
        self._pending.clear()
        self._published_at = time.monotonic()


def _shard(row: Mapping[str, Any]) -> ShardId:
    return ShardId(row["bucket"], row["shard"])


def _to_table(rows: list[Any]) -> pa.Table:
    return pa.Table.from_pylist(sorted(rows, key=_shard), schema=INDEX_SCHEMA)
