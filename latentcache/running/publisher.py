"""The snapshot as a run keeps it, beside what other runs on the same cache publish."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyarrow as pa

from latentcache.core.records import ShardId, ShardReport
from latentcache.errors import CacheError
from latentcache.format.changes import read_changes
from latentcache.format.manifest import Manifest, refresh
from latentcache.format.rounds import OTHERS_GO_ON, ROUNDS
from latentcache.format.schemas import INDEX_SCHEMA
from latentcache.format.snapshot import (
    build_index,
    index_of,
    known_index,
    numbers_in,
    publish,
    read_index,
    shard_of,
    usable_index,
)
from latentcache.storage.folder import Storage

log = logging.getLogger(__name__)


class Snapshot(Protocol):
    """What a run publishes, and when."""

    def open(self) -> None:
        """Publish what is committed."""
        ...

    def add(self, report: ShardReport) -> None:
        """Add a committed shard; publishes now and then."""
        ...

    def close(self) -> pa.Table:
        """Publish everything that is committed, by whomever, and return it."""
        ...


class RunSnapshot:
    """Publishes what a run commits, at most every `interval_s` seconds.

    In memory are only the rows since it last did so: what is published comes from storage each time, so
    that a row that another run has added is not lost, and a row that a later generation has retired is
    not put back. on_published is called with the number of shards.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        interval_s: float,
        on_published: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._storage = storage
        self._manifest = manifest
        self._interval_s = interval_s
        self._on_published = on_published
        self._pending: dict[ShardId, Mapping[str, Any]] = {}
        self._published_at = 0.0

    def open(self) -> None:
        """Publish what is committed."""
        self._refresh()
        known = known_index(self._storage, self._manifest)
        self._publish(build_index(self._storage, self._manifest, known))

    def add(self, report: ShardReport) -> None:
        """Add a committed shard; publishes now and then."""
        row = {name: getattr(report, name) for name in INDEX_SCHEMA.names}
        self._pending[shard_of(row)] = row
        if time.monotonic() - self._published_at > self._interval_s:
            self._refresh()
            self._publish(self._extended())

    def close(self) -> pa.Table:
        """Publish everything that is committed, by this run or by another, and return it.

        What another run commits or publishes meanwhile is found by looking once more: of several runs
        the last that publishes has seen what all have committed.
        """
        self._refresh()
        table = build_index(self._storage, self._manifest, self._merged())
        for number in itertools.count(1):
            self._publish(table)
            now = self._look(table)
            if now.equals(table, check_metadata=True):
                break
            if number >= ROUNDS and not self._look(now).equals(now, check_metadata=True):
                # What was committed between these two looks is of a run that publishes after this one.
                log.warning(OTHERS_GO_ON)
                break
            table = now
        return table

    def _extended(self) -> pa.Table:
        """Return what is published now, with the rows of this run; does not list what is committed.

        It does where what is published cannot be extended, because it is not there, damaged, or of a
        step that another run has taken just now.
        """
        changes = read_changes(self._storage, self._manifest)
        published = usable_index(self._storage, self._manifest)
        if published is None:
            return self._look(self._pending_rows())
        known = pa.concat_tables([self._pending_rows(), published])
        return index_of(self._storage, self._manifest, changes, numbers_in(known), known)

    def _look(self, table: pa.Table) -> pa.Table:
        """Return the index of what is committed now. table: of what is known."""
        self._refresh()
        return build_index(self._storage, self._manifest, table)

    def _refresh(self) -> None:
        """Take in what other runs have planned meanwhile."""
        self._manifest = refresh(self._storage, self._manifest)

    def _merged(self) -> pa.Table:
        """Return the rows of this run that are not published, and those that are published now."""
        published = known_index(self._storage, self._manifest)
        return pa.concat_tables([self._pending_rows(), published])

    def _pending_rows(self) -> pa.Table:
        """Return the rows of this run that are not published."""
        return pa.Table.from_pylist([*self._pending.values()], schema=INDEX_SCHEMA)

    def _publish(self, table: pa.Table) -> None:
        if not table.equals(self._known(), check_metadata=True):
            publish(self._storage, table)
            self._on_published(table.num_rows)
        self._pending.clear()
        self._published_at = time.monotonic()

    def _known(self) -> pa.Table:
        try:
            return read_index(self._storage)
        except CacheError:
            return INDEX_SCHEMA.empty_table()
