"""A source on this machine: copied where it is remote or a part, identified by content, opened once."""

from __future__ import annotations

import contextlib
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from latentcache.decoders import decord, image, look, pyav
from latentcache.decoders.facts import VideoFacts
from latentcache.decoders.identity import identify, local_path
from latentcache.decoders.index import read_index
from latentcache.decoders.trouble import machine_trouble, read_through
from latentcache.errors import ClipError
from latentcache.storage.part_files import open_whole_or_part
from latentcache.storage.parts import part_of
from latentcache.storage.urls import redact_url, without_query

#: What a temporary file's name may end in; FFmpeg looks at it where a file's content says nothing.
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,16}")

#: What is fetched between two signs of life.
_PIECE_BYTES = 1 << 20
#: A file that was changed so lately can change again within one tick of the clock that its times follow.
_YOUNG_NS = 2_000_000_000


class Reader(Protocol):
    """What decoders expose: presentation times in s, facts of the pictures, and frames by index."""

    name: str
    times_s: npt.NDArray[np.float64]
    end_s: float
    facts: VideoFacts

    def frames(self, indices: npt.NDArray[np.int64]) -> Any:
        """Yield the frames [h, w, 3] uint8 at ascending indices, each distinct one once."""
        ...


class Source:
    """One source, local or copied to a temporary file that goes with `close`.

    on_piece: called after every piece that is fetched, or read through. Raises ClipError where there is
    no such file, OSError and ProcessTroubleError where it cannot be read, or kept.
    """

    def __init__(
        self,
        url: str,
        kind: str,
        options: Mapping[str, Any] | None = None,
        max_pixels: int | None = None,
        on_piece: Callable[[], object] = lambda: None,
    ) -> None:
        self.url = url
        self._on_piece = on_piece
        self._kind = kind
        self._max_pixels = max_pixels
        self._closing = contextlib.ExitStack()
        self._reader: Reader | None = None
        self._read_stamp: tuple[int, ...] | None = None
        self.path = self._local_path(options)
        self._stamp = self._look()
        self.identity = self._identify()

    def _look(self) -> tuple[int, ...]:
        """Return what changes where the file is written or replaced."""
        stat = Path(self.path).stat()
        return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def _identify(self) -> str:
        with Path(self.path).open("rb") as file:
            return identify(file)

    def is_as_opened(self) -> bool:
        """Tell whether the file has the content that it had when it was opened.

        Decoders open it again, each at its own time. Raises OSError.
        """
        stamp = self._look()
        if stamp == self._stamp and time.time_ns() - max(stamp[-2:]) > _YOUNG_NS:
            return True
        is_same = self._identify() == self.identity
        self._stamp = stamp if is_same else self._stamp
        return is_same

    def read_through(self) -> None:
        """Read all of the file, once: what a decoder says against it counts only then. Raises OSError."""
        if self._read_stamp != self._stamp:
            read_through(self.path, self._on_piece)
            self._read_stamp = self._stamp

    def _local_path(self, options: Mapping[str, Any] | None) -> str:
        path = local_path(self.url, options)
        if path is not None:
            return path
        part = part_of(self.url)
        suffix = (
            posixpath.splitext(without_query(self.url))[1] if part is None else f".{part.suffix}"
        )
        suffix = suffix if _SUFFIX.fullmatch(suffix) else ""
        try:
            temporary = tempfile.NamedTemporaryFile(  # noqa: SIM115
                prefix="latentcache-",
                suffix=suffix,
                buffering=0,  # what is in a buffer would fail again when the file is closed
            )
        except OSError as error:
            raise machine_trouble(error) from error
        self._closing.enter_context(temporary)
        try:
            self._fetch(options, temporary)
        except BaseException:
            self.close()
            raise
        return str(temporary.name)

    def _fetch(self, options: Mapping[str, Any] | None, target: IO[bytes]) -> None:
        try:
            with open_whole_or_part(self.url, options) as remote:
                while piece := remote.read(_PIECE_BYTES):
                    _keep(target, piece)
                    self._on_piece()
        except FileNotFoundError:
            raise ClipError("missing", f"no such file: {redact_url(self.url)}") from None

    def reader(self, without_decord: bool = False) -> Reader:
        """Open with decord where it is right, else with PyAV, once. Raises ClipError."""
        if self._reader is None or (without_decord and self._reader.name == decord.NAME):
            self._reader = self._open(without_decord)
        return self._reader

    def _open(self, without_decord: bool) -> Reader:
        if self._kind == "image":
            return image.Reader(self.path, self._max_pixels)
        index = read_index(self.path, self._max_pixels)
        if not index.suits_decord:
            index, _ = look.checked(self.path, index, self._max_pixels)
        elif not without_decord:  # headers say all of these, and the probe has looked
            with contextlib.suppress(*decord.Error):  # PyAV says what is wrong, if anything is
                reader = decord.Reader(self.path, index)
                self._closing.callback(reader.close)
                return reader
        return pyav.Reader(self.path, index, self._max_pixels)

    def close(self) -> None:
        """Remove the temporary file, if there is one."""
        self._reader = None
        self._closing.close()


def _keep(file: IO[bytes], piece: bytes) -> None:
    """Write to the end of an unbuffered file. Raises ProcessTroubleError where its disk is full."""
    rest = memoryview(piece)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise machine_trouble(error) from error
