"""Reads of files on http that end after so many bytes, whatever a server sends; ranges are checked.

A server may ignore that a range is asked for, or give another one, and need not say how long a file is;
fsspec reads all of it, and takes any range for the one that was asked for.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from latentcache.storage.filesystems import protocols
from latentcache.storage.seekable import SeekableFile

#: What is read at a time where bytes are passed over.
_PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes (\d+)-(\d+)/")


class NotTheRangeError(Exception):
    """A server's answer is not the range of bytes that was asked for."""


def is_http_filesystem(fs: Any) -> bool:
    """Tell whether a file system is fsspec's for http."""
    return "http" in protocols(fs)


def http_reader(fs: Any) -> Callable[..., Any]:
    """Return a function that reads files of an http file system: see `_Reads.read`.

    Like the functions of asynchronous file systems it can be cancelled: see `limits.call`.
    """
    reads = _Reads(fs)

    @functools.wraps(reads.read)
    def read(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(reads.read(*args, **kwargs), reads.loop).result()

    return read


class _Reads:
    def __init__(self, fs: Any) -> None:
        self._fs = fs
        self.loop = fs.loop

    async def read(
        self,
        paths: Sequence[str],
        max_bytes: int,
        start: int | None = None,
        *,
        on_error: str = "raise",
    ) -> list[bytes | BaseException]:
        """Read at most so many bytes of each file, concurrently.

        start: ask for the range of max_bytes that begins there. A server that gives no ranges sends the
        file from its first byte; if that was asked for, one byte more is read, which tells. None: ask for
        the whole file. on_error: `return` what went wrong in place of a file's bytes, or `raise` it.
        Raises NotTheRangeError where the bytes are others.
        """
        tasks = [asyncio.ensure_future(self._one(path, max_bytes, start)) for path in paths]
        try:
            return await asyncio.gather(*tasks, return_exceptions=on_error == "return")
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, path: str, max_bytes: int, start: int | None) -> bytes:
        settings = dict(self._fs.kwargs)
        if start is not None:
            wanted = {
                "Range": f"bytes={start}-{start + max_bytes - 1}",
                "Accept-Encoding": "identity",  # else it is a range of what is compressed
            }
            settings["headers"] = {**settings.get("headers", {}), **wanted}
        left = max_bytes + (start is not None)
        session = await self._fs.set_session()
        async with session.get(self._fs.encode_url(path), **settings) as answer:
            self._fs._raise_not_found_for_status(answer, path)
            length = None if start is None else _length_of_range(answer, start, max_bytes)
            chunks = []
            while left and (chunk := await answer.content.read(left)):
                chunks.append(chunk)
                left -= len(chunk)
        data = b"".join(chunks)
        if length not in (None, len(data)):
            raise NotTheRangeError
        return data


def _length_of_range(answer: Any, start: int, max_bytes: int) -> int | None:
    """Return how long the range is that an answer says it is; None of a whole file, from its first byte.

    Raises NotTheRangeError of any other range than was asked for.
    """
    if answer.status != 206 and start == 0:
        return None
    found = _RANGE.match(answer.headers.get("Content-Range", ""))
    if found is None:
        raise NotTheRangeError
    first, last = int(found[1]), int(found[2])
    if first != start or not first <= last < start + max_bytes:
        raise NotTheRangeError
    return last + 1 - first


def open_http(fs: Any, path: str, **settings: Any) -> Any:
    """Open a file of an http file system for reading; settings: of its `open`.

    Its reads raise NotTheRangeError of a server that gives other ranges than are asked for, or none: see
    `InOrder`.
    """
    facts = fs.info(path)
    if not (size := facts["size"]):
        return fs.open(path, "rb", **settings)
    if facts.get("partial") is False:
        return InOrder(fs, path, size)
    file = fs.open(path, "rb", size=size, **settings)
    read = http_reader(fs)
    file.cache.fetcher = lambda start, end: read([path], end - start, start)[0][: end - start]
    return file


class InOrder(SeekableFile):
    """A file of a server that gives no ranges: it comes from its first byte on.

    It is fetched again from there for bytes that have passed.
    """

    def __init__(self, fs: Any, path: str, size: int) -> None:
        super().__init__(size)
        self.size = size
        self._open = functools.partial(fs.open, path, "rb", block_size=0)
        self._stream: Any = None
        self._passed = 0

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes; none at the end, or where the answer ends."""
        if self._stream is None or self._passed > self._position:
            self._leave()
            self._stream = self._open()
        try:
            while self._passed < self._position and self._next(self._position - self._passed):
                pass
            data = b"" if self._passed < self._position else self._next(size)
        except BaseException:
            self._leave()
            raise
        if size and not data:
            self._leave()
        self._position += len(data)
        return data

    def _next(self, size: int) -> bytes:
        data = bytes(self._stream.read(_PIECE_BYTES if size < 0 else min(size, _PIECE_BYTES)))
        self._passed += len(data)
        return data

    def _leave(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._passed = None, 0

    def close(self) -> None:
        """Let the connection go."""
        self._leave()
        super().close()
