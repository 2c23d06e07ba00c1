"""Decoding processes that runs hand on: to start them is most of what a small run takes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any
from unittest import mock

from latentcache.config.sections import Config
from latentcache.decoders.neighbours import Neighbours
from latentcache.decoders.pool import Buffer, DecodePool, _Request
from latentcache.storage.urls import is_remote, refused_scheme

#: Pools that are kept at most.
MOST = 4


class KeptPool(DecodePool):
    """A pool that goes back to its shelf once every request is answered and every buffer is free."""

    def __init__(self, shelf: Shelf, key: str, **settings: Any) -> None:
        self._shelf, self.key = shelf, key
        self._open, self._is_remote, self._lock = 0, False, threading.Lock()
        self._is_kept = False
        super().__init__(**settings)

    def _submit(self, request: _Request) -> Future[Any]:
        url = request.message["url"]
        self._is_remote |= is_remote(url)
        with self._lock:
            if self._is_kept:  # the run that had it is stopping: no other run is to wait for this
                request.future.cancel()
                return request.future
            self._open += not refused_scheme(url, self._schemes)
        return super()._submit(request)

    def give_back(self, buffer: Buffer) -> None:
        super().give_back(buffer)
        with self._lock:
            self._open -= 1

    def close(self) -> None:
        with self._lock:
            self._is_kept = not (self._open or self._is_remote)
        if not self._is_kept:
            super().close()
            return
        self._neighbours, self._has_decoded = Neighbours(), False
        self._shelf.keep(self)

    def take(self) -> KeptPool:
        """Return it, for another run."""
        self._is_kept = False
        return self

    def end(self) -> None:
        """Close it for good."""
        super().close()


class Shelf:
    """Pools that no run uses at the moment."""

    def __init__(self) -> None:
        self._pools: list[KeptPool] = []

    def keep(self, pool: KeptPool) -> None:
        self._pools.append(pool)
        if len(self._pools) > MOST:
            self._pools.pop(0).end()

    def for_run(self, config: Config, *, num_processes: int, num_buffers: int) -> DecodePool:
        """Return what `DecodePool.for_run` does, of the shelf if there is one."""
        made: dict[str, Any] = {}
        original(
            lambda **settings: made.update(settings),
            config, num_processes=num_processes, num_buffers=num_buffers,
        )  # fmt: skip
        world = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        key = repr((made, sorted(world.items())))
        for pool in self._pools:
            if pool.key == key:
                self._pools.remove(pool)
                return pool.take()
        return KeptPool(self, key, **made)

    def clear(self) -> None:
        while self._pools:
            self._pools.pop().end()


original = DecodePool.for_run.__func__  # type: ignore[attr-defined]


@contextlib.contextmanager
def kept_pools() -> Iterator[None]:
    """Runs within take the decoding processes of the runs before, where those are as they want them."""
    shelf = Shelf()
    with mock.patch.object(DecodePool, "for_run", shelf.for_run):
        try:
            yield
        finally:
            shelf.clear()
