"""A bounded map that drops the least recently used item. Safe for threads and after a fork."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """At most `max_items` items. Pickles empty; a forked process also starts with an empty one."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._fresh()

    def __reduce__(self) -> tuple[type[Lru[Any, Any]], tuple[int]]:
        return type(self), (self._max_items,)

    def _fresh(self) -> None:
        self._items: OrderedDict[K, V] = OrderedDict()
        self._making: dict[K, threading.Lock] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def _after_fork(self) -> None:
        if (
            self._pid != os.getpid()
        ):  # a thread of the parent may have held the lock: it never opens
            self._fresh()

    def get(self, key: K) -> V | None:
        """Return the value and mark it as used last; None if there is none."""
        self._after_fork()
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key]

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """Return the value; if there is none, one thread makes it and the others wait for it."""
        if (value := self.get(key)) is not None:
            return value
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        try:
            with making:
                if (value := self.get(key)) is None:
                    value = make()
                    self.put(key, value)
                return value
        finally:
            with self._lock:
                self._making.pop(key, None)

    def put(self, key: K, value: V) -> None:
        """Keep the value; if the map is full, it replaces the least recently used one."""
        self._after_fork()
        with self._lock:
            self._items[key] = value
            self._items.move_to_end(key)
            while len(self._items) > self._max_items:
                self._items.popitem(last=False)

    def __len__(self) -> int:
        return len(self._items)
