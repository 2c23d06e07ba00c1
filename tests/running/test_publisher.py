"""A run publishes beside others: what they have committed stays listed, and closing comes to an end."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from latentcache.core.records import ShardReport
from latentcache.format.changes import read_changes
from latentcache.format.paths import INDEX
from latentcache.format.rounds import OTHERS_GO_ON, ROUNDS
from latentcache.format.snapshot import build_index, publish, read_index
from latentcache.running import publisher
from latentcache.running.publisher import RunSnapshot
from tests.tools.damage import flip
from tests.tools.synthetic import Synthetic, retire, write_cache


class Others:
    """What is committed by another run: a shard more at each look, in its first looks or without end."""

    def __init__(self, written: Synthetic, looks: int | None) -> None:
        self._whole = read_index(written.storage)
        self._looks, self.num_looks = looks, 0

    def build(self, *_: Any) -> pa.Table:
        self.num_looks += 1
        num = self.num_looks if self._looks is None else min(self.num_looks, self._looks)
        committed = itertools.islice(itertools.cycle(range(self._whole.num_rows)), num)
        return self._whole.take(list(committed))


def closed(folder: Path, looks: int | None, monkeypatch: pytest.MonkeyPatch) -> tuple[Others, int]:
    written = write_cache(str(folder / "cache"))
    others, published = Others(written, looks), []
    monkeypatch.setattr(publisher, "build_index", others.build)
    monkeypatch.setattr(publisher, "publish", lambda _, table: published.append(table))
    monkeypatch.setattr(RunSnapshot, "_known", lambda _: published[-1] if published else None)
    snapshot = RunSnapshot(written.storage, written.manifest, 0)
    monkeypatch.setattr(
        RunSnapshot,
        "_publish",
        lambda self, table: None if table.equals(self._known()) else published.append(table),
    )
    table = snapshot.close()
    assert table.equals(published[-1])
    return others, len(published)


def test_a_run_beside_one_that_goes_on_ends_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        _, published = closed(tmp_path, None, monkeypatch)
    assert published == ROUNDS
    assert [record.getMessage() for record in caplog.records] == [OTHERS_GO_ON]


@pytest.mark.parametrize("looks", [1, 2, 5, ROUNDS, ROUNDS + 1])
def test_the_last_run_publishes_what_all_have_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, looks: int
) -> None:
    others, published = closed(tmp_path, looks, monkeypatch)
    assert published == looks
    assert not caplog.records
    assert others.num_looks >= looks


def remove(cache: Synthetic) -> None:
    cache.storage.delete(INDEX)


def damage(cache: Synthetic) -> None:
    flip(Path(cache.url) / INDEX, 60)


def take_another_step(cache: Synthetic) -> None:
    publish(cache.storage, build_index(cache.storage, retire(cache, [("5x32x32", 0, 3)])))


@pytest.mark.parametrize("happens", [remove, damage, take_another_step])
def test_a_commit_is_added_to_all_that_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Synthetic], None]
) -> None:
    """Also where what is published cannot be used, be it since the run has looked for steps."""
    cache = write_cache(str(tmp_path / "cache"))
    snapshot = RunSnapshot(cache.storage, cache.manifest, 0)
    snapshot.open()
    row = read_index(cache.storage).to_pylist()[1]

    def and_then_it_happens(*args: Any) -> Any:
        changes = read_changes(*args)
        happens(cache)
        return changes

    with monkeypatch.context() as patch:
        patch.setattr(publisher, "read_changes", and_then_it_happens)
        snapshot.add(ShardReport(**row, num_frames=0, raw_bytes=0))
    published = read_index(cache.storage)
    assert published.num_rows == 5
    assert published.equals(snapshot.close(), check_metadata=True)
