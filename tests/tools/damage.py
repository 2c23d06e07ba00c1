"""Damage of a cache, and the job that looks for it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jobs.verify
from latentcache.core.records import ShardId
from latentcache.format.shards import get_format
from latentcache.planning.planned import PlannedCache


def flip(path: Path, offset: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def shard_objects(cache: Path, bucket: str) -> Iterator[tuple[Path, bytes]]:
    """Yield the shard objects of a bucket of a cache on this disk, with their bytes."""
    for path in sorted((cache / "latents" / bucket).rglob("*")):
        if path.is_file() and path.suffix != ".json":
            yield path, path.read_bytes()


def shard_file(prepared: PlannedCache, shard: ShardId) -> Path:
    layout = prepared.manifest.layouts()[shard.bucket]
    path = get_format(prepared.manifest.format).path(layout, shard.number)
    return Path(prepared.storage.url) / path


def run_verify(*args: object, status: int = 0) -> tuple[str, str]:
    """Run the job in this process; returns what it printed to stdout and to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["latentcache verify", *map(str, args)])
        assert jobs.verify.main() == status, out.getvalue() + err.getvalue()
    return out.getvalue(), err.getvalue()
