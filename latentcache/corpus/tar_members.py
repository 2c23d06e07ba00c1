"""The members of a tar file and where their bytes are. Nothing is unpacked, and names are only names."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, cast

from latentcache.core.units import human_bytes
from latentcache.errors import CorpusError, StorageError
from latentcache.redaction import printable

_BLOCK_BYTES = tarfile.BLOCKSIZE
#: Zeros after the end: of so many blocks together, where its writer was asked for no more.
_PADDING_BYTES = 64 << 10
#: What a member's headers may take together, with its long name: tarfile reads as much as they claim.
_MAX_HEADER_BYTES = 1 << 20
#: What compressed files begin with, and what expands them.
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\0": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


@dataclass(frozen=True)
class Member:
    """A member of a tar file: where its bytes are. is_file: it is neither a link nor anything else."""

    name: str
    offset: int
    size: int
    is_file: bool


def read_members(file: IO[bytes], where: str) -> Iterator[Member]:
    """Yield the members of a tar file, without its folders; the file may be moved in meanwhile.

    Raises CorpusError where it is compressed, cut off, or no tar file, and StorageError.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(_BLOCK_BYTES)
    _refuse_compressed(head, where)
    file.seek(0)
    try:
        headers = _Headers(file)
        with tarfile.open(fileobj=cast("IO[bytes]", headers), mode="r:", encoding="utf-8") as tar:
            yield from _members(tar, headers, where, size)
            end = tar.offset
    except StorageError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError, *_HOSTILE) as error:
        raise _broken(where, str(error) or type(error).__name__) from None
    _check_end(file, where, end)


#: What headers that claim too much, or that name one another without an end, lead to.
_HOSTILE = (OverflowError, MemoryError, RecursionError)


class _Headers:
    """A tar file of which only so much is read for each member: what it claims may not be there."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell
        self.left_bytes = _MAX_HEADER_BYTES

    def read(self, num_bytes: int) -> bytes:
        """Read. Raises ReadError at the limit, and for a number below 0, with which the rest is meant."""
        self.left_bytes -= num_bytes
        if num_bytes < 0 or self.left_bytes < 0:
            raise tarfile.ReadError(
                f"the headers of a member claim more than {human_bytes(_MAX_HEADER_BYTES)}"
            )
        return self._file.read(num_bytes)


def _members(tar: tarfile.TarFile, headers: _Headers, where: str, size: int) -> Iterator[Member]:
    before = -1
    while (info := tar.next()) is not None:
        headers.left_bytes = _MAX_HEADER_BYTES
        tar.members = []  # type: ignore[attr-defined] # it would keep all of them
        if info.offset_data <= before or info.size < 0:
            raise tarfile.ReadError("a header leads backwards")
        before = info.offset_data
        if info.isdir():
            continue
        if info.sparse is not None:
            raise CorpusError(
                f"{where}: {printable(info.name)} is stored as a sparse file, which is no range of bytes. "
                "Write the tar file again without --sparse."
            )
        if info.isreg() and info.offset_data + info.size > size:
            raise tarfile.ReadError(f"it ends within {printable(info.name)}")
        _check_name(info.name, where)
        yield Member(info.name, info.offset_data, info.size, info.isreg())


def _check_name(name: str, where: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise CorpusError(
            f"{where}: the member name {name!a} is not UTF-8, so a table cannot hold it. Rename the member."
        ) from None


def _refuse_compressed(head: bytes, where: str) -> None:
    for start, program in _COMPRESSED.items():
        if head.startswith(start):
            raise CorpusError(
                f"{where} is compressed, so its members cannot be read by themselves. Videos and images "
                f"hardly shrink: expand it once with {program}, and name the .tar file."
            )


def _check_end(file: IO[bytes], where: str, end: int) -> None:
    """Refuse a tar file without its end, and one with more after it: samples would be lost unsaid."""
    file.seek(end)
    if file.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
        raise _broken(where, "it has no end")
    if any(file.read(_PADDING_BYTES)):
        raise CorpusError(
            f"{where} goes on after its end, as tar files do that were put together with cat; what follows "
            "would be lost. Name the tar files one by one, or join them with tar --concatenate."
        )


def _broken(where: str, why: str) -> CorpusError:
    return CorpusError(
        f"{where} is no whole tar file: {printable(why)}. It was cut off, or is still written. Copy it "
        "again; what is written under another name and renamed at the end is never seen half done."
    )
