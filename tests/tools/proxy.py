"""An HTTP proxy before an S3 server on this machine, which answers some requests as a bad day would."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

#: What can become of a request.
FAULTS = ("slow_down", "internal_error", "reset", "stall", "trickle", "truncated", "refused")
_ANSWERS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "refused": (403, "AccessDenied", "Access Denied"),
    "bad_key": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist."),
    "no_bucket": (404, "NoSuchBucket", "The specified bucket does not exist"),
}
_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}


@dataclass
class Proxy:
    """choose: (method, path) -> one of FAULTS, or None for a good answer.

    requests: (method, path, fault) of each. peak: requests that were under way at once.
    num_bytes: of bodies that were handed over, by path without its query.
    held_until: each request is held until so many have been under way at once, for half a minute.
    """

    target: str
    choose: Callable[[str, str], str | None] = lambda method, path: None
    latency_s: float = 0.0
    held_until: int = 0
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    peak: int = 0
    num_bytes: Counter[str] = field(default_factory=Counter)
    url: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._running = 0
        self.ended = threading.Event()

    def forget(self) -> None:
        self.requests, self.peak, self.latency_s, self.held_until = [], 0, 0.0, 0
        self.choose = lambda method, path: None
        self.num_bytes.clear()

    @contextlib.contextmanager
    def request(self, method: str, path: str) -> Iterator[str | None]:
        with self._lock:
            fault = self.choose(method, path)
            self.requests.append((method, path, fault))
            self._running += 1
            self.peak = max(self.peak, self._running)
            self._arrived.notify_all()
            self._arrived.wait_for(lambda: self.peak >= self.held_until, timeout=30)
        time.sleep(self.latency_s)
        try:
            yield fault
        finally:
            with self._lock:
                self._running -= 1

    def count_bytes(self, path: str, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes[path.partition("?")[0]] += num_bytes

    def count(self, fault: str) -> int:
        return sum(found == fault for _, _, found in self.requests)


@contextlib.contextmanager
def serve_proxy(target: str) -> Iterator[Proxy]:
    """Run a proxy before the server at `target`, an http:// URL."""
    proxy = Proxy(target)

    class Handler(_Handler):
        pass

    Handler.proxy = proxy
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    _trickles = False

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        body = self._body()
        with self.proxy.request(self.command, self.path) as fault:
            if fault in _ANSWERS:
                self._refuse(*_ANSWERS[fault])
            elif fault == "reset":
                linger = struct.pack("ii", 1, 0)  # close sends RST
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self._hang_up()
            elif fault == "stall":
                self.proxy.ended.wait(60)
                self._hang_up()
            else:
                self._trickles = fault == "trickle"
                self._forward(body, is_truncated=fault == "truncated")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815 - http.server's names

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _refuse(self, status: int, code: str, message: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self._send(status, [("Content-Type", "application/xml")], text)

    def _trickle(self, data: bytes) -> None:
        """Send a byte now and then; nobody waits for the last one."""
        for n in range(len(data)):
            if self.proxy.ended.wait(0.2):
                return
            self.wfile.write(data[n : n + 1])
            self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _forward(self, body: bytes, *, is_truncated: bool) -> None:
        address = urlsplit(self.proxy.target)
        assert address.hostname is not None
        connection = http.client.HTTPConnection(address.hostname, address.port)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP | {"expect"}}
        connection.request(self.command, self.path, body, kept)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in _HOP_BY_HOP]
        length = (
            int(answer.headers.get("Content-Length", 0)) if self.command == "HEAD" else len(data)
        )
        self._send(answer.status, headers, data, length, is_truncated=is_truncated)

    def _send(
        self,
        status: int,
        headers: list[tuple[str, str]],
        data: bytes,
        length: int | None = None,
        *,
        is_truncated: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command != "HEAD" and self._trickles:
            self._trickle(data)
        elif self.command != "HEAD":
            part = data[: len(data) // 2] if is_truncated else data
            self.proxy.count_bytes(self.path, len(part))
            self.wfile.write(part)
        if is_truncated:
            self._hang_up()
