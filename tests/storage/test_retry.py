"""What is tried again, how often and for how long."""

from __future__ import annotations

import errno
import types
from collections.abc import Callable

import pytest

from latentcache.errors import StorageError
from latentcache.storage import retry
from latentcache.storage.filesystems import translated

pytestmark = pytest.mark.usefixtures("no_waiting")


def failing(times: int, error: Callable[[], Exception]) -> tuple[list[int], Callable[[], str]]:
    tries: list[int] = []

    def function() -> str:
        tries.append(1)
        if len(tries) <= times:
            raise error()
        return "done"

    return tries, function


class SlowDownError(Exception):
    def __init__(self) -> None:
        super().__init__("slow down")
        self.response = {"Error": {"Code": "SlowDown"}}


class StatusError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class AnswerError(Exception):
    """As huggingface_hub's are, which hold the answer itself."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.response = types.SimpleNamespace(status_code=status)


class NetworkError(Exception):
    """By its name one of httpx."""


@pytest.mark.parametrize(
    "error",
    [
        lambda: ConnectionResetError("reset by peer"),
        lambda: TimeoutError("timed out"),
        lambda: OSError(errno.EBUSY, "Please reduce your request rate."),
        SlowDownError,
        lambda: StatusError(502),
        lambda: StatusError(429),
        lambda: AnswerError(503),
        NetworkError,
    ],
)
def test_transient_failures_are_tried_again(error: Callable[[], Exception]) -> None:
    tries, function = failing(3, error)
    assert retry.call(function, sleep=lambda s: None) == "done"
    assert len(tries) == 4


@pytest.mark.parametrize(
    "error",
    [
        lambda: FileNotFoundError("a"),
        lambda: PermissionError("a"),
        lambda: OSError(errno.ENOSPC, "No space left on device"),
        lambda: StatusError(403),
        lambda: AnswerError(404),
        lambda: ValueError("a"),
    ],
)
def test_permanent_failures_are_not_tried_again(error: Callable[[], Exception]) -> None:
    tries, function = failing(9, error)
    with pytest.raises(type(error())):
        retry.call(function, sleep=lambda s: None)
    assert len(tries) == 1


def test_a_cause_counts_as_the_failure() -> None:
    wrapped = OSError("failed")
    wrapped.__cause__ = ConnectionResetError()
    assert retry.is_transient(wrapped)
    assert not retry.is_transient(OSError("failed"))
    refused = PermissionError("failed")
    refused.__cause__ = ConnectionResetError()
    assert not retry.is_transient(refused)


@pytest.mark.timeout(60)
def test_errors_that_are_each_other_s_cause_are_told_as_one() -> None:
    """As a library leaves them that raises the cause of an error that it has caught."""
    error = ValueError("the outer one")
    error.__context__ = KeyError("the inner one")
    error.__context__.__context__ = error
    said = "cannot read s3://a/b: ValueError: the outer one"
    with pytest.raises(StorageError, match=said), translated("read", "s3://a/b", {}):
        raise error


def test_waits_double_with_jitter_and_stop_at_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 1.0)
    now, waits = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        waits.append(seconds)

    tries, function = failing(99, TimeoutError)
    with pytest.raises(TimeoutError) as caught:
        retry.call(function, tries=50, budget_s=30, sleep=sleep, clock=lambda: now)
    assert now <= 30
    assert all(0.5 * 2**i <= wait <= 1.5 * 2**i for i, wait in enumerate(waits))
    assert caught.value.__notes__ == [f"tried {len(tries)} times over {now:.0f} s"]
