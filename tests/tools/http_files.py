"""A folder served over HTTP with ranges, whose server can have a bad day."""

from __future__ import annotations

import contextlib
import functools
import math
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

#: What can become of every request for a media file: a status, or this.
RESET, CUT_SHORT = "reset", "cut short"
#: Suffixes of media files.
MEDIA = (".mp4", ".png")


@dataclass
class Server:
    """url: of the folder that is served, whatever the query. gone: names that are answered with 404.

    fault: what becomes of each request for a media file, a status or one of the words above; None: a good
    answer. pause_s: between the two halves of an answer. num_bytes: of files, that answers have held, and
    bytes_of: by the name of each. has_tags: answers have an ETag. ranges_left: so many ranges are given,
    and then whole files where ranges are asked for, or, where gives_others, ranges as long from the first
    byte on. lists: folders are listed, but for those of `unlisted`: there
    the connection is reset. signature: what queries must have as `sig`, or media is answered with 403.
    by_id: the name of the file that is given for each `id` of a query, whatever the path says; without an
    id that of the id "".
    """

    url: str = ""
    gone: set[str] = field(default_factory=set)
    fault: int | str | None = None
    pause_s: float = 0.0
    num_bytes: int = 0
    bytes_of: Counter[str] = field(default_factory=Counter)
    has_tags: bool = False
    ranges_left: float = math.inf
    gives_others: bool = False
    lists: bool = False
    unlisted: set[str] = field(default_factory=set)
    signature: str = ""
    by_id: dict[str, str] = field(default_factory=dict)


class Handler(SimpleHTTPRequestHandler):
    """A folder, with ranges."""

    def __init__(self, *args: Any, server_facts: Server, **kwargs: Any) -> None:
        self.facts = server_facts
        super().__init__(*args, **kwargs)

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the connection was closed on purpose
            super().handle_one_request()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _wanted(self) -> str | None:
        """Return which range is asked for, unless whole files are given now."""
        if wanted := self.headers.get("Range"):
            self.facts.ranges_left -= 1
        return wanted if self.facts.ranges_left >= 0 or self.facts.gives_others else None

    def translate_path(self, path: str) -> str:
        """Return the file of a path, or that of the query's id."""
        wanted = dict(parse_qsl(urlsplit(path).query)).get("id", "")
        if self.facts.by_id and path.partition("?")[0].endswith(MEDIA):
            path = "/" + self.facts.by_id.get(wanted, "nothing")
        return super().translate_path(path)

    def _answer(self, *, with_body: bool) -> None:
        path = Path(self.translate_path(self.path))
        fault = self.facts.fault if path.suffix in MEDIA else None
        signed = dict(parse_qsl(urlsplit(self.path).query)).get("sig", "")
        if path.suffix in MEDIA and self.facts.signature not in ("", signed):
            fault = 403
        if self.facts.lists and path.is_dir() and path.name not in self.facts.unlisted:
            super().do_GET()
            return
        if path.name in self.facts.unlisted:
            fault = RESET
        elif not path.is_file() or path.name in self.facts.gone:
            fault = 404
        if isinstance(fault, int):
            self.send_error(fault)
            return
        if fault == RESET:
            linger = struct.pack("ii", 1, 0)  # close sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
            return
        size = path.stat().st_size
        first, last = 0, size - 1
        wanted = self._wanted()
        if wanted:
            first, last = (int(n or last) for n in wanted.removeprefix("bytes=").split("-"))
            if self.facts.ranges_left < 0:
                first, last = 0, last - first
        with path.open("rb") as file:
            file.seek(first)
            part = file.read(last + 1 - first)
        self.send_response(206 if wanted else 200)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{size}")
        self.send_header("Content-Length", str(len(part)))
        if self.facts.has_tags:
            stat = path.stat()
            self.send_header("ETag", f'"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"')
        self.end_headers()
        if with_body:
            self.facts.num_bytes += len(part)
            self.facts.bytes_of[path.name] += len(part)
            half = len(part) // 2
            self.wfile.write(part[:half])
            time.sleep(self.facts.pause_s)
            if fault == CUT_SHORT:
                self.connection.close()
                return
            self.wfile.write(part[half:])


class NewServer(ThreadingHTTPServer):
    """A server on IPv6."""

    address_family = socket.AF_INET6


@contextlib.contextmanager
def serve(folder: Path, kind: type[ThreadingHTTPServer] = ThreadingHTTPServer) -> Iterator[Server]:
    """Serve a folder; kind: of an address family."""
    facts = Server()
    handler = functools.partial(Handler, directory=str(folder), server_facts=facts)
    is_new = kind.address_family == socket.AF_INET6
    server = kind(("::1" if is_new else "127.0.0.1", 0), handler)
    server.daemon_threads = True
    host = "[::1]" if is_new else "127.0.0.1"
    facts.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield facts
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
