"""The snapshot of a field, published while a run makes it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pyarrow as pa

from latentcache.core.records import ShardReport
from latentcache.format.fields.snapshot import publish_field
from latentcache.planning.fields.planned import PlannedField


class FieldSnapshot:
    """Publishes what is committed of a field, at most every `interval_s` seconds while a run goes on."""

    def __init__(
        self, planned: PlannedField, interval_s: float, on_published: Callable[[int], object]
    ) -> None:
        self._planned, self._interval_s, self._on_published = planned, interval_s, on_published
        self._published_at = time.monotonic()

    def open(self) -> None:
        """Publish what is committed."""
        self._publish()

    def add(self, report: ShardReport) -> None:  # noqa: ARG002 - what is committed is listed
        """Publish now and then."""
        if time.monotonic() - self._published_at > self._interval_s:
            self._publish()

    def close(self) -> pa.Table:
        """Publish everything that is committed, by whomever, and return it."""
        return self._publish()

    def _publish(self) -> pa.Table:
        planned = self._planned.refreshed()
        table = publish_field(planned.storage, planned.field, planned.cache.manifest)
        self._published_at = time.monotonic()
        self._on_published(table.num_rows)
        return table
