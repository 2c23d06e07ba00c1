"""Tar files of samples, as WebDataset's writers make them, and as nobody should."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes | tarfile.TarInfo]], mode: str = "w"
) -> Path:
    """Write members by name; a TarInfo is written as it is, without bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if isinstance(data, bytes):
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                tar.addfile(info)
    return path


def pack(folder: Path, tars: Sequence[tuple[Path, Sequence[str]]]) -> None:
    """Write files of a folder into tar files."""
    for path, names in tars:
        write_tar(path, [(name, (folder / name).read_bytes()) for name in names])
