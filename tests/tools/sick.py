"""A file system that falls ill: fsspec's `sick://` over local files, while a file named `.sick` says how.

The file holds `WHAT NUMBER`: operation `open` or `read`, and the errno of the system. Every process sees it
at once. As a program it is a decoding process that knows of the file system, and waits for nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from latentcache.decoders import process
from latentcache.decoders.source import Source
from latentcache.storage import retry
from tests.tools import sleeper

MARK = ".sick"


class SickFileSystem(LocalFileSystem):
    """Local files under a name that nobody takes for local."""

    protocol = "sick"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("sick://")

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> Any:
        suffer("open", path)
        return SickFile(Path(path).open("rb"), path)


class SickFile:
    """An open file; everything but `read` is the other's."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file, self._path = file, path

    def read(self, length: int = -1) -> bytes:
        suffer("read", self._path)
        return self._file.read(length)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> SickFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def suffer(what: str, path: str) -> None:
    """Raise the error of the day."""
    mark = Path(path).parent / MARK
    if mark.exists():
        operation, number = mark.read_text().split()
        if operation == what:
            raise OSError(int(number), os.strerror(int(number)))


@contextmanager
def sick(folder: Path, what: str, number: int) -> Iterator[None]:
    """Let an operation on every file of a folder fail within."""
    (folder / MARK).write_text(f"{what} {number}")
    try:
        yield
    finally:
        (folder / MARK).unlink()


fsspec.register_implementation("sick", "tests.tools.sick.SickFileSystem", clobber=True)


class Worker(sleeper.Worker):
    """Is killed from outside by the signal that the environment names; hangs as a sleeper does."""

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if number := os.environ.get("LATENTCACHE_TEST_KILL"):
            os.kill(os.getpid(), int(number))
        return super().answer(request)

    def _open(self, request: Mapping[str, Any]) -> Source:
        if "dead-mount" in request["url"]:
            with self._reading():  # as the kernel waits for a mount whose server is gone
                time.sleep(1000)
        return super()._open(request)


if __name__ == "__main__":
    retry.FIRST_WAIT_S = 0.0
    process.Worker = Worker  # type: ignore[misc]
    process.main()
