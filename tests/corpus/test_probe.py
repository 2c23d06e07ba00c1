"""Probing by whatever looks at sources: how many are under way, and what is kept if it is cut off."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pytest

from latentcache.corpus import probe
from latentcache.corpus.probe import probe_sources
from latentcache.corpus.saved_probes import SavedProbes, files_of
from latentcache.errors import MachineError
from latentcache.format.schemas import SOURCE_SCHEMA
from latentcache.storage.folder import Storage

FACTS = {"frames": 9, "fps": 25.0, "height": 64, "width": 96, "duration_s": 0.36, "identity": "x"}
MAX_PIXELS = 1 << 20


class Slow:
    """Looks at sources. The first one waits for the test; the others are answered at once."""

    def __init__(self, window: int = 256) -> None:
        self.window = window
        self.asked: list[Future[dict[str, Any]]] = []

    def probe(self, *_: object, **__: object) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        if self.asked:
            future.set_result(dict(FACTS))
        self.asked.append(future)
        return future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def sources(number: int) -> pa.Table:
    rows = [{"name": f"v{n}", "url": f"/v{n}.mp4", "kind": "video"} for n in range(number)]
    return pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA)


def saved_in(folder: Path) -> SavedProbes:
    return SavedProbes(Storage(str(folder)), MAX_PIXELS)


def known_of(folder: Path, table: pa.Table) -> list[bool]:
    """Which sources need not be probed again."""
    known = saved_in(folder).find(table)
    assert known is not None
    return [known.look(n, "video", False) is not None for n in range(table.num_rows)]


def test_a_source_that_takes_long_keeps_none_behind_it_from_being_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "FLUSH_INTERVAL_S", 0.01)
    table, pool, found = sources(5), Slow(), []

    def wait(futures: list[Future[Any]], timeout: float) -> Any:
        """Answer the first one only when the others are on storage."""
        if list(tmp_path.rglob("*.parquet")) and not pool.asked[0].done():
            found.extend(known_of(tmp_path, table))
            pool.asked[0].set_result(dict(FACTS))
        return really_wait(futures, timeout)

    really_wait = probe.wait
    monkeypatch.setattr(probe, "wait", wait)
    probed = probe_sources(table, pool, saved=saved_in(tmp_path))
    assert found == [False, True, True, True, True]
    assert probed["frames"].to_pylist() == [FACTS["frames"]] * table.num_rows


def test_what_stops_probing_loses_nothing_that_was_found(tmp_path: Path) -> None:
    table, pool = sources(5), Slow(window=3)

    def fail(*args: object, **kwargs: object) -> Future[dict[str, Any]]:
        if len(pool.asked) == 3:
            pool.asked[0].set_exception(MachineError("no room"))
        return Slow.probe(pool, *args, **kwargs)

    pool.probe = fail  # type: ignore[method-assign]
    with pytest.raises(MachineError, match="no room"):
        probe_sources(table, pool, saved=saved_in(tmp_path))
    assert known_of(tmp_path, table) == [False, True, True, True, False]


@pytest.mark.parametrize("window", [1, 4])
def test_no_more_sources_are_under_way_than_the_window_holds(window: int) -> None:
    pool, under_way = Slow(window=window), []
    future: Future[dict[str, Any]] = Future()
    future.set_result(dict(FACTS))
    pool.asked.append(future)
    num_done = 0

    def count() -> None:
        nonlocal num_done
        under_way.append(len(pool.asked) - 1 - num_done)
        num_done += 1

    probe_sources(sources(20), pool, count)
    assert max(under_way) == window + 1
    assert num_done == 20


def test_what_was_found_of_a_file_that_was_replaced_since_does_not_count(tmp_path: Path) -> None:
    saved = saved_in(tmp_path)
    stamps = pa.array(["5:1", "5:2", None], pa.string())
    table = sources(3).append_column("stamp", stamps)
    for number, file in enumerate(files_of(table).to_pylist()):
        saved.add(file, "video", False, {**FACTS, "identity": f"id{number}"})
    saved.flush()
    assert known_of(tmp_path, table) == [True, True, True]
    replaced = pa.array(["5:1", "5:3", None], pa.string())
    now = table.set_column(table.column_names.index("stamp"), "stamp", replaced)
    assert known_of(tmp_path, now) == [True, False, True]


def test_a_rate_that_a_table_rounds_is_the_one_that_is_meant() -> None:
    row = {"name": "a", "url": "/a.mp4", "kind": "video", "fps": 23.976}
    pool = Slow()
    pool.asked.append(Future())  # so that the first one is answered, too
    (found,) = probe_sources(pa.Table.from_pylist([row], schema=SOURCE_SCHEMA), pool).to_pylist()
    assert found["fps"] == 24000 / 1001
