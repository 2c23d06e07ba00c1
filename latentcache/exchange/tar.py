"""Tar files as WebDataset has them: made whole in memory, and their members found by place."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from latentcache.errors import CorpusError
from latentcache.exchange.damage import read_whole, refuse
from latentcache.exchange.files import UNLOADABLE, is_plain, load_torch_bytes, read_part
from latentcache.storage.folder import Storage

if TYPE_CHECKING:
    import torch

#: No file is larger, unless a row by itself is.
FILE_BYTES = 64 << 20
#: A tar file is made of such, and ends with some of zeros.
BLOCK_BYTES = 512
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in a tar file: where its bytes are."""

    path: str
    name: str
    offset: int
    num_bytes: int

    def read(self, storage: Storage) -> bytes:
        """Return its bytes. Raises CorpusError if the tar file has changed meanwhile."""
        return read_part(storage, self.path, self.offset, self.num_bytes)


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a tar file of members by name; the same members give the same bytes.

    Names of up to 100 bytes are written as USTAR has them; longer ones get a header of PAX.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read_members(storage: Storage, path: str) -> list[Member]:
    """Return the files in a tar file, in order; see `read_whole`."""
    with read_whole(storage, path, (tarfile.TarError, ValueError, EOFError), _not_whole):
        source = (
            storage.local_path(path).open("rb")
            if storage.is_local
            else io.BytesIO(storage.read(path))
        )
        with source, tarfile.open(fileobj=source, mode="r:") as tar:
            found = [
                Member(path=path, name=info.name, offset=info.offset_data, num_bytes=info.size)
                for info in tar
                if info.isreg()
            ]
        size = storage.size(path)
        end = storage.read_ranges(path, [(max(0, size - BLOCK_BYTES), BLOCK_BYTES)])[0]
        if size % BLOCK_BYTES or any(end):
            raise ValueError("it has no end")
    return found


def _not_whole(error: Exception) -> str:
    return f"is no whole tar file: {error}"


def tensor_in(storage: Storage, member: Member) -> torch.Tensor:
    """Return the tensor of a member, of any shape; see `read_whole`."""

    def why(error: Exception) -> str:
        first = str(error).strip().split("\n")[0]
        return f"has a file {member.name} that is no tensor: {first}"

    with read_whole(storage, member.path, UNLOADABLE, why):
        found = load_torch_bytes(member.read(storage))
    if not is_plain(found):
        raise no_tensor(storage, member)
    tensor: torch.Tensor = found.detach()
    return tensor


def no_tensor(storage: Storage, member: Member) -> CorpusError:
    """Return the error of a member that is not a tensor as latents are one."""
    return refuse(storage, member.path, f"has a file {member.name} that is no tensor of latents")


def in_groups(rows: Sequence[T], row_bytes: Sequence[int]) -> list[list[T]]:
    """Return rows in groups, each for one file. row_bytes: what each takes in a file."""
    groups: list[list[T]] = []
    left = 0
    for row, num_bytes in zip(rows, row_bytes, strict=True):
        if not groups or num_bytes > left:
            groups.append([])
            left = FILE_BYTES
        groups[-1].append(row)
        left -= num_bytes
    return groups
