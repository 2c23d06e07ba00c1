"""A source on this machine: fetched where it is remote, identified by its content, opened once."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from latentcache.decoders import decord, image, pyav
from latentcache.decoders.identity import identify
from latentcache.errors import ClipError
from latentcache.storage import open_filesystem, open_source


class Reader(Protocol):
    """What decoders expose: presentation times in s and frames by index."""

    name: str
    times_s: npt.NDArray[np.float64]
    end_s: float

    def frames(self, indices: npt.NDArray[np.int64]) -> Any:
        """Yield the frames [h, w, 3] uint8 at ascending indices, each distinct one once."""
        ...


class Source:
    """One source, local or fetched to a temporary file that goes with `close`."""

    def __init__(self, url: str, kind: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        self._kind = kind
        self._temporary: Any = None
        self._reader: Reader | None = None
        self.path = self._local_path(options)
        with Path(self.path).open("rb") as file:
            self.identity = identify(file)

    def _local_path(self, options: Mapping[str, Any] | None) -> str:
        fs, path = open_filesystem(self.url, options)
        protocol = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
        if "file" in protocol:
            if not Path(path).exists():
                raise ClipError("missing", f"no such file: {self.url}")
            if not Path(path).is_file():
                raise ClipError("unreadable", f"not a regular file: {self.url}")
            return path
        self._temporary = tempfile.NamedTemporaryFile(  # noqa: SIM115 closed by close()
            prefix="latentcache-", suffix=Path(path).suffix
        )
        try:
            with open_source(self.url, options) as remote:
                shutil.copyfileobj(remote, self._temporary, 1 << 20)
        except FileNotFoundError:
            raise ClipError("missing", f"no such file: {self.url}") from None
        self._temporary.flush()
        return str(self._temporary.name)

    def reader(self, without_decord: bool = False) -> Reader:
        """Open with decord where it is right, else with PyAV, once. Raises ClipError."""
        if self._reader is None or (without_decord and self._reader.name == decord.NAME):
            self._reader = self._open(without_decord)
        return self._reader

    def _open(self, without_decord: bool) -> Reader:
        if self._kind == "image":
            return image.Reader(self.path)
        times_s, end_s = pyav.read_times(self.path)
        if not without_decord and pyav.suits_decord(self.path):
            with contextlib.suppress(*decord.Error):  # PyAV says what is wrong, if anything is
                return decord.Reader(self.path, times_s, end_s)
        return pyav.Reader(self.path, times_s, end_s)

    def close(self) -> None:
        """Remove the temporary file, if there is one."""
        self._reader = None
        if self._temporary is not None:
            self._temporary.close()
