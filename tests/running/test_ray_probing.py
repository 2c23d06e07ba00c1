"""Probing in tasks: the same plan as with processes, whatever is lost on the way."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from latentcache.config.files import load_config
from latentcache.config.sections import Config
from latentcache.decoders.pool import DecodePool
from latentcache.errors import ClipError, LatentCacheError, MachineError, SourceError
from latentcache.planning.planner import Hooks, grow_cache, probing_pool
from latentcache.running.probing import prober_of
from latentcache.running.runners import ray_probing
from latentcache.running.runners.ray_probing import (
    Batch,
    ClusterProber,
    _outcomes,
    _settle,
    probe_batch,
)
from tests.tools.caches import make_config, make_corpus
from tests.tools.clusters import add_machine, end_cluster, start_cluster
from tests.tools.planned_files import planned_files

NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}


def done(result: dict[str, Any] | LatentCacheError) -> Future[dict[str, Any]]:
    future: Future[dict[str, Any]] = Future()
    if isinstance(result, LatentCacheError):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def test_trouble_that_is_no_sources_fault_is_the_outcome_of_all_that_is_left() -> None:
    class OwnError(SourceError):
        """Of a subclass, which may not be there on the driver."""

    never: Future[dict[str, Any]] = Future()
    bad = ClipError("corrupt", "no frame")
    found = _outcomes([done({"identity": "x"}), done(bad), done(OwnError("away")), never])
    assert found[:2] == [{"identity": "x"}, bad]
    assert [(type(error), str(error)) for error in found[2:]] == [(SourceError, "away")] * 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MachineError("no room"), "on node7: no room"),
        (SourceError("away"), "away"),
        (ClipError("corrupt", "no frame"), "no frame"),
    ],
)
def test_trouble_of_another_machine_names_it(error: LatentCacheError, message: str) -> None:
    future: Future[dict[str, Any]] = Future()
    _settle(future, error, "node7")
    found = future.exception()
    assert (type(found), str(found)) == (type(error), message)


def test_processes_of_this_machine_probe_where_no_cluster_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_config(str(make_config(tmp_path, tmp_path, str(tmp_path / "cache"))))

    def prober(**run: object) -> object:
        return prober_of(config.model_copy(update={"run": config.run.model_copy(update=run)}))

    for run in ({}, {"runner": "ray"}, {"runner": "local", "ray_address": "auto"}):
        pool = prober(**run)
        assert isinstance(pool, DecodePool)
        pool.close()
    assert isinstance(prober(runner="ray", ray_address="auto"), ClusterProber)


@pytest.mark.slow
def test_a_batch_finds_what_a_pool_finds(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    config = load_config(str(make_config(tmp_path, corpus, str(tmp_path / "cache"))))
    files = [path for path in sorted(corpus.iterdir()) if path.suffix != ".txt"]
    asked = [
        {"url": str(path), "kind": "image" if path.suffix == ".png" else "video"} for path in files
    ]
    _, found = probe_batch(Batch(config=config, requests=asked, neighbours=[], search=[]))
    with probing_pool(config) as pool:
        expected = _outcomes([pool.probe(**each) for each in asked])
    assert list(map(repr, found)) == list(map(repr, expected))
    assert sum(isinstance(outcome, ClipError) for outcome in found) == 1  # page.mp4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = start_cluster(**NODE)
    yield cluster
    end_cluster(cluster)


def config_in(folder: Path, corpus: Path, **run: object) -> Config:
    folder.mkdir()
    path = make_config(folder, corpus, str(folder / "cache"), run=run)
    return load_config(str(path))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_machine_that_is_lost_while_it_probes_costs_no_source(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_probing, "BATCH", 3)
    corpus = make_corpus(tmp_path / "corpus", 60)
    here, there = (
        config_in(tmp_path / "local", corpus),
        config_in(tmp_path / "ray", corpus, runner="ray", ray_address=cluster.address),
    )
    node = add_machine(cluster, **NODE)
    cluster.wait_for_nodes()
    num_probed = 0

    def lose() -> None:
        nonlocal num_probed
        num_probed += 1
        if num_probed == 10:
            cluster.remove_node(node, allow_graceful=False)

    grow_cache(there, hooks=Hooks(on_probed=lose), prober=prober_of)
    assert num_probed > 60
    grow_cache(here)
    assert planned_files(tmp_path / "local" / "cache")
    assert planned_files(tmp_path / "ray" / "cache") == planned_files(tmp_path / "local" / "cache")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_cluster_that_cannot_run_tasks_stops_planning_with_one_message(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    config = config_in(tmp_path / "ray", corpus, runner="ray", ray_address=cluster.address)
    monkeypatch.setattr(ray_probing, "probe_batch", lambda batch: batch.no_such_thing)
    with pytest.raises(MachineError, match=r"probing on the Ray cluster failed: .*AttributeError"):
        grow_cache(config, prober=prober_of)
    assert not planned_files(tmp_path / "ray" / "cache")
