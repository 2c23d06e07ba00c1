"""Compacting into faults of storage: each clip is there once at any moment, and the end is the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.copying.lab import CopyLab, no_waiting, options_of
from tests.faults import Backend, file_backend, memory_backend, sftp_backend
from tests.tools.caches import read_files
from tests.tools.copied import clips_of, make_fragmented
from tests.tools.faulty import KINDS, WRITE_KINDS

BACKENDS = ("memory", "file", "sftp")


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with no_waiting():
        yield


def compacting(folder: Path, backend: Backend, shard_format: str) -> CopyLab:
    make_fragmented(folder, format=shard_format)
    return CopyLab(
        start=read_files(folder / "cache"),
        command=lambda place: (
            "compact",
            place.url,
            "--below=1",
            *options_of(place, "cache.storage_options"),
        ),
        clips=clips_of,
        backend=backend,
    )


def backend_of(name: str, folder: Path) -> Backend:
    if name == "memory":
        return memory_backend()
    return file_backend(folder) if name == "file" else sftp_backend(folder)


def test_compacting_is_stopped_at_every_write(tmp_path: Path) -> None:
    lab = compacting(tmp_path, memory_backend(), "zarr")
    numbers = lab.count()
    assert numbers["torn"] > 8
    assert all(lab.run("torn", at) for at in range(numbers["torn"]))


def test_compacting_meets_faults_of_every_kind(tmp_path: Path) -> None:
    lab, rng = compacting(tmp_path, memory_backend(), "parquet"), random.Random(1)
    for kind, count in lab.count().items():
        assert lab.run(kind, rng.randrange(count)), kind


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_operation_of_compacting_may_fail_in_every_way(
    backend: str, shard_format: str, tmp_path: Path
) -> None:
    lab = compacting(tmp_path, backend_of(backend, tmp_path), shard_format)
    assert KINDS.keys() > WRITE_KINDS
    for kind, count in lab.count().items():
        for at in range(count):
            lab.run(kind, at)
