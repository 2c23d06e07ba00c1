"""One attempt at a shard, or at starting a worker, for every runner: what is raised becomes a record.

The record is plain data: an encoder's errors need not survive the way to another process, as exceptions
with arguments of their own do not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from latentcache import errors
from latentcache.errors import LatentCacheError, RunStoppedError, broken_installation
from latentcache.redaction import printable, redact
from latentcache.running.failure_policy import classify

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An attempt that failed. error: its class and first line. stop: what ends the run, if it must end.

    is_unfit: the process that tried can do no shard any more, and only another one can.
    """

    error: str
    stop: LatentCacheError | None = None
    is_unfit: bool = False


@dataclass(frozen=True, kw_only=True)
class GivenBack:
    """An attempt that was not finished because its worker was told to end: no fault of the shard."""


def attempt(work: Callable[[], T], *, starting: bool = False) -> T | Failed:
    """Do some work of a worker's; returns what it returns, or how it failed.

    Not even SystemExit gets through, for an encoder may raise it. An interrupt does while a worker starts:
    the main thread gets it, where local workers start, and where no shard is encoded.
    """
    try:
        return work()
    except BaseException as error:
        if starting and isinstance(error, KeyboardInterrupt):
            raise
        log.info("an attempt failed", exc_info=True)
        cost = classify(error, starting=starting)
        stop = plain_error(error) if cost == "stop" else None
        return Failed(error=in_one_line(error), stop=stop, is_unfit=cost == "worker")


def in_one_line(error: BaseException) -> str:
    """Return the class and the first line of an error, without credentials or control characters."""
    name = type(error).__name__
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - an encoder's error may not be able to say what it is
        lines = []
    return printable(redact(f"{name}: {lines[0]}")) if lines else name


def plain_error(error: BaseException) -> LatentCacheError:
    """Return an error of this package's own class with the same message: a subclass may not travel."""
    if isinstance(error, ImportError):
        return RunStoppedError(broken_installation(in_one_line(error)))
    own = next(c for c in type(error).__mro__ if c.__module__ == errors.__name__)
    plain: LatentCacheError = own(str(error))
    plain.__cause__ = error  # lost on the way to another process
    return plain
