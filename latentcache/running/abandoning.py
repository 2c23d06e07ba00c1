"""Clips that were asked for and that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from latentcache.decoders.pool import DecodedClip


def abandon(futures: Sequence[Future[DecodedClip] | None]) -> None:
    """Cancel what is not decoded yet, and release what is."""
    for future in futures:
        if future is not None and not future.cancel():
            future.add_done_callback(_release)


def _release(future: Future[DecodedClip]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().release()
