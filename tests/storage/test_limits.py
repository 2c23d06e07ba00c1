"""An operation on storage ends as a whole, also where a server sends a byte now and then for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from latentcache.errors import UnreachableError
from latentcache.storage import limits, retry
from latentcache.storage.folder import Storage
from tests.tools.proxy import Proxy, serve_proxy
from tests.tools.s3 import new_bucket, s3_server_fixture  # noqa: F401 fixture


def test_a_call_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BASE_S", 0.02)
    gate, asked = threading.Event(), []
    with pytest.raises(TimeoutError, match="not done within"):
        limits.call(gate.wait, 60, more_s=lambda: asked.append(1) or 0.02)
    assert asked == [1]
    gate.set()


def test_a_large_object_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BASE_S", 0.02)
    gate = threading.Event()

    def more_s() -> float:
        gate.set()
        return 60

    assert limits.call(gate.wait, 60, more_s=more_s)


def test_the_errors_of_a_call_are_its_own() -> None:
    def fail() -> None:
        raise TimeoutError("of the server")

    with pytest.raises(TimeoutError, match="of the server"):
        limits.call(fail)
    with pytest.raises(ZeroDivisionError):
        limits.call(lambda: 1 // 0)


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[Proxy]:
    with serve_proxy(s3_server) as proxy:
        yield proxy


def test_a_read_that_trickles_ends(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes long before the client's own time-out, and all of them together take for ever."""
    s3 = new_bucket(proxy.url)
    store = Storage(s3.url, s3.options)
    store.write("a", bytes(1000))
    monkeypatch.setattr(limits, "BASE_S", 0.5)
    monkeypatch.setattr(limits, "BYTES_PER_S", 1000)
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 60)  # no second try
    proxy.choose = lambda method, path: (
        "trickle" if method == "GET" and path.endswith("/a") else None
    )
    for read in (lambda: store.read("a"), lambda: store.read_ranges("a", [(0, 900)])):
        with pytest.raises(
            UnreachableError, match=r"cannot read .*/a: TimeoutError: it was not done"
        ):
            read()
    proxy.forget()
    assert store.read("a") == bytes(1000)
