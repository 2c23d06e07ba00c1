"""A worker that starts: a model that hangs while it is loaded ends the run with a message."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.running.attempt import Failed
from latentcache.running.driver import Run
from latentcache.running.stall import Watch
from latentcache.running.start import Start
from latentcache.running.worker import Worker, WorkerSpec
from tests.tools.caches import make_config, make_corpus, run_job
from tests.tools.planned import planned_from

#: A step is a MiB, or a second of computing.
LIMIT_S = 3.0


@pytest.fixture(name="never")
def never_fixture() -> Iterator[threading.Event]:
    never = threading.Event()
    yield never
    never.set()


def start(work: Callable[[], Any]) -> Any:
    return Start(work, Watch(LIMIT_S, adapts=False)).result()


def test_a_worker_that_is_up_is_returned_and_one_that_fails_says_why() -> None:
    assert start(lambda: "up") == "up"

    def fail() -> None:
        raise ValueError("no such layer")

    assert start(fail) == Failed(error="ValueError: no such layer")


@pytest.mark.slow
def test_a_model_that_hangs_while_it_is_loaded_is_given_up(never: threading.Event) -> None:
    found = start(never.wait)
    assert isinstance(found, Failed)
    assert "loading the model made no progress for 3 s (run.stall_s)" in found.error
    assert "a mount, a download, the GPU" in found.error


def test_a_worker_that_comes_up_after_its_run_has_stopped_is_ended() -> None:
    may_come, ended = threading.Event(), threading.Event()
    starting = Start(may_come.wait, Watch(LIMIT_S, adapts=False))
    starting.leave(lambda _: ended.set())
    assert not ended.is_set()
    may_come.set()
    assert ended.wait(60)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_stops_while_its_worker_starts_leaves_no_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 1)
    planned = planned_from(make_config(tmp_path, corpus, str(tmp_path / "cache")))
    may_build, build = threading.Event(), WorkerSpec.build
    built: list[Worker] = []

    def late(spec: WorkerSpec, device: torch.device) -> Worker:
        assert may_build.wait(60)
        built.append(build(spec, device))
        return built[0]

    monkeypatch.setattr(WorkerSpec, "build", late)
    before = set(threading.enumerate())
    with closing(Run(planned, planned.missing_shards()).events()) as events:
        next(events)
    may_build.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert built
    assert set(threading.enumerate()) <= before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reads", pytest.param("computes", marks=pytest.mark.long)])
def test_a_model_that_is_slow_to_load_is_waited_for(tmp_path: Path, kind: str) -> None:
    """The clock of the watch runs 50 times as fast as the work."""
    now, file = [0.0], tmp_path / "weights"
    file.write_bytes(bytes(2 << 20))
    done = threading.Event()

    def load() -> str:
        while not done.is_set():
            if kind == "reads":
                file.read_bytes()
            else:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
        return "up"

    watch = Watch(60.0, adapts=False, clock=lambda: now[0])
    starting: Any = Start(load, watch)
    steps = set()
    while len(steps) < 4:  # it goes on: each step starts the limit again
        steps.add(starting._num_steps())
        assert starting.wait(0.01) is None
        now[0] += 50 if watch._count != starting._num_steps() else 0
    done.set()
    assert starting.result() == "up"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_run_whose_model_never_comes_ends_with_a_message(tmp_path: Path, runner: str) -> None:
    config = make_config(
        tmp_path,
        make_corpus(tmp_path / "corpus", 1),
        str(tmp_path / "cache"),
        encoder={"kind": "tests.tools.encoders.stuck"},
        run={"runner": runner, "stall_s": LIMIT_S, "max_retries": 1, "workers": 1},
    )
    _, err = run_job("precompute", config, status=1)
    assert "loading the model made no progress for 3 s (run.stall_s)" in err
    assert "could not start" in err
