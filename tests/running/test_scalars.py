"""A run's figures in TensorBoard's files: what the run did, and never at its expense."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from latentcache.config.sections import NOT_OF_A_CACHE, RunConfig
from latentcache.core import sinks
from latentcache.core.records import ShardId
from latentcache.core.sinks import SINKS, Sinks
from latentcache.errors import ConfigError
from latentcache.running.driver import Run
from latentcache.running.events import Died, Progress, Retried, Task
from latentcache.running.scalars import Scalars, check_scalars, scalars_of
from tests.tools.caches import make_config, make_corpus
from tests.tools.planned import planned_from


class Kept:
    """A sink in memory."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def add(self, values: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


class Broken(Kept):
    def add(self, values: Mapping[str, float], step: int) -> None:
        raise OSError("the disk is full")


def test_events_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "INTERVAL_S", -1.0)
    kept = Kept()
    counted = Scalars(Sinks({"run.tensorboard": kept}))
    counted.take(Retried(task=Task(shard=ShardId("b", 0))))
    counted.take(Died(name="w", error="gone"))
    counted.take(Progress(clips_done=3, workers=2))
    step, values = kept.rows[-1]
    assert (step, values["latentcache/clips"], values["latentcache/workers"]) == (3, 3, 2)
    assert (values["latentcache/retries"], values["latentcache/deaths"]) == (1, 1)


def test_figures_are_not_written_at_each_event() -> None:
    kept = Kept()
    counted = Scalars(Sinks({"run.tensorboard": kept}))
    for done in range(100):
        counted.take(Progress(clips_done=done, workers=1))
    counted.close()
    assert [step for step, _ in kept.rows] == [0, 99]
    assert kept.closed


def test_a_sink_that_fails_is_said_once_and_stops_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "INTERVAL_S", -1.0)
    kept = Kept()
    counted = Scalars(Sinks({"run.wandb": Broken(), "run.tensorboard": kept}))
    with caplog.at_level(logging.WARNING):
        counted.take(Progress(clips_done=1, workers=1))
        counted.take(Progress(clips_done=2, workers=1))
    assert [record.message for record in caplog.records] == [
        "run.wandb: the disk is full; nothing more is written there"
    ]
    assert [step for step, _ in kept.rows] == [1, 2]


@pytest.mark.parametrize("name", SINKS)
def test_a_package_that_is_not_installed_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, SINKS[name][0], None)
    with pytest.raises(
        ConfigError, match=rf"run\.{name} is set, but .*`pip install {SINKS[name][0]}`"
    ):
        check_scalars(RunConfig(**{name: "x"}))
    check_scalars(RunConfig())


@pytest.mark.parametrize("name", SINKS)
def test_a_cache_brings_along_no_place_for_figures(name: str) -> None:
    assert ("run", name) in NOT_OF_A_CACHE


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"run\.tensorboard cannot be opened"),
        scalars_of(RunConfig(tensorboard=str(tmp_path / "file")), "run"),
    ):
        pass


@pytest.mark.slow
def test_a_run_in_tensorboard(tmp_path: Path) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    folder = tmp_path / "board"
    corpus = make_corpus(tmp_path / "corpus", 3)
    config = make_config(
        tmp_path, corpus, str(tmp_path / "cache"), run={"tensorboard": str(folder)}
    )
    planned = planned_from(config)
    run = Run(planned, planned.missing_shards())
    list(run.events())
    (event_file,) = folder.rglob("events.*")
    found = accumulators.EventAccumulator(str(event_file)).Reload()
    last = {name: found.Scalars(name)[-1].value for name in found.Tags()["scalars"]}
    assert last["latentcache/clips"] == run.summary.clips_ok + run.summary.clips_failed > 0
    assert last["latentcache/frames"] == run.summary.frames
    assert last["latentcache/encode_s"] == pytest.approx(run.summary.encode_s)
