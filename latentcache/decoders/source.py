"""A source on this machine: fetched where it is remote, identified by its content, opened once."""

from __future__ import annotations

import contextlib
import posixpath
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from latentcache.decoders import decord, image, look, pyav
from latentcache.decoders.facts import VideoFacts
from latentcache.decoders.identity import identify, local_path
from latentcache.decoders.index import read_index
from latentcache.errors import ClipError
from latentcache.storage.source_files import open_source
from latentcache.storage.urls import redact_url, without_query

#: What a temporary file's name may end in; FFmpeg looks at it where a file's content says nothing.
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,16}")


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
    """One source, local or fetched to a temporary file that goes with `close`."""

    def __init__(
        self,
        url: str,
        kind: str,
        options: Mapping[str, Any] | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.url = url
        self._kind = kind
        self._max_pixels = max_pixels
        self._closing = contextlib.ExitStack()
        self._reader: Reader | None = None
        self.path = self._local_path(options)
        with Path(self.path).open("rb") as file:
            self.identity = identify(file)

    def _local_path(self, options: Mapping[str, Any] | None) -> str:
        path = local_path(self.url, options)
        if path is not None:
            return path
        suffix = posixpath.splitext(without_query(self.url))[1]
        suffix = suffix if _SUFFIX.fullmatch(suffix) else ""
        temporary = tempfile.NamedTemporaryFile(prefix="latentcache-", suffix=suffix)  # noqa: SIM115
        self._closing.enter_context(temporary)
        try:
            with open_source(self.url, options) as remote:
                shutil.copyfileobj(remote, temporary, 1 << 20)
        except FileNotFoundError:
            raise ClipError("missing", f"no such file: {redact_url(self.url)}") from None
        temporary.flush()
        return str(temporary.name)

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
