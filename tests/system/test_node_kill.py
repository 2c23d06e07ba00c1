"""A cluster that loses a machine in the middle of a run, and one that gets another.

`python -m tests.chaos --runner cluster` does the same for as long as you like.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from latentcache.core.records import ShardReport
from latentcache.planning.planned import PlannedCache
from latentcache.running.driver import Run
from latentcache.running.events import Retried, Started
from tests.tools.caches import assert_same_cache, committed, make_config
from tests.tools.planned import planned_from
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
NODE = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 80 << 20}
NUM_VIDEOS = 14


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos") / "corpus", NUM_VIDEOS)


def make_videos(folder: Path, count: int) -> Path:
    """Some videos, and a file that is none."""
    folder.mkdir()
    for index in range(count):
        write_video(folder / f"v{index:03}.mp4", moving_pattern(5, 64, 96, seed=index))
    (folder / "page.mp4").write_text("<html>not found</html>")
    return folder


def prepare(folder: Path, corpus: Path, **run: object) -> PlannedCache:
    folder.mkdir(exist_ok=True)
    path = make_config(
        folder,
        corpus,
        str(folder / "cache"),
        encoder={"kind": "tests.tools.encoders.slow"},
        cache={"shard_clips": 1},
        run={"device": "auto", **run},
    )
    return planned_from(path)


@pytest.fixture(scope="module")
def clean(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    prepared = prepare(folder, corpus, runner="local")
    for _ in Run(prepared, prepared.missing_shards()).events():
        pass
    return folder / "cache"


@pytest.mark.long
def test_a_machine_that_dies_takes_only_its_shards_in_hand(
    cluster: Cluster, corpus: Path, clean: Path, tmp_path: Path
) -> None:
    node = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    # Not even where no shard may fail.
    prepared = prepare(tmp_path, corpus, runner="ray", ray_address=cluster.address, max_retries=0)
    run = Run(prepared, prepared.missing_shards())
    started, num_done, num_retried = set(), 0, 0
    before: dict[str, tuple[int, int]] = {}
    for event in run.events():
        num_done += isinstance(event, ShardReport)
        num_retried += isinstance(event, Retried)
        if isinstance(event, Started):
            started.add(event.worker)
        if len(started) == 2 and num_done >= 2 and not before:
            before = committed(tmp_path / "cache")
            cluster.remove_node(node, allow_graceful=False)
    assert before, "the run was over before the machine could be taken away"
    assert num_retried > 0
    assert run.summary.shards_failed == 0
    assert before.items() <= committed(tmp_path / "cache").items()
    assert_same_cache(tmp_path / "cache", clean)


@pytest.mark.long
def test_a_machine_that_comes_back_is_used_again(cluster: Cluster, tmp_path: Path) -> None:
    corpus = make_videos(tmp_path / "corpus", 150)
    nodes = [cluster.add_node(**NODE)]
    cluster.wait_for_nodes()
    prepared = prepare(tmp_path, corpus, runner="ray", ray_address=cluster.address)
    run = Run(prepared, prepared.missing_shards())
    starts: list[int] = []
    for event in run.events():
        if isinstance(event, Started):
            starts.append(event.worker)
        if len(starts) == 2 and len(nodes) == 1:
            cluster.remove_node(nodes[0], allow_graceful=False)
            nodes.append(cluster.add_node(**NODE))
    cluster.remove_node(nodes[1], allow_graceful=False)
    assert sorted(starts[:2]) == [0, 1]
    assert starts[2:] == [2]  # its worker is a new one, for another machine may have come as well
    assert run.summary.shards_failed == 0
    clean = tmp_path / "clean"
    prepared = prepare(clean, corpus, runner="local")
    for _ in Run(prepared, prepared.missing_shards()).events():
        pass
    assert_same_cache(tmp_path / "cache", clean / "cache")
