"""A worker that stands still is replaced; if it wakes beside its replacement, it does no harm."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch

import latentcache
from latentcache.config.sections import RunConfig
from latentcache.core.records import ShardReport
from latentcache.errors import EncoderError, StorageError
from latentcache.inspecting.verify import verify
from latentcache.planning.planned import PlannedCache
from latentcache.running import stall, worker
from latentcache.running.driver import Run
from latentcache.running.events import Died, Retried
from latentcache.running.runners import local
from latentcache.running.runners.ray_actor import started
from tests.tools.caches import make_config, make_corpus
from tests.tools.encoders import hanging, slow
from tests.tools.planned import planned_from

#: Under load, a decoding process takes some seconds to start.
STALL_S = 20.0
PATIENCE_S = 120


def test_what_advances_does_not_stand_still_and_what_is_slow_has_longer() -> None:
    now = [0.0]
    watch = stall.Watch(10, clock=lambda: now[0])
    for count, now[0] in enumerate([0.0, 5, 10, 15]):
        assert not watch.stands_still(count)
    assert watch.limit_s == 5 * stall.PATIENCE
    now[0] += watch.limit_s
    assert not watch.stands_still(3)
    now[0] += 1
    assert watch.stands_still(3)
    watch.rest()
    assert not watch.stands_still(3)


def test_a_limit_that_is_given_stays() -> None:
    now = [0.0]
    watch = stall.Watch(10, adapts=False, clock=lambda: now[0])
    assert not watch.stands_still(0)
    now[0] = 9
    assert not watch.stands_still(1)
    assert watch.limit_s == 10


def check(cache: str, num_clips: int) -> None:
    opened = latentcache.open_cache(cache)
    keys = [opened[n]["key"] for n in range(len(opened))]
    assert len(keys) == len(set(keys)) == num_clips
    assert not verify(opened.storage).problems


@pytest.mark.slow
@pytest.mark.long
def test_a_local_worker_that_hangs_is_replaced_and_wakes_beside_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(hanging.FOLDER, str(tmp_path))
    corpus = make_corpus(tmp_path / "corpus", 3)
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        encoder={"kind": "tests.tools.encoders.hanging"},
        run={"stall_s": STALL_S, "max_retries": 0},
        quality={"every": 0},
    )
    planned = planned_from(config)
    run, retried = Run(planned, planned.missing_shards()), []
    for event in run.events():
        if isinstance(event, Retried):
            retried.append(event.task.error)
            (tmp_path / "wake").touch()
    assert (tmp_path / "woke").exists()
    assert retried
    assert all(f"made no progress for {STALL_S:.0f} s (run.stall_s)" in error for error in retried)
    assert run.summary.shards_failed == 0
    check(str(tmp_path / "cache"), planned.manifest.num_clips)


@pytest.fixture
def hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlannedCache]:
    """A cache whose second clip hangs the encoder, until the test is over or waits for too long."""
    monkeypatch.setenv(hanging.FOLDER, str(tmp_path))
    config = make_config(
        tmp_path,
        make_corpus(tmp_path / "corpus", 2),
        str(tmp_path / "cache"),
        encoder={"kind": "tests.tools.encoders.hanging"},
        cache={"shard_clips": 1},
        run={"stall_s": 6},
        quality={"every": 0},
    )
    wake = threading.Timer(PATIENCE_S, (tmp_path / "wake").touch)
    wake.start()
    yield planned_from(config)
    wake.cancel()
    (tmp_path / "wake").touch()


@pytest.mark.slow
def test_a_run_ends_where_the_replacement_of_a_worker_that_hangs_cannot_start(
    tmp_path: Path, hang: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, num_built = hanging.build, []

    def build_once(*args: Any, **kwargs: Any) -> Any:
        num_built.append(1)
        if len(num_built) > 1:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return build(*args, **kwargs)

    monkeypatch.setattr(hanging, "build", build_once)
    with pytest.raises(EncoderError, match=r"the worker could not start: .* launch failure"):
        list(Run(hang, hang.missing_shards()).events())
    assert not (tmp_path / "wake").exists()


@pytest.mark.slow
def test_a_run_that_ends_while_its_encoder_hangs_leaves_it_behind(
    tmp_path: Path, hang: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        while not (tmp_path / "hangs").exists():
            time.sleep(0.01)
        raise StorageError("no room left")

    monkeypatch.setattr(worker, "commit_shard", refuse)
    monkeypatch.setattr(local, "STOP_S", 1.0)
    with pytest.raises(StorageError, match="no room left"):
        list(Run(hang, hang.missing_shards()).events())
    assert not (tmp_path / "wake").exists()


@pytest.fixture
def woken() -> Iterator[list[psutil.Process]]:
    stopped: list[psutil.Process] = []
    yield stopped
    for process in stopped:
        if process.is_running():
            process.send_signal(signal.SIGCONT)
    ray.shutdown()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")
def test_an_actor_that_is_stopped_is_replaced_and_wakes_beside_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, woken: list[psutil.Process]
) -> None:
    monkeypatch.setenv(slow.ENCODE_S, "0.3")
    corpus = make_corpus(tmp_path / "corpus", 6)
    config = make_config(
        tmp_path,
        corpus,
        str(tmp_path / "cache"),
        encoder={"kind": "tests.tools.encoders.slow"},
        run={"runner": "ray", "stall_s": STALL_S, "workers": 1},
        quality={"every": 0},
    )
    planned = planned_from(config)
    run, deaths = Run(planned, planned.missing_shards()), []
    for event in run.events():
        if isinstance(event, ShardReport) and not woken:
            children = psutil.Process().children(recursive=True)
            (actor,) = [p for p in children if "EncodeActor" in " ".join(p.cmdline())]
            actor.send_signal(signal.SIGSTOP)
            woken.append(actor)
        elif isinstance(event, Died):
            deaths.append(event.error)
        elif isinstance(event, ShardReport) and deaths and woken[0].is_running():
            os.kill(woken[0].pid, signal.SIGCONT)
        time.sleep(0)
    assert any("made no progress" in error for error in deaths)
    assert run.summary.shards_failed == 0
    check(str(tmp_path / "cache"), planned.manifest.num_clips)


def test_the_limit_follows_from_the_largest_clip() -> None:
    class Manifest:
        def layouts(self) -> dict[str, None]:
            return {"5x64x96": None, "81x720x1280": None}

    found = stall.limit_s(RunConfig(), Manifest(), "cpu")  # type: ignore[arg-type]
    assert found == 81 * 720 * 1280 / stall.PIXELS_PER_S["cpu"]
    assert stall.limit_s(RunConfig(), Manifest(), "cuda") == stall.LEAST_S  # type: ignore[arg-type]
    assert stall.limit_s(RunConfig(stall_s=7), Manifest(), "cpu") == 7  # type: ignore[arg-type]


@pytest.mark.parametrize(("asked", "used"), [("cpu", "cpu"), ("auto", "cuda"), ("cuda", "cuda")])
def test_an_actor_has_the_patience_of_the_device_that_its_run_asks_for(
    monkeypatch: pytest.MonkeyPatch, asked: str, used: str
) -> None:
    """A run on the CPUs of a machine with a GPU is as slow as on any other."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    watched, devices = [], []
    monkeypatch.setattr(stall, "watch", lambda *args: watched.append(args[-1]) or stall.Watch(60.0))
    spec = SimpleNamespace(config=SimpleNamespace(run=RunConfig(device=asked)), manifest=None)
    started(spec, lambda device: devices.append(device.type) or "a worker")  # type: ignore
    assert watched == devices == [used]
