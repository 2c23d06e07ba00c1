"""Storage that fails at its k-th operation while fields are made, finished, repaired or dropped."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.tools.fault_lab import quick_runs
from tests.tools.faulty import places_of
from tests.tools.field_lab import FIELD_JOBS, FieldLab
from tests.tools.places import BACKENDS, Backend, backends_of
from tests.tools.s3 import new_bucket, s3_server_fixture  # noqa: F401 fixture

#: What the short form runs; the long form runs every job on every backend.
SHORT = [("memory", "add"), ("memory", "repair"), ("file", "drop"), ("sftp", "retry")]
#: Kinds of faults of which the short form tries one place each.
SHORT_KINDS = ("outage", "torn_once", "lost_reply")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FieldLab]:
    with quick_runs() as pool:
        yield FieldLab(tmp_path_factory.mktemp("lab"), pool)


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory, s3_server: str) -> dict[str, Backend]:
    return backends_of(tmp_path_factory.mktemp("backends"), new_bucket(s3_server))


@pytest.mark.parametrize(("backend", "job"), SHORT)
def test_a_run_of_fields_that_meets_a_fault_ends_as_one_that_does_not(
    lab: FieldLab, backends: dict[str, Backend], backend: str, job: str
) -> None:
    rng = random.Random(f"{backend} {job}")
    for kind in SHORT_KINDS:
        at = rng.randrange(lab.num_operations[job][kind])
        lab.run(backends[backend], job, kind, at, seed=at)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("job", FIELD_JOBS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_operation_of_a_run_of_fields_may_fail_in_every_way(
    lab: FieldLab, backends: dict[str, Backend], backend: str, job: str, every: int
) -> None:
    for kind, at in places_of(lab.num_operations[job], every):
        lab.run(backends[backend], job, kind, at, seed=at)
