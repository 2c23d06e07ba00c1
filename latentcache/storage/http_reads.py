"""Reads of files on http that end after so many bytes, whatever a server sends.

A server may ignore that a range is asked for, and need not say how long a file is; fsspec reads all of it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any

from latentcache.storage.filesystems import protocols


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

        start: ask for the range of max_bytes that begins there; a server that gives no ranges sends the
        file from its first byte. One byte more is read then, which tells. None: ask for the whole file.
        on_error: `return` what went wrong in place of a file's bytes, or `raise` it.
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
            wanted = {"Range": f"bytes={start}-{start + max_bytes - 1}"}
            settings["headers"] = {**settings.get("headers", {}), **wanted}
        left = max_bytes + (start is not None)
        session = await self._fs.set_session()
        async with session.get(self._fs.encode_url(path), **settings) as answer:
            self._fs._raise_not_found_for_status(answer, path)
            chunks = []
            while left and (chunk := await answer.content.read(left)):
                chunks.append(chunk)
                left -= len(chunk)
        return b"".join(chunks)
