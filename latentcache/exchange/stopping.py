"""Files that are given up half-made: those of many clips must not keep an export that is to end."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

#: Clips that are read at a time; after these, and not sooner, a file is given up.
NUM_CLIPS = 64
T = TypeVar("T")
_of_thread = threading.local()


class GivenUpError(Exception):
    """A file that was not made to its end, since the export is to end. No user sees it."""


@contextlib.contextmanager
def given_up_at(stop: threading.Event) -> Iterator[None]:
    """Let `in_turns` give up what this thread makes, once an event is set."""
    _of_thread.stop = stop
    try:
        yield
    finally:
        _of_thread.stop = None


def in_turns(clips: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield the clips of a file, some at a time. Raises GivenUpError where the export is to end."""
    stop: threading.Event | None = getattr(_of_thread, "stop", None)
    for first in range(0, len(clips), NUM_CLIPS):
        if stop is not None and stop.is_set():
            raise GivenUpError
        yield clips[first : first + NUM_CLIPS]
