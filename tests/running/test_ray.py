"""Real Ray: two nodes' worth of pretended GPUs, actors that die, shards that kill them."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import latentcache
from latentcache.core.records import ShardReport
from latentcache.errors import ConfigError, EncoderError, RunStoppedError, StorageError
from latentcache.inspecting.watch import LogReader
from latentcache.planning.planned import PlannedCache
from latentcache.running.driver import Run
from latentcache.running.events import Died, Event, Progress, Retried, Started
from latentcache.running.log_lines import SHARD_GIVEN_UP, SHARD_RETRIED, WORKER_DIED, WORKER_STARTED
from tests.tools.caches import assert_same_cache, make_config, run_apart
from tests.tools.clusters import end_cluster, start_cluster
from tests.tools.encoders import talkative
from tests.tools.mounts import disk, pages
from tests.tools.planned import planned_from
from tests.tools.videos import moving_pattern, write_video

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    cluster = start_cluster(num_cpus=4, num_gpus=2)
    yield cluster.address
    end_cluster(cluster)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(10):
        write_video(folder / f"v{index}.mp4", moving_pattern(5, 64, 96, seed=index))
    for name, value in (("black", 0), ("white", 255)):
        write_video(folder / f"{name}.mp4", np.full((5, 64, 96, 3), value, np.uint8))
    return folder


def run(prepared: PlannedCache) -> tuple[Run, list[Event]]:
    run = Run(prepared, prepared.missing_shards())
    return run, list(run.events())


def test_workers_are_on_different_gpus_and_share_the_shards(
    cluster: str, corpus: Path, tmp_path: Path
) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        encoder={"kind": "tests.tools.encoders.meeting", "folder": str(meeting), "processes": 2},
        cache={"shard_clips": 1},
        run={"runner": "ray", "ray_address": cluster},
    )
    result, events = run(planned_from(config))
    gpus = {event.worker: event.gpus for event in events if isinstance(event, Started)}
    assert sorted(gpus) == [0, 1]
    assert sorted(gpus.values()) == [("0",), ("1",)]
    assert len(list(meeting.iterdir())) == 2
    host = socket.gethostname()
    encoders = Counter(event.worker for event in events if isinstance(event, ShardReport))
    assert encoders.keys() == {f"{host}/gpu0", f"{host}/gpu1"}
    assert result.summary.shards == 12
    assert len(latentcache.open_cache(str(tmp_path / "cache"))) == 12
    said = [text for event in events if isinstance(event, Progress) for text in event.warnings]
    if not torch.cuda.is_available():  # these GPUs are pretended
        assert any("GPU 0, but torch finds none there, so it encodes on the CPU" in x for x in said)


def test_a_shard_that_kills_its_worker_costs_that_shard_only(
    cluster: str, corpus: Path, tmp_path: Path
) -> None:
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        encoder={"kind": "tests.tools.encoders.deadly"},
        cache={"shard_clips": 2},
        run={"runner": "ray", "ray_address": cluster, "max_retries": 2},
    )
    result, events = run(planned_from(config))
    assert any(isinstance(event, Retried) for event in events)
    assert result.summary.shards_failed == 2
    (log,) = LogReader(result._planned.storage).runs().values()
    kinds = Counter(event.name for event in log)
    assert kinds[WORKER_DIED] > 2
    # When the run ends, neither of those that died last need be up again.
    assert 0 <= kinds[WORKER_STARTED] - kinds[WORKER_DIED] <= 2
    assert {event.facts["worker"] for event in log if event.name == WORKER_DIED} <= {
        event.facts["worker"] for event in log if event.name == WORKER_STARTED
    }
    assert kinds[SHARD_GIVEN_UP] == 2
    assert kinds[SHARD_RETRIED] == result.summary.retries
    table = latentcache.open_cache(str(tmp_path / "cache")).table().to_pylist()
    reasons = {row["source"]: row["reason"] for row in table}
    messages = {row["source"]: row["message"] for row in table}
    assert reasons["black.mp4"] == "shard_failed"
    assert "its worker died" in messages["black.mp4"]
    assert "white is too much" in messages["white.mp4"]
    ok = [name for name, reason in reasons.items() if reason is None]
    assert len(ok) == 12 - 2 * 2


@pytest.mark.parametrize(
    ("says", "died"),
    [
        (
            "CUDA error: an illegal memory access was encountered",
            "RuntimeError: CUDA error: an illegal memory access was encountered",
        ),
        pytest.param(
            "the accelerator is confused",
            "it failed one shard after the other that others could do",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_gpu_that_falls_ill_costs_its_process_and_no_clip(
    cluster: str, corpus: Path, tmp_path: Path, says: str, died: str
) -> None:
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        encoder={
            "kind": "tests.tools.encoders.ill_gpu",
            "folder": str(tmp_path),
            "says": says,
        },
        cache={"shard_clips": 1},
        run={"runner": "ray", "ray_address": cluster, "max_retries": 1},
    )
    result, events = run(planned_from(config))
    assert [event.error for event in events if isinstance(event, Died)] == [died]
    assert result.summary.clips_failed == 0
    table = latentcache.open_cache(str(tmp_path / "cache")).table().to_pylist()
    assert [row["status"] for row in table] == ["ok"] * 12


@pytest.mark.long
def test_workers_that_cannot_start_stop_the_run_with_the_cause(
    cluster: str, corpus: Path, tmp_path: Path
) -> None:
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        encoder={"kind": "tests.tools.encoders.raising", "build": "KeyError"},
        run={"runner": "ray", "ray_address": cluster, "max_retries": 1},
    )
    with pytest.raises(EncoderError, match="could not start, 2 times: KeyError: 'weights'"):
        run(planned_from(config))


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA GPU")
def test_a_gpu_that_torch_cannot_use_on_its_node_stops_the_run(
    cluster: str, corpus: Path, tmp_path: Path
) -> None:
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        run={"runner": "ray", "ray_address": cluster, "device": "cuda"},
    )
    with pytest.raises(
        ConfigError, match=r"run\.device='cuda' is not there: torch .* sees no CUDA"
    ):
        run(planned_from(config))


def test_more_workers_than_gpus_are_refused(cluster: str, corpus: Path, tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        run={"runner": "ray", "ray_address": cluster, "workers": 3},
    )
    with pytest.raises(ConfigError, match=r"the cluster has 2 GPUs.*run\.workers=2"):
        run(planned_from(config))


@pytest.mark.long
def test_a_full_disk_stops_the_run_on_ray_and_resume_completes_it(
    cluster: str, corpus: Path, tmp_path: Path
) -> None:
    sections = {"cache": {"shard_clips": 2}, "run": {"runner": "ray", "ray_address": cluster}}
    run(planned_from(make_config(tmp_path, corpus, str(tmp_path / "clean"), **sections)))
    cache = tmp_path / "disk" / "cache"
    with disk(tmp_path / "disk", pages(tmp_path / "clean") * 2 // 3) as remount:
        prepared = planned_from(make_config(tmp_path, corpus, str(cache), **sections))
        with pytest.raises(StorageError, match=r"cannot write .*: No space left on device.*resume"):
            run(prepared)
        assert not list(cache.rglob("*.tmp"))
        remount("size=64m")
        # As users do: in a process of its own, which leaves no second cluster in this one.
        run_apart("resume", cache)
        assert_same_cache(cache, tmp_path / "clean")


@pytest.mark.long
def test_a_run_that_can_encode_no_shard_at_all_stops_on_ray(cluster: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index in range(12):
        pixels = np.full((5, 64, 96, 3), 255 - index, np.uint8)
        write_video(corpus / f"white{index}.mp4", pixels)
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        encoder={"kind": "tests.tools.encoders.deadly"},
        cache={"shard_clips": 1},
        run={"runner": "ray", "ray_address": cluster},
    )
    with pytest.raises(RunStoppedError, match="x EncoderError: white is too much"):
        run(planned_from(config))
    assert not list((tmp_path / "cache").glob("samples/5x64x96/*"))


@pytest.mark.long
def test_what_workers_log_reaches_the_driver(cluster: str, corpus: Path, tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        encoder={"kind": "tests.tools.encoders.talkative"},
        run={"runner": "ray", "ray_address": cluster},
    )
    _, events = run(planned_from(config))
    said = [text for e in events if isinstance(e, Progress) for text in e.warnings]
    warnings = [text for text in said if "torch finds none" not in text]  # its GPUs are pretended
    assert set(warnings) == {talkative.WARNING}
    assert len(warnings) <= 2  # once a worker
