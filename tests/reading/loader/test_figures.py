"""A loader's stats in TensorBoard's files and in Weights & Biases: what it gave, never at its expense."""

from __future__ import annotations

import itertools
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader

from latentcache.core import sinks
from latentcache.core.sinks import SINKS
from latentcache.errors import ConfigError
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.synthetic import Synthetic, write_cache

BATCHES = 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write_cache(str(tmp_path_factory.mktemp("cache")), buckets={"5x32x32": 2 * BATCHES})


def loader_of(cache: Synthetic, **options: Any) -> LatentLoader:
    return LatentLoader(cache.url, batch_size=2, **options)


def drawn(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the scalars in a folder: (step, value) by name, in the order of time."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    found = accumulators.EventAccumulator(str(folder)).Reload()
    return {
        name: [(event.step, event.value) for event in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }


@pytest.mark.slow
def test_stats_are_written_at_the_end_of_each_epoch(cache: Synthetic, tmp_path: Path) -> None:
    loader = loader_of(cache, tensorboard=str(tmp_path))
    list(loader)
    list(loader)
    found = drawn(tmp_path / "loader-rank-0")
    assert found["loader/num_batches"] == [(BATCHES, BATCHES), (2 * BATCHES, 2 * BATCHES)]
    assert found["loader/num_samples"][-1] == (2 * BATCHES, loader.stats.num_samples)
    assert found["loader/num_bytes"][-1] == (2 * BATCHES, loader.stats.num_bytes)
    assert found["loader/wait_s"][-1][1] == pytest.approx(loader.stats.wait_s)
    assert all(0 < share <= 1 for _, share in found["loader/waiting"])


def test_an_epoch_that_is_broken_off_is_written_and_a_resumed_one_goes_on(
    cache: Synthetic, tmp_path: Path
) -> None:
    first, second = (
        loader_of(cache, tensorboard=str(tmp_path / name), rank=1, world_size=2)
        for name in ("first", "second")
    )
    for _ in itertools.islice(first, 2):
        pass
    second.load_state_dict(first.state_dict())
    for _ in itertools.islice(second, 1):
        pass
    steps = {
        name: drawn(tmp_path / name / "loader-rank-1")["loader/num_batches"]
        for name in ("first", "second")
    }
    assert steps == {"first": [(2, 2)], "second": [(3, 1)]}


def test_a_long_epoch_is_written_meanwhile(
    cache: Synthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "INTERVAL_S", -1.0)
    for _ in loader_of(cache, tensorboard=str(tmp_path)):
        pass
    numbers = [step for step, _ in drawn(tmp_path / "loader-rank-0")["loader/num_batches"]]
    assert numbers == [*range(1, BATCHES + 1), BATCHES]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_each_worker_has_a_file_of_its_own(cache: Synthetic, tmp_path: Path) -> None:
    loader = loader_of(cache, tensorboard=str(tmp_path))
    list(loader)  # the forks have a writer already, whose thread they have not
    loader.set_epoch(1)
    list(DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert len(list(loader)) == BATCHES  # the parent's goes on
    for worker in range(2):
        found = drawn(tmp_path / f"loader-rank-0-worker-{worker}")["loader/num_samples"]
        # A fork counts on from what the parent had counted, and takes half of the batches.
        assert found[-1] == (2 * BATCHES, 2 * BATCHES + BATCHES)


class Run:
    """Stands for a run of Weights & Biases."""

    def __init__(self) -> None:
        self.lines: list[tuple[dict[str, float], dict[str, Any]]] = []

    def log(self, values: dict[str, float], **options: Any) -> None:
        self.lines.append((values, options))


@pytest.mark.parametrize("is_trainers", [True, False])
def test_figures_go_into_the_trainers_own_run(
    is_trainers: bool, cache: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, begun = Run(), []

    def init(**options: Any) -> Run:
        begun.append(options)
        return run

    module = SimpleNamespace(run=run if is_trainers else None, init=init)
    monkeypatch.setitem(sys.modules, "wandb", module)
    list(loader_of(cache, wandb="project"))
    (values, options) = run.lines[-1]
    assert values["loader/num_batches"] == BATCHES
    # The trainer's own steps stay its own.
    assert options == ({"commit": False} if is_trainers else {"step": BATCHES})
    assert [options["project"] for options in begun] == ([] if is_trainers else ["project"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_worker_has_no_run(cache: Synthetic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=Run()))
    loader = loader_of(cache, wandb="project")
    workers = DataLoader(loader, batch_size=None, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(ConfigError, match="belongs to one process"):
        list(workers)


def test_a_sink_that_fails_is_said_once_and_stops_no_trainer(
    cache: Synthetic, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sinks, "INTERVAL_S", -1.0)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=object()))  # it has no `log`
    with caplog.at_level(logging.WARNING):
        assert len(list(loader_of(cache, wandb="project"))) == BATCHES
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("wandb: 'object' object has no attribute 'log'; nothing more")


@pytest.mark.parametrize("name", SINKS)
def test_a_package_that_is_not_installed_is_named(
    name: str, cache: Synthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, SINKS[name][0], None)
    with pytest.raises(ConfigError, match=rf"^{name} is set, but .*`pip install {SINKS[name][0]}`"):
        loader_of(cache, **{name: "x"})


@pytest.mark.parametrize("name", SINKS)
@pytest.mark.parametrize("wrong", ["", 3, True, b"runs"])
def test_anything_but_a_name_is_refused(name: str, wrong: Any, cache: Synthetic) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} is .*: it must be text"):
        loader_of(cache, **{name: wrong})


def test_a_folder_that_cannot_be_made_is_a_message(cache: Synthetic, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="tensorboard cannot be opened"):
        list(loader_of(cache, tensorboard=str(tmp_path / "file")))
