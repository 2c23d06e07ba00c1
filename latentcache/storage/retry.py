"""Retries what failed for a passing reason: a reset connection, a time-out, throttling."""

from __future__ import annotations

import errno
import itertools
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Six tries wait about 16 s in all, because stores throttle for seconds. More would only delay the message
#: about a server that is really down. A try that itself takes long (a server that does not answer) uses up
#: the budget, and then there is no other try.
TRIES = 6
FIRST_WAIT_S = 0.5
BUDGET_S = 30.0

_PERMANENT = (
    FileNotFoundError,
    PermissionError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)
_TRANSIENT_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,  # s3fs: SlowDown, ServiceUnavailable
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
    getattr(errno, "EREMOTEIO", errno.EIO),  # s3fs: InternalError
}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_TRANSIENT_CODES = {
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "InternalError",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
#: Statuses with which a server says that a file is not there.
_ABSENT_STATUS = {404, 410}
#: Error names of the HTTP libraries under fsspec's file systems; by name, as none need be installed.
_TRANSIENT_CLASSES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",  # botocore's, which is not the built-in one
    "HTTPClientError",
    "IncompleteRead",
    "ResponseParserError",
    "ResponseStreamingError",
    *(
        "NetworkError",
        "RemoteProtocolError",
        "TimeoutException",
    ),  # of httpx, which huggingface_hub uses
}


def is_transient(error: BaseException) -> bool:
    """Tell whether the same request may succeed in a moment."""
    error = behind_absence(error) or error
    if isinstance(error, _PERMANENT):
        return False
    return any(_is_transient_alone(e) for e in _causes(error))


def behind_absence(error: BaseException) -> BaseException | None:
    """Return what failed where a FileNotFoundError does not mean that a file is absent, else None.

    fsspec's http raises one for every failure, be it a 503 or a lost connection; its cause tells.
    """
    if not isinstance(error, FileNotFoundError):
        return None
    for cause in _causes(error.__cause__):
        status = _status_alone(cause)
        if status in _ABSENT_STATUS:
            return None
        is_client_error = "ClientError" in {c.__name__ for c in type(cause).__mro__}
        if status is not None or _is_transient_alone(cause) or is_client_error:
            return cause
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(5):
        if error is None:
            return
        yield error
        error = error.__cause__


def _is_transient_alone(error: BaseException) -> bool:
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    if _TRANSIENT_CLASSES & {c.__name__ for c in type(error).__mro__}:
        return True
    code = _response(error).get("Error", {}).get("Code")
    return code in _TRANSIENT_CODES or _status_alone(error) in _TRANSIENT_STATUS


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status behind an error of any file system, or None."""
    return next((s for e in _causes(error) if (s := _status_alone(e)) is not None), None)


def _response(error: BaseException) -> Mapping[str, Any]:
    response = getattr(error, "response", None)  # where botocore's errors have it
    return response if isinstance(response, dict) else {}


def _status_alone(error: BaseException) -> int | None:
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    # One after the other: aiohttp warns whoever looks at `code` where there is `status`.
    named = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    # Of httpx and requests, whose errors hold the answer as an object.
    of_answer = getattr(getattr(error, "response", None), "status_code", None)
    found = itertools.chain([status, of_answer], named)
    return next((s for s in found if isinstance(s, int)), None)


def call(
    function: Callable[[], T],
    *,
    passes: Callable[[BaseException], bool] = is_transient,
    tries: int = TRIES,
    budget_s: float = BUDGET_S,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Call `function`, and again after a failure that may pass, with exponential waits and jitter.

    The last error is raised unchanged, with a note on how often and for how long it was tried.
    """
    start = clock()
    for attempt in range(1, tries + 1):
        try:
            return function()
        except Exception as error:
            wait_s = FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
            spent_s = clock() - start
            if not passes(error) or attempt == tries or spent_s + wait_s > budget_s:
                if attempt > 1:
                    error.add_note(f"tried {attempt} times over {spent_s:.0f} s")
                raise
            log.info("trying again in %.1f s, after %s", wait_s, type(error).__name__)
            sleep(wait_s)
    raise AssertionError("unreachable: the last try returns or raises")
