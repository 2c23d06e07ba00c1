"""Clusters that grow and shrink while a run goes on, and workers that are told to end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from latentcache.core.records import ShardReport
from latentcache.planning.planned import PlannedCache
from latentcache.running.driver import Run
from latentcache.running.events import Died, Event, Left, Progress, Retried, Started
from latentcache.running.worker import SHARDS_IN_HAND
from tests.tools.caches import assert_same_cache, make_config
from tests.tools.clusters import add_machine, end_cluster, start_cluster
from tests.tools.encoders.slow import ENCODE_S
from tests.tools.planned import planned_from
from tests.tools.videos import moving_pattern, write_video

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
]
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20}
NUM_VIDEOS, NUM_CLIPS = 6, 5


@pytest.fixture(params=[1, 0], ids=["gpus", "cpus"])
def node(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A machine with a pretended GPU, or without."""
    return {**NODE, "num_gpus": request.param}


@pytest.fixture
def cluster(node: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv(ENCODE_S, "0.5")
    cluster = start_cluster(**node)
    yield cluster
    end_cluster(cluster)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(NUM_VIDEOS):
        pixels = moving_pattern(5 * NUM_CLIPS, 64, 96, seed=index)
        write_video(folder / f"v{index}.mp4", pixels)
    return folder


def prepare(folder: Path, corpus: Path, encoder: dict[str, Any], **run: object) -> PlannedCache:
    """Plan a cache of NUM_VIDEOS * NUM_CLIPS shards."""
    folder.mkdir(exist_ok=True)
    path = make_config(
        folder,
        corpus,
        str(folder / "cache"),
        encoder=encoder,
        cache={"shard_clips": 1},
        run={"device": "auto", **run},
    )
    return planned_from(path)


def meeting(folder: Path, processes: int) -> dict[str, Any]:
    """An encoder that encodes nothing before so many processes have one."""
    folder.mkdir(exist_ok=True)
    kind = "tests.tools.encoders.meeting"
    return {"kind": kind, "folder": str(folder), "processes": processes}


def assert_as_local(cache: Path, corpus: Path, folder: Path, encoder: dict[str, Any]) -> None:
    """Compare a cache with one that a single process makes with the same encoder."""
    prepared = prepare(folder, corpus, encoder, runner="local")
    for _ in Run(prepared, prepared.missing_shards()).events():
        pass
    assert_same_cache(cache, folder / "cache")


class Seen:
    """What a run has told so far."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.events: list[Event] = []
        self.num_shards = 0

    def add(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Started):
            self.started.append(event.name)
        if isinstance(event, ShardReport):
            self.num_shards += 1

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_machines_that_come_are_used_and_those_that_go_are_not_waited_for(
    cluster: Cluster, node: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    """Nothing is encoded before there are three workers, so a run that did not look would not end."""
    encoder = meeting(tmp_path / "meeting", 3)
    prepared = prepare(tmp_path / "ray", corpus, encoder, runner="ray", ray_address=cluster.address)
    run, seen, added, is_shrunk = Run(prepared, prepared.missing_shards()), Seen(), [], False
    added_at = waited_s = 0.0
    for event in run.events():
        seen.add(event)
        if not added and seen.started:
            added = [add_machine(cluster, **node) for _ in range(2)]
            added_at = time.monotonic()
        if not waited_s and len(seen.started) == 3:
            waited_s = time.monotonic() - added_at
        if not is_shrunk and len(list((tmp_path / "meeting").iterdir())) == 3:
            is_shrunk = True
            for each in added:
                cluster.remove_node(each, allow_graceful=False)
    print(f"workers were up on both machines that came {waited_s:.1f} s after they were there")
    assert is_shrunk
    assert seen.num_shards == NUM_VIDEOS * NUM_CLIPS
    # a worker that went may have committed a shard and not lived to say so: another one adopts it
    assert run.summary.shards + run.summary.shards_elsewhere == NUM_VIDEOS * NUM_CLIPS
    assert run.summary.shards_failed == 0
    assert_as_local(tmp_path / "ray" / "cache", corpus, tmp_path / "local", encoder)


def actors() -> list[psutil.Process]:
    """The workers' processes of the clusters that this one has started."""
    family = psutil.Process().children(recursive=True)
    return [child for child in family if "ray::EncodeActor" in " ".join(child.cmdline())]


@pytest.mark.parametrize("node", [1], ids=["gpus"], indirect=True)
def test_a_worker_that_gets_sigterm_gives_back_what_it_has_not_begun(
    cluster: Cluster, node: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    """What it encodes waits for another worker, and is finished nevertheless."""
    encoder = meeting(tmp_path / "meeting", 2)
    prepared = prepare(tmp_path / "ray", corpus, encoder, runner="ray", ray_address=cluster.address)
    run, seen, is_told = Run(prepared, prepared.missing_shards()), Seen(), False
    for event in run.events():
        seen.add(event)
        if not is_told and isinstance(event, Progress) and event.shards_in_hand == SHARDS_IN_HAND:
            (own,) = actors()
            own.terminate()
            add_machine(cluster, **node)
            is_told = True
    (left, *_) = seen.of(Left)
    assert left.name == seen.started[0]
    assert left.num_given_back >= SHARDS_IN_HAND - 1
    assert not seen.of(Died)
    assert not seen.of(Retried)
    assert run.summary.shards_failed == run.summary.retries == 0
    assert_as_local(tmp_path / "ray" / "cache", corpus, tmp_path / "local", encoder)


def test_a_machine_that_is_to_go_is_left_in_order(
    cluster: Cluster, node: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    """Ray is told so by autoscalers, and by `ray start --block` when it gets SIGTERM."""
    encoder = {"kind": "tests.tools.encoders.slow"}
    other = add_machine(cluster, **node)
    cluster.wait_for_nodes()
    prepared = prepare(tmp_path / "ray", corpus, encoder, runner="ray", ray_address=cluster.address)
    run, seen, is_told = Run(prepared, prepared.missing_shards()), Seen(), False
    for event in run.events():
        seen.add(event)
        if not is_told and len(seen.started) == 2:
            accepted, why = GcsClient(address=cluster.address).drain_node(
                other.node_id,
                autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
                "to be preempted",
                int(time.time() * 1000) + 600_000,
            )
            assert accepted, why
            is_told = True
    (left,) = seen.of(Left)
    assert not seen.of(Died)
    assert not seen.of(Retried)
    assert left.name in seen.started
    assert run.summary.shards_failed == run.summary.retries == 0
    assert_as_local(tmp_path / "ray" / "cache", corpus, tmp_path / "local", encoder)
