"""Objects of remote file systems: written so that they appear whole; what stores answer, and can list."""

from __future__ import annotations

import inspect
from typing import Any

from latentcache.storage import retry
from latentcache.storage.filesystems import protocols
from latentcache.storage.spill import Data
from latentcache.storage.temporary import temporary_name

#: File systems whose files appear while they are written, and whose rename replaces a file as a whole.
SHOWS_HALVES = {"sftp", "ssh"}
RANGE_NOT_SATISFIABLE = 416
PRECONDITION_FAILED = 412
#: Statuses with which stores without conditional writes may answer one; S3's also mean other things.
NO_CONDITIONS = (400, 405, 501)

#: File systems whose clients send large objects slice by slice, as bytes.
SLICES = {"s3", "s3a"}
#: Objects that are smaller may be sent with one request: see `Storage.write`.
WHOLE_BYTES = 1 << 27


def put(fs: Any, path: str, data: Data) -> None:
    """Write one object of a remote file system so that it appears whole."""
    if not SHOWS_HALVES & set(protocols(fs)):
        fs.pipe_file(path, _whole(fs, data))
        return
    folder, name = path.rsplit("/", 1)
    temporary = f"{folder}/{temporary_name(name)}"
    fs.makedirs(folder, exist_ok=True)
    fs.pipe_file(temporary, _whole(fs, data))
    fs.mv(temporary, path)


def create(fs: Any, path: str, data: Data) -> bool:
    """Write one object of a remote file system unless one is there; returns whether it was written."""
    if SHOWS_HALVES & set(protocols(fs)):
        if fs.exists(path):
            return False
        put(fs, path, data)
        return True
    try:
        fs.pipe_file(path, _whole(fs, data), mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        if retry.http_status(error) != PRECONDITION_FAILED:
            raise
        return False
    return True


def _whole(fs: Any, data: Data) -> Data:
    """Return bytes unless a client takes slices of the data, which are bytes then."""
    takes_slices = len(data) >= WHOLE_BYTES and SLICES & set(protocols(fs))
    return data if takes_slices else bytes(data)


def bytes_or_raise(got: bytes | BaseException) -> bytes:
    """Return what was read; nothing if a store refuses a range that starts past the end."""
    if isinstance(got, BaseException):
        if retry.http_status(got) != RANGE_NOT_SATISFIABLE:
            raise got
        return b""
    return got


def lists_prefixes(fs: Any) -> bool:
    """Tell whether a file system lists what begins with something, as object stores do."""
    find = getattr(fs, "_find", fs.find)
    return "prefix" in inspect.signature(find).parameters
