"""Small file systems of their own: those that get full, and those that become read-only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def disk(folder: Path, num_bytes: int) -> Iterator[Callable[[str], None]]:
    """A file system of `num_bytes` at `folder`; yields what mounts it again with other options."""
    folder.mkdir()
    size = f"size={num_bytes}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted: {done.stderr.strip()}")

    def remount(options: str) -> None:
        while subprocess.run(["mount", "-o", f"remount,{options}", folder]).returncode:
            pass  # busy: a file is open for writing

    try:
        yield remount
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def pages(folder: Path) -> int:
    """The bytes that the files of a folder take on such a file system."""
    page = os.sysconf("SC_PAGESIZE")
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(-(-size // page) * page for size in sizes)
