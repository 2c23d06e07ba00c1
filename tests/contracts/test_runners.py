"""What every runner must do with what an encoder raises: the same events, the same rows, the same end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image

from latentcache.config.sections import RunConfig
from latentcache.core.records import ShardReport
from latentcache.errors import (
    ConfigError,
    EncoderError,
    LatentCacheError,
    MachineError,
    RunStoppedError,
)
from latentcache.format.paths import samples_folder
from latentcache.format.schemas import RUN_COLUMNS
from latentcache.format.tables import read_table
from latentcache.running.driver import Run
from latentcache.running.events import GaveUp, Retried, Started
from latentcache.running.runners.ray_cluster import connect
from latentcache.running.summary import Summary
from tests.tools.caches import make_config
from tests.tools.encoders.raising import (
    KINDS,
    OF_CLIP,
    OF_IMPORT,
    OF_RUN,
    OF_SHARD,
    OF_WORKER,
    grey,
)
from tests.tools.planned import planned_from

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
]

RUNNERS = ("local", "ray")
MAX_RETRIES = 2
FINE = ("fine0", "fine1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray, started once for all runs here."""
    assert connect(RunConfig(runner="ray"))
    yield
    ray.shutdown()


@dataclass
class Outcome:
    """What came of a run: events and rows by the name of the source, and how it ended."""

    events: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_started: int = 0
    summary: Summary | None = None
    error: LatentCacheError | None = None


def write_images(folder: Path, kinds: Mapping[str, str | None]) -> Path:
    """An image of each kind, by name: each is a shard of its own."""
    folder.mkdir()
    for name, kind in kinds.items():
        pixels = np.full((32, 32, 3), grey(kind), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def run(runner: str, folder: Path, kinds: Mapping[str, str | None], **encoder: str) -> Outcome:
    folder.mkdir()
    config = make_config(
        folder,
        write_images(folder / "images", kinds),
        str(folder / "cache"),
        clips={"frames": 1, "size": [32, 32]},
        encoder={"kind": "tests.tools.encoders.raising", **encoder},
        cache={"shard_clips": 1},
        run={"runner": runner, "max_retries": MAX_RETRIES, "max_failed_fraction": 1},
        quality={"every": 0},
    )
    prepared, outcome = planned_from(config), Outcome()
    (bucket,) = prepared.manifest.buckets
    shards = prepared.missing_shards()
    names = {
        shard.number: Path(prepared.plan.shard(shard).clips[0].source).stem for shard in shards
    }
    run = Run(prepared, shards)
    try:
        for event in run.events():
            if isinstance(event, Retried | GaveUp):
                task = event.task
                facts = (type(event), task.attempts, task.error)
                outcome.events.setdefault(names[task.shard.number], []).append(facts)
            elif isinstance(event, ShardReport):
                facts = (ShardReport, event.num_ok, tuple(event.failures))
                outcome.events.setdefault(names[event.shard], []).append(facts)
            outcome.num_started += isinstance(event, Started)
    except LatentCacheError as error:
        outcome.error = error
    for name in prepared.storage.list(samples_folder(bucket.name)):
        table = read_table(prepared.storage, f"{samples_folder(bucket.name)}/{name}")
        (row,) = table.drop_columns([c for c in RUN_COLUMNS if c in table.column_names]).to_pylist()
        outcome.rows[Path(row["source"]).stem] = row
    outcome.summary = run.summary
    return outcome


@pytest.fixture(scope="module")
def outcomes(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """One run of each runner over an image for every kind of error that does not stop it."""
    folder = tmp_path_factory.mktemp("outcomes")
    kinds = {name: name for name in (*OF_SHARD, *OF_CLIP)}
    return {
        runner: run(runner, folder / runner, {**kinds, **dict.fromkeys(FINE)}) for runner in RUNNERS
    }


@pytest.mark.parametrize("kind", [*OF_SHARD, *OF_CLIP, *FINE])
def test_runners_tell_the_same_of_what_an_encoder_raises(
    outcomes: dict[str, Outcome], kind: str
) -> None:
    local, on_ray = (outcomes[runner] for runner in RUNNERS)
    assert local.events[kind] == on_ray.events[kind]
    assert local.rows[kind] == on_ray.rows[kind]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("kind", OF_SHARD)
def test_a_shard_is_retried_and_then_given_up(
    outcomes: dict[str, Outcome], kind: str, runner: str
) -> None:
    *retries, (last, num_ok, _) = outcomes[runner].events[kind]
    assert [(event, attempts) for event, attempts, _ in retries] == [
        (Retried, attempt + 1) for attempt in range(MAX_RETRIES)
    ]
    assert (last, num_ok) == (ShardReport, 0)
    (error,) = {error for _, _, error in retries}
    row = outcomes[runner].rows[kind]
    assert (row["status"], row["reason"], row["message"]) == ("failed", "shard_failed", error)
    assert "hunter2" not in error
    assert "\n" not in error


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("KeyError", "KeyError: 'weights'"),
        ("RuntimeError", "RuntimeError: size mismatch"),
        ("MemoryError", "MemoryError"),
        ("SystemExit", "SystemExit: 3"),
        ("unloadable", "UnloadableError: layer conv_in has no weight 3"),
        ("unpicklable", "UnpicklableError: holds a lock"),
        ("speechless", "SpeechlessError"),
    ],
)
def test_the_message_is_the_encoders_own(
    outcomes: dict[str, Outcome], kind: str, error: str, runner: str
) -> None:
    assert outcomes[runner].rows[kind]["message"] == error


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("kind", OF_CLIP)
def test_a_clips_error_is_its_row_at_once(
    outcomes: dict[str, Outcome], kind: str, runner: str
) -> None:
    ((event, num_ok, _),) = outcomes[runner].events[kind]
    assert (event, num_ok) == (ShardReport, 0)
    assert outcomes[runner].rows[kind]["reason"] == "non_finite"


@pytest.mark.parametrize("runner", RUNNERS)
def test_no_error_costs_the_worker_or_another_shard(
    outcomes: dict[str, Outcome], runner: str
) -> None:
    outcome = outcomes[runner]
    assert (outcome.error, outcome.num_started) == (None, 1)
    for name in FINE:
        assert outcome.events[name] == [(ShardReport, 1, ())]
        assert outcome.rows[name]["status"] == "ok"


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_shard_that_was_given_up_is_not_counted_as_written(
    outcomes: dict[str, Outcome], runner: str
) -> None:
    summary = outcomes[runner].summary
    assert summary is not None
    assert summary.shards == len(OF_CLIP) + len(FINE)
    assert summary.shards_failed == len(summary.shard_errors) == len(OF_SHARD)
    assert summary.retries == MAX_RETRIES * len(OF_SHARD)
    assert (summary.clips_ok, summary.clips_failed) == (len(FINE), len(OF_SHARD) + len(OF_CLIP))


@pytest.mark.parametrize(
    ("kind", "runner"),
    [
        # A run on Ray takes 20 s: one kind of error is enough to show that it comes through.
        pytest.param(kind, runner, marks=[pytest.mark.long] if rest and runner == "ray" else [])
        for rest, kind in enumerate(OF_RUN)
        for runner in RUNNERS
    ],
)
def test_storage_and_the_gate_stop_the_run(
    cluster: None, tmp_path: Path, kind: str, runner: str
) -> None:
    outcome = run(runner, tmp_path / runner, {"bad": kind})
    expected = KINDS[kind]()
    assert isinstance(expected, type(outcome.error))
    assert isinstance(outcome.error, LatentCacheError)
    assert str(outcome.error) == str(expected)
    assert (outcome.events, outcome.rows) == ({}, {})


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_gpu_that_fails_stops_the_run_and_no_shard_is_recorded(
    cluster: None, tmp_path: Path, runner: str
) -> None:
    (kind,) = OF_WORKER
    outcome = run(runner, tmp_path / runner, {"bad": kind})
    assert type(outcome.error) is MachineError
    assert "RuntimeError: CUDA error: an illegal memory access was encountered." in str(
        outcome.error
    )
    assert outcome.rows == {}
    # Another process may be well; the local runner has none.
    assert outcome.num_started == (1 + MAX_RETRIES if runner == "ray" else 1)


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.long)])
@pytest.mark.parametrize("when", ["bad", "build"])
def test_an_import_that_fails_stops_the_run(
    cluster: None, tmp_path: Path, when: str, runner: str
) -> None:
    (kind, *_) = OF_IMPORT
    clip, build = ({"bad": kind}, {}) if when == "bad" else ({"fine": None}, {"build": kind})
    outcome = run(runner, tmp_path / runner, clip, **build)
    assert type(outcome.error) is RunStoppedError
    assert "the installation is broken: ImportError: no module named" in str(outcome.error)
    assert (outcome.events, outcome.rows) == ({}, {})


@pytest.mark.parametrize(
    ("kind", "error", "runner"),
    [
        ("KeyError", "KeyError: 'weights'", "local"),
        pytest.param("KeyError", "KeyError: 'weights'", "ray", marks=pytest.mark.long),
        ("SystemExit", "SystemExit: 3", "local"),
        pytest.param("SystemExit", "SystemExit: 3", "ray", marks=pytest.mark.long),
    ],
)
def test_a_worker_that_cannot_start_stops_the_run_with_the_cause(
    cluster: None, tmp_path: Path, kind: str, error: str, runner: str
) -> None:
    outcome = run(runner, tmp_path / runner, {"fine": None}, build=kind)
    assert type(outcome.error) is EncoderError
    assert "worker could not start" in str(outcome.error)
    assert str(outcome.error).endswith(f": {error}")
    assert (outcome.events, outcome.rows) == ({}, {})


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.long)])
def test_a_wrong_configuration_is_found_once(cluster: None, tmp_path: Path, runner: str) -> None:
    outcome = run(runner, tmp_path / runner, {"fine": None}, build="ConfigError")
    assert type(outcome.error) is ConfigError
    assert str(outcome.error) == "no such layer"
