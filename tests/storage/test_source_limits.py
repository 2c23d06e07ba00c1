"""A read of a source ends as a whole, also where a server sends a byte now and then for ever."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from latentcache.errors import StorageError, UnreachableError
from latentcache.storage import limits, retry
from latentcache.storage.source_files import (
    file_facts,
    find_sizes,
    open_source,
    read_heads,
    read_many,
    read_range,
)

DATA = bytes(range(250)) * 8


class Handler(BaseHTTPRequestHandler):
    """Serves DATA. Of a path with `trickle` it sends a byte now and then, of one with `hang` nothing.

    It answers ranges, unless the path says `stream`: then it says nothing of ranges, nor of a length. A
    path with `endless` has a length by HEAD, and then comes without an end.
    """

    def __init__(self, *args: Any, ended: threading.Event, **kwargs: Any) -> None:
        self._ended = ended
        super().__init__(*args, **kwargs)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if "hang" in self.path:
            self._ended.wait(60)
            return
        part = DATA
        is_stream = "stream" in self.path or (self.command == "GET" and "endless" in self.path)
        wanted = None if is_stream else self.headers.get("Range")
        if wanted:
            first, last = (int(n or len(DATA) - 1) for n in wanted[len("bytes=") :].split("-"))
            part = DATA[first : last + 1]
        self.send_response(206 if wanted else 200)
        if not is_stream:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(part)))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(DATA)}")
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):
                self._send(part)

    def _send(self, part: bytes) -> None:
        if "trickle" not in self.path:
            self.wfile.write(part)
            while "endless" in self.path and not self._ended.is_set():
                self.wfile.write(part)
            return
        for n in range(len(part)):
            if self._ended.wait(0.05):
                return
            self.wfile.write(part[n : n + 1])
            self.wfile.flush()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A URL of a server; limits are short, and nothing is tried again."""
    monkeypatch.setattr(limits, "BASE_S", 0.4)
    monkeypatch.setattr(limits, "BYTES_PER_S", 1 << 30)
    monkeypatch.setattr(limits, "LISTING_S", 0.0)
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 60)
    ended = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, ended=ended))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["trickle.mp4", "trickle-stream.mp4"])
@pytest.mark.parametrize("for_parts", [False, True])
def test_a_source_that_trickles_is_given_up(server: str, name: str, for_parts: bool) -> None:
    with (
        open_source(f"{server}/{name}?token=secret", for_parts=for_parts) as file,
        pytest.raises(UnreachableError, match=rf"cannot read .*/{name}.*: TimeoutError") as caught,
    ):
        file.read()
    assert "secret" not in str(caught.value)


def opened(url: str) -> None:
    with open_source(url):
        pass


@pytest.mark.slow
@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "read",
    [
        opened,
        file_facts,
        find_sizes,
        lambda url: read_many([url]),
        lambda url: read_many([url], {}, 10),
        lambda url: read_heads([url], 10),
        lambda url: read_range(url, 0, 10),
    ],
)
def test_a_server_that_says_nothing_is_given_up(server: str, read: Callable[[str], object]) -> None:
    with pytest.raises(UnreachableError, match="it was not done within"):
        read(f"{server}/hang.mp4")


@pytest.mark.slow
@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["good.mp4", "good-stream.mp4"])
def test_other_sources_come_whole(server: str, name: str) -> None:
    with open_source(f"{server}/{name}") as file:
        assert file.read() == DATA


@pytest.mark.slow
@pytest.mark.timeout(30)
def test_a_long_range_has_the_time_of_its_bytes(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server needs some 0.5 s for 10 bytes, and the base limit is 0.4 s."""
    monkeypatch.setattr(limits, "BYTES_PER_S", 1)
    assert read_range(f"{server}/trickle.mp4", 0, 12) == DATA[:12]


def test_many_small_reads_have_the_time_of_one_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STRETCH_BYTES", 100)
    pace = limits.Pace(ahead_bytes=100)
    allowed_s = limits.BASE_S + limits.time_of(200)
    for _ in range(3):  # it may go on as long as it likes at this speed
        pace.add(199, allowed_s)
        pace.add(1, 1.0)
    pace.add(5, 0.6 * allowed_s)
    with pytest.raises(TimeoutError, match="only 10 bytes came within"):
        pace.add(5, 0.6 * allowed_s)


@pytest.mark.slow
@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["endless.txt", "endless-stream.txt"])
def test_no_more_is_read_than_is_wanted(server: str, name: str) -> None:
    """A server may say that a file is short, or not how long it is, and ignore what range is asked for."""
    url, num_bytes = f"{server}/{name}", len(DATA)
    assert read_many([url], {}, num_bytes - 1) == [DATA]
    assert read_many([url, url], {}, 9) == [DATA[:10]] * 2
    assert read_heads([url], 10) == [DATA[:10]]
    with pytest.raises(StorageError, match="where a range of bytes is asked for"):
        read_range(url, 5, 15)


@pytest.mark.slow
@pytest.mark.timeout(30)
def test_what_is_shorter_than_the_limit_comes_whole(server: str) -> None:
    urls = [f"{server}/good-stream.txt", f"{server}/good.txt"]
    assert read_many(urls, {}, len(DATA)) == [DATA, DATA]
    assert read_heads(urls, len(DATA) + 1) == [DATA, DATA]
    assert read_range(urls[1], 5, 15) == DATA[5:15]
