"""Sources at other URLs: which are noted, and where the clips of those are read from then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latentcache.core.columns import taken
from latentcache.core.records import ShardId
from latentcache.format.planned_sources import read_sources
from latentcache.format.schemas import PLANNED_SOURCE_SCHEMA
from latentcache.planning import moved_urls, moves
from latentcache.planning.create import take_step
from latentcache.planning.known import KnownCache
from latentcache.planning.known_sources import KnownSources
from latentcache.planning.moved_urls import MovedUrls
from latentcache.planning.moves import place, say_moves
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step
from latentcache.planning.to_read import sources_to_read
from latentcache.storage.urls import public_name
from tests.tools.planned import fill_cache, plan_cache

BUCKET = "5x64x96"

#: URLs of a source before and now, and whether it is at another place.
URLS = {
    "the same": ("https://h/a.mp4?sig=1", "https://h/a.mp4?sig=1", False),
    "a query": ("https://h/a.mp4?sig=1", "https://h/a.mp4?sig=2", False),
    "an id": ("https://h/get.mp4?id=1", "https://h/get.mp4?id=2", False),
    "a query that was not there": ("https://h/a.mp4", "https://h/a.mp4?sig=2", False),
    "a version": ("s3://b/a.mp4?versionId=1", "s3://b/a.mp4?versionId=2", False),
    "a password": ("https://me:one@h/a.mp4", "https://me:two@h/a.mp4", False),
    "a part's query": ("part://0-9::https://h/t.tar?s=1", "part://0-9::https://h/t.tar?s=2", False),
    "a part's file": ("part://0-9::https://h/t.tar", "part://0-9::https://h/u.tar", True),
    "a host": ("https://h/a.mp4?sig=1", "https://i/a.mp4?sig=1", True),
    "a path": ("/old/a.mp4", "/new/a.mp4", True),
    "a path with a ?": ("/w?1/a.mp4", "/w?2/a.mp4", True),
    "a path like a query": ("/w?x=1/a.mp4", "/w?x=2/a.mp4", True),
    "an object with a ?": ("s3://b/what?.mp4", "s3://b/what?2.mp4", True),
}


def test_places_are_the_names_that_urls_are_known_by() -> None:
    urls = [url for before, now, _ in URLS.values() for url in (before, now)]
    assert place(pa.chunked_array([urls])).to_pylist() == [*map(public_name, urls)]


def said_of(
    monkeypatch: pytest.MonkeyPatch, what: str, stamp: str, *, to_read: bool, all_urls: bool = False
) -> dict[str, set[str]]:
    """What is said of sources with these URLs. what: they are known to be; stamp: now, 1 before."""
    rows = [
        {"source": name, "url": before, "kind": "video", "identity": "i", "stamp": "1"}
        for name, (before, _, _) in URLS.items()
    ]
    table = pa.Table.from_pylist([r | {"what": what} for r in rows], schema=PLANNED_SOURCE_SCHEMA)
    corpus = pa.table(
        {
            "name": [*URLS],
            "url": pa.array([now for _, now, _ in URLS.values()]),
            "kind": ["video"] * len(URLS),
            "stamp": [stamp] * len(URLS),
        }
    )
    found = np.full(len(URLS), to_read)
    monkeypatch.setattr(moves, "sources_to_read", lambda *_: found)
    known: Any = type("Known", (), {"sources": KnownSources(table)})
    planned: Any = None
    step, at = Step(kind="grow"), np.arange(len(URLS), dtype=np.int32)
    at[0 if what == "gone" else len(URLS) :] = -1
    names = say_moves(step, planned, known, corpus, at, all_urls=all_urls)
    urls = {name: now for name, (_, now, _) in URLS.items()}
    for sources in step.sources:
        assert {urls[n] for n in sources["source"].to_pylist()} == {*sources["url"].to_pylist()}
    return dict(zip(("moved", "touched"), ({*n.to_pylist()} for n in names), strict=True))


PLACES = {name for name, (_, _, is_other) in URLS.items() if is_other}
OTHERS = {*URLS} - {"the same"}


def test_another_place_is_always_noted_and_another_query_where_something_is_to_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quiet = said_of(monkeypatch, "planned", "1", to_read=False)
    assert quiet == {"moved": PLACES, "touched": set()}
    for found in (
        said_of(monkeypatch, "planned", "1", to_read=True),
        said_of(monkeypatch, "planned", "1", to_read=False, all_urls=True),
        said_of(monkeypatch, "rejected", "1", to_read=False),
        said_of(monkeypatch, "partial", "1", to_read=False),
    ):
        assert found == {"moved": OTHERS, "touched": set()}
    assert said_of(monkeypatch, "gone", "2", to_read=True) == {"moved": set(), "touched": set()}


def test_a_source_that_was_touched_is_read_where_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is known of it would have a URL that its clips are not read by."""
    found = said_of(monkeypatch, "planned", "2", to_read=False)
    assert found == {"moved": OTHERS, "touched": {"the same"}}


def names_to_read(planned: PlannedCache) -> set[str]:
    known = KnownCache(planned.storage, planned.manifest, planned.plan)
    names = pa.chunked_array([["x", *known.sources]])
    mask = sources_to_read(planned, known, names, {})
    return {*names.filter(pa.array(mask)).to_pylist()}


@pytest.fixture(name="planned")
def planned_fixture(tmp_path: Path) -> PlannedCache:
    """A cache of which one clip, of v0, failed."""
    planned = plan_cache(tmp_path, str(tmp_path / "cache"))
    fill_cache(planned)
    return planned


def test_what_is_to_be_read_is_of_clips_that_wait_or_failed(planned: PlannedCache) -> None:
    failed = names_to_read(planned)
    (row,) = (r for r in planned.plan.table(ShardId(BUCKET, 0)).to_pylist() if r["row"] == 0)
    assert failed == {row["source"]}
    folder = Path(planned.storage.url)
    (folder / f"samples/{BUCKET}/000001.parquet").unlink()
    (folder / f"latents/{BUCKET}/c/1/0/0/0/0").unlink()
    (folder / "index.parquet").unlink()
    waiting = {*planned.plan.table(ShardId(BUCKET, 1))["source"].to_pylist()}
    assert names_to_read(planned) == failed | waiting


@pytest.mark.parametrize(("kind", "is_read"), [("raw", True), ("audio", True), ("text", False)])
def test_a_field_that_is_not_there_yet_is_to_be_read_of_all(
    planned: PlannedCache, kind: str, is_read: bool
) -> None:
    planned.config.fields["one"] = {"kind": kind}
    expected = {f"v{n}" for n in range(9)} if is_read else {"v0"}
    assert names_to_read(planned) == expected


def moved_to(planned: PlannedCache, place: str, names: list[str]) -> PlannedCache:
    """A cache after a step that says that some sources have moved."""
    columns = {"source": names, "url": [f"/{place}/{name}.mp4" for name in names]}
    nothing = {n: pa.nulls(len(names), pa.string()) for n in ("identity", "stamp")}
    step = Step(kind="grow")
    step.add_sources(pa.table({**columns, "kind": ["video"] * len(names), **nothing}), "moved")
    taken = take_step(planned, step)
    assert taken is not None
    return taken


def test_clips_are_read_where_their_sources_moved_last(planned: PlannedCache) -> None:
    for number, names in enumerate((["v0", "v1"], ["v1"], ["v9"])):
        planned = moved_to(planned, f"place{number}", names)
    urls = dict(
        zip(
            *(planned.plan.table(ShardId(BUCKET, 0))[n].to_pylist() for n in ("source", "url")),
            strict=True,
        )
    )
    assert urls == {
        "v0": "/place0/v0.mp4",
        "v1": "/place1/v1.mp4",
        "v2": "/nowhere/v2.mp4",
    }


def test_however_often_a_source_moved_one_url_is_kept_and_looked_up_in_few_chunks(
    planned: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else planning takes time for each shard, source and day of fresh signatures."""
    names, chunks = [f"v{n}" for n in range(9)], list[int]()
    for number in range(4):
        planned = moved_to(planned, f"place{number}", names)

    def in_small_chunks(storage: Any, generation: Any) -> pa.Table:
        table = read_sources(storage, generation)
        return pa.concat_tables(table.slice(row, 1) for row in range(table.num_rows))

    def looked_up(column: pa.ChunkedArray, rows: Any) -> pa.Array:
        chunks.append(column.num_chunks)
        return taken(column, rows)

    monkeypatch.setattr(moved_urls, "read_sources", in_small_chunks)
    monkeypatch.setattr(moved_urls, "taken", looked_up)
    urls = MovedUrls(planned.storage, planned.manifest)
    rows = planned.plan.table(ShardId(BUCKET, 0))
    found = urls.put_into(rows, 1)["url"].to_pylist()
    assert found == [f"/place3/{name}.mp4" for name in rows["source"].to_pylist()]
    assert len(urls) == len(names)
    assert max(chunks) == 1
    assert urls.put_into(rows, len(planned.manifest.generations)) is rows
