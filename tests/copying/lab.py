"""Jobs that copy clips, run into one fault of storage, then again; and what is there after each."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from latentcache.errors import CacheError
from latentcache.format import lease
from latentcache.format.manifest import read_manifest
from latentcache.format.snapshot import build_index
from latentcache.reading.cache import Cache, open_cache
from latentcache.storage import retry
from latentcache.storage.folder import Storage
from tests.tools.caches import assert_same_files, run_inline
from tests.tools.fault_lab import check_growth
from tests.tools.faulty import FAULTS, SECRET, Faults, faulty_local_files
from tests.tools.places import Backend, Place

OK = 0


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Faults befall local files, too; nothing waits before it tries again, nor after it took a lease."""
    FAULTS["default"] = Faults()
    with (
        faulty_local_files(),
        mock.patch.object(retry, "FIRST_WAIT_S", 0.0),
        mock.patch.object(lease, "SETTLE_S", 0.0),
    ):
        yield


def options_of(place: Place, section: str) -> list[str]:
    """Overrides that say how a place is reached."""
    return [f"{section}.{name}={json.dumps(v)}" for name, v in place.storage_options.items()]


@dataclass(kw_only=True)
class CopyLab:
    """A job on a cache. start: the objects that are there beforehand, of a cache unless the job makes one.

    command: the job's, for a place. clips: what a reader finds, clip by clip. is_new: the job makes the
    cache, so that a reader may find none yet, or some clips. finished, expected: objects and clips after a
    run without faults.
    """

    start: Mapping[str, bytes]
    command: Callable[[Place], tuple[object, ...]]
    clips: Callable[[Cache], Any]
    backend: Backend
    is_new: bool = False
    finished: Mapping[str, bytes] = field(default_factory=dict)
    expected: Any = None

    def count(self) -> dict[str, int]:
        """Run without a fault; return the places where each kind of fault can befall the job."""
        place = self.backend.place()
        place.put(self.start)
        faults = FAULTS["default"] = Faults()
        status, printed = run_inline(*self.command(place))
        assert status == OK, printed
        FAULTS["default"] = Faults()
        self.finished, self.expected = place.files(), self._published(place)
        place.remove()
        return faults.num_places()

    def run(self, kind: str, at: int) -> bool:
        """Run into a fault, look at the cache, and run again; returns whether the fault struck."""
        place = self.backend.place()
        try:
            place.put(self.start)
            faults = FAULTS["default"] = Faults(kind, at, seed=at)
            status, printed = run_inline(*self.command(place))
            FAULTS["default"] = Faults()
            assert "Traceback" not in printed, printed
            assert SECRET not in printed
            assert status in (0, 1, 2), printed
            between = place.files()
            check_growth(self.start, between)
            self._check_readers(place)
            again, more = run_inline(*self.command(place))
            assert again == OK, more
            check_growth(between, place.files())
            assert_same_files(place.files(), self.finished)
            assert self._published(place) == self.expected
        finally:
            place.remove()
        return faults.struck

    def _check_readers(self, place: Place) -> None:
        """What is published, and what could be, holds every clip once, with its bytes."""
        try:
            found = [self._published(place), self._committed(place)]
        except CacheError:
            assert self.is_new
            return
        if not self.is_new:
            assert found == [self.expected, self.expected]
        for clips in found:
            assert {key: self.expected[key] for key in clips} == clips

    def _published(self, place: Place) -> Any:
        return self.clips(open_cache(place.url, place.storage_options))

    def _committed(self, place: Place) -> Any:
        """Read what a snapshot would hold that was published now."""
        storage = Storage(place.url, place.storage_options)
        manifest = read_manifest(storage)
        return self.clips(Cache(storage, manifest, build_index(storage, manifest)))
