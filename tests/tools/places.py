"""Where caches lie in tests of faults: memory, files, files over a network and S3, each under `faulty://`."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from tests.tools.faulty import SECRET
from tests.tools.s3 import S3

#: Kinds of backends.
BACKENDS = ("memory", "file", "sftp", "s3")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Where caches go. wraps, like, options: of the file system under `faulty://`."""

    wraps: str
    root: str
    like: str = "s3"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def place(self) -> Place:
        return Place(self, f"{self.root}/{uuid.uuid4().hex[:12]}")


def memory_backend() -> Backend:
    return Backend(wraps="memory", root="/faults")


def file_backend(folder: Path) -> Backend:
    return Backend(wraps="file", root=str(folder / "file"), like="file")


def sftp_backend(folder: Path) -> Backend:
    return Backend(wraps="file", root=str(folder / "sftp"), like="sftp")


def s3_backend(url: str, options: Mapping[str, Any]) -> Backend:
    return Backend(wraps="s3", root=url.removeprefix("s3://"), options=options)


def backends_of(folder: Path, s3: S3) -> dict[str, Backend]:
    """One of each kind; s3: a bucket."""
    return {
        "memory": memory_backend(),
        "file": file_backend(folder),
        "sftp": sftp_backend(folder),
        "s3": s3_backend(s3.url, s3.options),
    }


@dataclass(frozen=True)
class Place:
    """One cache's folder."""

    backend: Backend
    path: str

    @property
    def url(self) -> str:
        return f"faulty://{self.path}"

    @property
    def storage_options(self) -> dict[str, Any]:
        return {
            "wraps": self.backend.wraps,
            "like": self.backend.like,
            "wrapped_options": {**self.backend.options, "password": SECRET},
        }

    def _filesystem(self) -> Any:
        fs = fsspec.filesystem(self.backend.wraps, **self.backend.options)
        fs.invalidate_cache()
        return fs

    def files(self) -> dict[str, bytes]:
        """Every finished object, path in the cache -> bytes, read past the faults."""
        fs, start = self._filesystem(), len(self.path) + 1
        found = [name for name in fs.find(self.path) if not name.endswith(".tmp")]
        return {name[start:]: fs.cat_file(name) for name in found}

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write objects past the faults."""
        fs = self._filesystem()
        for name, data in files.items():
            fs.makedirs(f"{self.path}/{name}".rpartition("/")[0], exist_ok=True)
            fs.pipe_file(f"{self.path}/{name}", data)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem().rm(self.path, recursive=True)
