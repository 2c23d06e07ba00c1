"""Storage that fails at its k-th operation: runs go on or stop with a reason, resume, and end the same.

`python -m tests.faults` does it for as long as you like; the long form here tries every operation.
"""

from __future__ import annotations

import io
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.config.sections import CorpusConfig
from latentcache.corpus.probe import probe_sources
from latentcache.corpus.sources import Corpus, read_corpus
from latentcache.decoders import process
from latentcache.decoders.identity import identify_url
from latentcache.decoders.pool import DecodePool
from latentcache.decoders.source import Source
from latentcache.errors import (
    LatentCacheError,
    SourceError,
    StorageError,
    UnreachableError,
)
from latentcache.storage import retry
from tests.faults import JOBS, FaultLab
from tests.tools.fault_lab import quick_runs
from tests.tools.faulty import FAULTS, SECRET, Faults, places_of
from tests.tools.places import BACKENDS, Backend, backends_of, memory_backend
from tests.tools.s3 import new_bucket, s3_server_fixture  # noqa: F401 fixture

#: What the short form runs; the long form runs every job on every backend.
SHORT = [
    ("memory", "grow"),
    ("file", "repair"),
    ("sftp", "precompute"),
]
#: Places that the short form tries of each kind of fault.
NUM_SAMPLED = 1


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, FaultLab]]:
    with quick_runs() as pool:
        yield {
            name: FaultLab(tmp_path_factory.mktemp(name), pool, name)
            for name in ("zarr", "parquet")
        }


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory, s3_server: str) -> dict[str, Backend]:
    return backends_of(tmp_path_factory.mktemp("backends"), new_bucket(s3_server))


@pytest.mark.parametrize(("backend", "job"), SHORT)
def test_a_run_that_meets_a_fault_ends_as_one_that_does_not(
    labs: dict[str, FaultLab], backends: dict[str, Backend], backend: str, job: str
) -> None:
    lab, rng = labs["zarr"], random.Random(f"{backend} {job}")
    for kind, count in lab.num_operations[job].items():
        for at in rng.sample(range(count), NUM_SAMPLED):
            lab.run(backends[backend], job, kind, at, seed=at)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_operation_may_fail_in_every_way(
    labs: dict[str, FaultLab], backends: dict[str, Backend], backend: str, job: str, every: int
) -> None:
    for kind, at in places_of(labs["zarr"].num_operations[job], every):
        labs["zarr"].run(backends[backend], job, kind, at, seed=at)


def test_what_becomes_of_each_kind_of_fault(labs: dict[str, FaultLab]) -> None:
    def statuses(kind: str) -> set[int]:
        count = lab.num_operations["precompute"][kind]
        places = range(0, count, 8)
        return {lab.run(memory_backend(), "precompute", kind, at).status for at in places}

    lab = labs["zarr"]
    assert statuses("transient") == {3}, "a passing fault must not stop a run"
    assert 3 not in statuses("outage"), "without storage there is nothing that a run could finish"
    assert statuses("lost_reply_once") == {3}


@pytest.mark.parametrize("shard_format", ["zarr", pytest.param("parquet", marks=pytest.mark.long)])
def test_a_stream_through_faults_gives_right_samples_or_none(
    labs: dict[str, FaultLab], shard_format: str
) -> None:
    lab = labs[shard_format]
    place = lab.put_clean(memory_backend())
    num_places = lab.count_reads(place)
    allowed: dict[str, tuple[type[Exception], ...]] = {
        "transient": (),
        "delay": (),
        "outage": (UnreachableError,),
        "refused": (StorageError,),
        "truncated": (),  # what fails its CRC32C is read once more
        "flipped": (),
    }
    for kind, expected in allowed.items():
        assert num_places[kind] > 5
        errors = [lab.stream(place, kind, at) for at in range(num_places[kind])]
        wrong = [error for error in errors if error and not isinstance(error, expected)]
        assert not [error for error in errors if SECRET in str(error)]
        assert not wrong, wrong
        if expected:
            assert any(errors)


# The corpus


def test_a_plan_does_not_lose_sources_to_an_outage(corpus: tuple[str, dict[str, Any]]) -> None:
    """What the decoding process says of a source that it cannot reach ends the planning."""
    FAULTS["default"] = Faults()
    config = CorpusConfig(source=corpus[0], storage_options=corpus[1], schemes=["faulty"])
    sources = read_corpus(config).table
    FAULTS["default"] = Faults("outage", 3)
    worker = process.Worker(process.Buffers([]), {"options": corpus[1], "max_pixels": 1 << 30})

    class Pool:
        window = 1

        def probe(
            self, url: str, kind: str, *, identity_only: bool, times: bool
        ) -> Future[dict[str, Any]]:
            request = {"op": "probe", "url": url, "kind": kind, "identity_only": identity_only}
            answer, future = worker.answer(request), Future[dict[str, Any]]()
            assert answer["lacks"] == "source"
            future.set_exception(SourceError(answer["message"]))
            return future

    with pytest.raises(SourceError, match=r"cannot read .*tried"):
        probe_sources(sources, cast(DecodePool, Pool()))


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    """URL and options of a folder with media, captions and a table in each format."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    folder, fs = f"/corpus/{uuid.uuid4().hex}", fsspec.filesystem("memory")
    for index in range(3):
        fs.pipe_file(f"{folder}/v{index}.mp4", bytes([index]) * 300_000)
        fs.pipe_file(f"{folder}/v{index}.txt", f"caption {index}".encode())
    rows = [{"video": f"v{index}.mp4", "caption": f"number {index}"} for index in range(3)]
    lines = ["video,caption", *(f"{row['video']},{row['caption']}" for row in rows)]
    fs.pipe_file(f"{folder}/table.csv", "\n".join(lines).encode())
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    fs.pipe_file(f"{folder}/table.parquet", table.getvalue())
    options = {"wraps": "memory", "wrapped_options": {"password": SECRET}}
    return f"faulty://{folder}", options


def outcomes(function: Any, kinds: list[str]) -> Iterator[tuple[str, Any, Any]]:
    """Call with every fault of these kinds; yields kind, what it returned, what it raised."""
    faults = FAULTS["default"] = Faults()
    function()
    numbers = faults.num_places()
    for kind, at in places_of({kind: numbers[kind] for kind in kinds}, every=1):
        FAULTS["default"] = Faults(kind, at, seed=at)
        try:
            yield kind, function(), None
        except (LatentCacheError, OSError) as error:
            yield kind, None, error


@pytest.mark.parametrize("source", ["", "/*.mp4", "/table.csv", "/table.parquet"])
def test_a_corpus_is_read_whole_or_not_at_all(
    corpus: tuple[str, dict[str, Any]], source: str
) -> None:
    def read() -> Corpus:
        options = {"storage_options": corpus[1], "schemes": ["faulty"]}
        return read_corpus(CorpusConfig(source=corpus[0] + source, **options))

    FAULTS["default"] = Faults()
    expected = read().table
    for kind, found, error in outcomes(read, ["transient", "outage", "refused", "delay"]):
        if kind in ("outage", "refused"):
            assert isinstance(error, StorageError), (kind, error)
            assert "not there" not in str(error), kind
        else:
            assert error is None, (kind, error)
            assert found.table.equals(expected)


@pytest.mark.parametrize("read", ["identify", "fetch"])
def test_a_source_is_itself_or_an_error(corpus: tuple[str, dict[str, Any]], read: str) -> None:
    def identity() -> str:
        if read == "identify":
            return identify_url(f"{corpus[0]}/v1.mp4", corpus[1])
        source = Source(f"{corpus[0]}/v1.mp4", "video", corpus[1])
        source.close()
        return source.identity

    FAULTS["default"] = Faults()
    expected = identity()
    kinds = ["transient", "outage", "refused", "delay", "truncated"]
    for kind, found, error in outcomes(identity, kinds):
        if kind == "outage":
            assert isinstance(error, UnreachableError)
        elif kind == "refused":
            assert isinstance(error, StorageError)
        else:
            assert error is None, (kind, error)
            assert found == expected, kind
