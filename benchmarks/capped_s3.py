"""A read-only S3 server on loopback whose bandwidth is capped over all connections together.

It supports what readers request: GET with ranges, HEAD and ListObjectsV2, path style, of one folder
whose first level is the buckets. It checks no signature.

`python benchmarks/capped_s3.py FOLDER [--rate-mb-s 100] [--port 9000]`
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import json
import multiprocessing
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

#: Bytes that are sent at a time: 2.6 ms at 100 MB/s.
PIECE_BYTES = 256 << 10
#: How late the server may be, in seconds, and still catch up: the grain of its timer.
CREDIT_S = 0.01
MAX_KEYS = 1000
#: Where the server says what it has sent of each object: no bucket has such a name.
COUNTS = "/-/bytes"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Cap:
    """Lets `rate` bytes per second through in all; None lets everything through."""

    def __init__(self, rate: float | None) -> None:
        self._rate, self._next_s = rate, 0.0

    async def take(self, num_bytes: int) -> None:
        """Wait for the turn of that many bytes."""
        if self._rate is None:
            return
        now = time.monotonic()
        turn_s = max(self._next_s, now - CREDIT_S)
        self._next_s = turn_s + num_bytes / self._rate
        if turn_s > now:
            await asyncio.sleep(turn_s - now)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]

    def first(self, name: str, default: str = "") -> str:
        """The first value of that name in the query."""
        return self.query.get(name, [default])[0]


@dataclass(frozen=True)
class Reply:
    """Headers and either a body, or a range of a file."""

    status: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: Path | None = None
    start: int = 0
    length: int = 0


def answer(root: Path, request: Request) -> Reply:
    """What S3 would answer; reads the file system, sends nothing."""
    if request.method not in ("GET", "HEAD"):
        return _error("405 Method Not Allowed", "MethodNotAllowed")
    bucket, _, key = request.path.lstrip("/").partition("/")
    folder, path = root / bucket, root / bucket / key
    if ".." in path.parts or not folder.is_dir():
        return _error("404 Not Found", "NoSuchBucket")
    if not key:
        return _list(folder, bucket, request) if request.method == "GET" else Reply("200 OK")
    return _object(path, request) if path.is_file() else _error("404 Not Found", "NoSuchKey")


def _object(path: Path, request: Request) -> Reply:
    stat = path.stat()
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "ETag": _etag(path),
        "Last-Modified": email.utils.formatdate(stat.st_mtime, usegmt=True),
    }
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if not wanted:
        return Reply("200 OK", headers, file=path, length=stat.st_size)
    first, last = wanted.groups()
    start = int(first) if first else max(0, stat.st_size - int(last))
    end = min(int(last) + 1, stat.st_size) if first and last else stat.st_size
    if start >= end:
        return _error("416 Requested Range Not Satisfiable", "InvalidRange")
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{stat.st_size}"
    return Reply("206 Partial Content", headers, file=path, start=start, length=end - start)


def _etag(path: Path) -> str:
    stat = path.stat()
    return f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'


def _list(folder: Path, bucket: str, request: Request) -> Reply:
    if "location" in request.query:
        return Reply("200 OK", body=b"<LocationConstraint/>")
    prefix, delimiter = request.first("prefix"), request.first("delimiter")
    keys = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    after = request.first("continuation-token") or request.first("start-after")
    found = [key for key in keys if key.startswith(prefix) and key > after]
    limit = int(request.first("max-keys", str(MAX_KEYS)))
    page, entries, folders = found[:limit], [], {}
    for key in page:
        inner, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        if mark:
            folders[prefix + inner + mark] = True
        else:
            entries.append(_entry(key, folder / key))
    more = len(found) > len(page)
    body = "".join(
        [
            f"<Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix>",
            f"<KeyCount>{len(page)}</KeyCount><MaxKeys>{limit}</MaxKeys>",
            f"<IsTruncated>{str(more).lower()}</IsTruncated>",
            f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else "",
            *entries,
            *(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders),
        ]
    )
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    text = f'<ListBucketResult xmlns="{namespace}">{body}</ListBucketResult>'
    return Reply("200 OK", {"Content-Type": "application/xml"}, text.encode())


def _entry(key: str, path: Path) -> str:
    stat = path.stat()
    modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
    return (
        f"<Contents><Key>{escape(key)}</Key><Size>{stat.st_size}</Size>"
        f"<ETag>{escape(_etag(path))}</ETag><LastModified>{modified}</LastModified>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
    )


def _error(status: str, code: str) -> Reply:
    body = f"<Error><Code>{code}</Code><Message>{status}</Message></Error>"
    return Reply(status, {"Content-Type": "application/xml"}, body.encode())


class Server:
    """Serves `root`. num_bytes: a shared counter of the bodies' bytes."""

    def __init__(self, root: Path, rate: float | None, num_bytes: Any) -> None:
        self._root, self._cap, self._num_bytes = root, Cap(rate), num_bytes
        self._bytes_of: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until it is closed."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                request = await _read_request(reader)
                if request.path == COUNTS:
                    reply = Reply("200 OK", body=json.dumps(self._bytes_of).encode())
                    await self._send(writer, request, reply, is_counted=False)
                else:
                    await self._send(writer, request, answer(self._root, request))
        writer.close()

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        request: Request,
        reply: Reply,
        *,
        is_counted: bool = True,
    ) -> None:
        length = reply.length if reply.file else len(reply.body)
        headers = {"Content-Length": str(length), "Server": "capped", **reply.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {reply.status}\r\n{head}\r\n".encode())
        if request.method == "GET":
            for piece in _pieces(reply):
                await self._cap.take(len(piece))
                if is_counted:  # before a client can have it
                    self._num_bytes.value += len(piece)
                    self._bytes_of[request.path.lstrip("/")] += len(piece)
                writer.write(piece)
                await writer.drain()
        await writer.drain()


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    await reader.readexactly(int(headers.get("content-length", 0)))
    url = urlsplit(target)
    return Request(method, unquote(url.path), parse_qs(url.query, True), headers)


def _pieces(reply: Reply) -> Iterator[bytes]:
    if reply.file is None:
        yield reply.body
        return
    left = reply.length
    with reply.file.open("rb") as file:
        file.seek(reply.start)
        while left:
            piece = file.read(min(PIECE_BYTES, left))
            left -= len(piece)
            yield piece


@dataclass(frozen=True)
class Running:
    """endpoint: the URL to give to S3 clients. num_bytes: how much has been sent so far."""

    endpoint: str
    _counter: Any

    @property
    def num_bytes(self) -> int:
        return int(self._counter.value)

    def bytes_of(self) -> Counter[str]:
        """How much has been sent so far, by `bucket/key`."""
        with urllib.request.urlopen(f"{self.endpoint}{COUNTS}") as answered:
            return Counter(json.load(answered))

    def http_url(self, bucket: str, key: str) -> str:
        """The URL of an object for plain HTTP clients."""
        return f"{self.endpoint}/{bucket}/{quote(key)}"


def _run(root: Path, rate: float | None, counter: Any, port: int, ready: Any) -> None:
    async def main() -> None:
        # Only the server writes the counter, so it needs no lock.
        server = Server(root, rate, counter)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", port, limit=1 << 20)
        ready.send(listening.sockets[0].getsockname()[1])
        async with listening:
            await listening.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


@contextlib.contextmanager
def running(root: Path, rate: float | None, port: int = 0) -> Iterator[Running]:
    """Serve a folder from a separate process. rate: bytes per second, None for no cap."""
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0, lock=False)
    here, there = context.Pipe()
    process = context.Process(target=_run, args=(root, rate, counter, port, there), daemon=True)
    process.start()
    there.close()
    try:
        yield Running(f"http://127.0.0.1:{here.recv()}", counter)
    finally:
        process.terminate()
        process.join()


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="its folders are the buckets")
    parser.add_argument("--rate-mb-s", type=float, default=100, help="the cap (100); 0: none")
    parser.add_argument("--port", type=int, default=9000)
    args = parser.parse_args()
    with running(args.folder, args.rate_mb_s * 1e6 or None, args.port) as server:
        print(f"serving {args.folder} at {server.endpoint}")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
