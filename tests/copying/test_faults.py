"""Jobs that copy clips meet faults of storage: each clip is there once, and the end is the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.copying.lab import CopyLab, no_waiting, options_of
from tests.tools.caches import read_files
from tests.tools.copied import clips_of, make_fragmented
from tests.tools.faulty import places_of
from tests.tools.places import (
    Backend,
    Place,
    file_backend,
    memory_backend,
    s3_backend,
    sftp_backend,
)
from tests.tools.planned import make_cache
from tests.tools.s3 import new_bucket, s3_server_fixture  # noqa: F401 fixture

#: Storage and format of the long form. S3 is tried with one format: each operation of it takes longest.
PRODUCT = [
    *itertools.product(("memory", "file", "sftp"), ("zarr", "parquet")),
    ("s3", "zarr"),
]
JOBS = ("compact", "merge", "copy")


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with no_waiting():
        yield


def lab_of(job: str, folder: Path, backend: Backend, shard_format: str = "zarr") -> CopyLab:
    """Compacting a cache in place; merging it with another one; copying it into the other format."""
    make_fragmented(folder, format=shard_format)
    files = read_files(folder / "cache")
    if job == "compact":
        return CopyLab(
            start=files,
            command=lambda place: ("compact", place.url, "--below=1", *options(place)),
            clips=clips_of,
            backend=backend,
        )
    make_cache(folder, "second", format=shard_format)
    first, second = backend.place(), backend.place()
    first.put(files)
    second.put(read_files(folder / "second"))
    other = {"zarr": "parquet", "parquet": "zarr"}[shard_format]
    commands = {
        "merge": lambda place: ("merge", first.url, second.url, "-o", place.url, *options(place)),
        "copy": lambda place: ("copy", first.url, place.url, "--format", other, *options(place)),
    }
    return CopyLab(start={}, command=commands[job], clips=clips_of, backend=backend, is_new=True)


def options(place: Place) -> list[str]:
    return options_of(place, "cache.storage_options")


def backend_of(name: str, folder: Path, server: str) -> Backend:
    if name == "memory":
        return memory_backend()
    if name == "s3":
        bucket = new_bucket(server)
        return s3_backend(bucket.url, bucket.options)
    return file_backend(folder) if name == "file" else sftp_backend(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "step"), [("compact", 3), pytest.param("merge", 4, marks=pytest.mark.long)]
)
def test_a_job_is_stopped_at_its_writes(job: str, step: int, tmp_path: Path) -> None:
    lab = lab_of(job, tmp_path, memory_backend())
    numbers = lab.count()
    assert numbers["torn"] > 8
    assert all(lab.run("torn", at) for at in range(0, numbers["torn"], step))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "shard_format"),
    [pytest.param("compact", "parquet", marks=pytest.mark.long), ("copy", "zarr")],
)
def test_a_job_meets_faults_of_every_kind(job: str, shard_format: str, tmp_path: Path) -> None:
    lab, rng = lab_of(job, tmp_path, memory_backend(), shard_format), random.Random(1)
    for kind, count in lab.count().items():
        assert lab.run(kind, rng.randrange(count)), kind


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("backend", "shard_format"), PRODUCT)
@pytest.mark.parametrize("job", JOBS)
def test_every_operation_may_fail_in_every_way(
    job: str, backend: str, shard_format: str, tmp_path: Path, s3_server: str, every: int
) -> None:
    lab = lab_of(job, tmp_path, backend_of(backend, tmp_path, s3_server), shard_format)
    for kind, at in places_of(lab.count(), every):
        lab.run(kind, at)
