"""Nothing grows with the length of a run or of a stream: no descriptors, no threads, no objects.

`python benchmarks/growth.py` measures the memory of long ones, process by process.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import psutil
import pytest

from latentcache.core.records import ShardReport
from latentcache.reading.loader.loader import LatentLoader
from latentcache.running.driver import Run
from latentcache.running.worker import SHARDS_IN_HAND
from tests.tools.caches import make_config, make_corpus
from tests.tools.planned import planned_from
from tests.tools.ranks import run_ranks
from tests.tools.synthetic import write_cache


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("growth") / "corpus", 6, frames=41)


def held() -> tuple[int, int]:
    """Descriptors and threads of this process.

    Those who count over time do so in a process of their own: in that of the tests, what other tests
    have used, such as Ray, goes away when it likes.
    """
    return psutil.Process().num_fds(), threading.active_count()


def num_objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def make_run(folder: Path, corpus: Path) -> Run:
    folder.mkdir()
    prepared = planned_from(make_config(folder, corpus, str(folder / "cache")))
    return Run(prepared, prepared.missing_shards())


@pytest.mark.long
def test_a_run_leaves_nothing_behind(corpus: Path, tmp_path: Path) -> None:
    run_ranks(1, run_again_and_again, corpus, tmp_path)


def run_again_and_again(corpus: Path, tmp_path: Path) -> None:
    seen = []
    for number in range(4):
        run = make_run(tmp_path / str(number), corpus)
        list(run.events())
        seen.append((*held(), num_objects()))
    assert {(fds, threads) for fds, threads, _ in seen[1:]} == {seen[1][:2]}
    assert seen[3][2] - seen[1][2] < run.summary.clips_ok  # not one object a clip, in two runs


def test_a_run_holds_no_more_at_its_end_than_at_its_start(corpus: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", corpus)
    seen = [held() for event in run.events() if isinstance(event, ShardReport)]
    half = len(seen) // 2
    for early, late in zip(map(max, *seen[:half]), map(max, *seen[half:]), strict=True):
        assert late <= early + SHARDS_IN_HAND  # one that is being written has its file open


def test_epochs_leave_nothing_behind(tmp_path: Path) -> None:
    run_ranks(1, stream_again_and_again, tmp_path)


def stream_again_and_again(tmp_path: Path) -> None:
    write_cache(str(tmp_path), buckets={"5x32x32": 60}, shard_clips=4)
    loader = LatentLoader(str(tmp_path), batch_size=4, num_threads=2)
    seen = []
    for _ in range(6):
        assert sum(1 for _ in loader) == 15
        seen.append((*held(), num_objects()))
    assert {(fds, threads) for fds, threads, _ in seen[2:]} == {seen[2][:2]}
    assert seen[5][2] - seen[2][2] < 15  # not one object a batch, in three epochs
