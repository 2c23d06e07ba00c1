"""Labels of known sources whose files or values per frame change: a clip has those of its own video."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.config.files import load_config
from latentcache.errors import ClipError
from latentcache.format.per_frame import PER_FRAME, struct_of
from latentcache.format.schemas import RETIRED_SCHEMA
from latentcache.planning.grow import Difference
from latentcache.planning.known import KnownCache
from latentcache.planning.planned import PlannedCache
from latentcache.planning.planner import Hooks, grow_cache
from latentcache.planning.relabel import has_other_labels
from latentcache.planning.retry import plan_retry
from tests.planning.test_grow import Lengths
from tests.tools.caches import make_config


class Videos(Lengths):
    """What looks at videos of so many frames; those of none cannot be read."""

    def probe(self, url: str, kind: str, **how: bool) -> Future[dict[str, Any]]:
        if self._frames[Path(url).stem]:
            return super().probe(url, kind, **how)
        found: Future[dict[str, Any]] = Future()
        found.set_exception(ClipError("unreadable", "it is no video"))
        return found


class Corpus:
    """A table of videos with a caption and the column `act`, and its cache, of which nothing is encoded."""

    def __init__(self, folder: Path) -> None:
        self._table = folder / "corpus.parquet"
        self._frames: dict[str, int] = {}
        self.difference = Difference()
        self.config = make_config(
            folder,
            self._table,
            f"{folder}/cache",
            corpus={"columns": {"video": "video", "caption": "caption"}, "per_frame": ["act"]},
            clips={"frames": 5, "size": [64, 96], "select": "all"},
        )

    def put(self, **frames: int) -> None:
        """Write files of so many frames; 0: what is no video."""
        self._frames |= frames
        for name, number in frames.items():
            self._table.with_name(f"{name}.mp4").write_bytes(b"0" * (number + 1))

    def grow(self, *rows: tuple[str, str, Any], **options: bool) -> PlannedCache:
        """Take in a table of names, captions and values."""
        table = [{"video": f"{n}.mp4", "caption": text, "act": act} for n, text, act in rows]
        pq.write_table(pa.Table.from_pylist(table), self._table)

        def note(*found: Any) -> None:
            self.difference = found[-1]

        return grow_cache(
            load_config(str(self.config)),
            hooks=Hooks(on_step=note),
            prober=lambda _: Videos(**self._frames),
            **options,
        )


def clips_of(planned: PlannedCache) -> dict[str, list[Any]]:
    """The captions and values of the clips that count, by source."""
    found: dict[str, list[Any]] = {}
    for _, rows in KnownCache(planned.storage, planned.manifest, planned.plan).shards():
        for row in rows.to_pylist():
            clip = (row["caption"], row[PER_FRAME]["act"])
            found.setdefault(row["source"].removesuffix(".mp4"), []).append(clip)
    return found


def cut(caption: str, values: Sequence[Any]) -> list[Any]:
    """What the clips of a source have, each of five frames."""
    return [(caption, list(values[n : n + 5])) for n in range(0, len(values) - 4, 5)]


@pytest.fixture(name="corpus")
def corpus_fixture(tmp_path: Path) -> Corpus:
    corpus = Corpus(tmp_path)
    corpus.put(a=10, b=10)
    corpus.grow(("a", "one", [*map(float, range(10))]), ("b", "two", [0.5] * 10))
    return corpus


def test_a_source_that_became_shorter_brings_its_own_values(corpus: Corpus) -> None:
    corpus.put(a=5, c=5)
    rows = ("a", "short", [9.0] * 5), ("b", "three", [1.5] * 10), ("c", "new", [7.0] * 5)
    planned = corpus.grow(*rows)
    assert corpus.difference.changed.to_pylist() == ["a.mp4"]
    assert clips_of(planned) == {
        "a": cut("short", [9.0] * 5),
        "b": cut("three", [1.5] * 10),
        "c": cut("new", [7.0] * 5),
    }


@pytest.mark.parametrize("length", [4, 10, 12])
def test_a_source_that_cannot_be_read_keeps_its_caption_and_its_values(
    corpus: Corpus, length: int
) -> None:
    """Nobody knows of which video those of the table are. Once it can be read, it takes them."""
    corpus.put(a=0)
    rows = ("a", "new", [3.0] * length), ("b", "three", [1.5] * 10)
    planned = corpus.grow(*rows)
    assert corpus.difference.unreadable.to_pylist() == ["a.mp4"]
    others = {"b": cut("three", [1.5] * 10)}
    assert clips_of(planned) == {"a": cut("one", [*map(float, range(10))])} | others
    corpus.put(a=length if length > 4 else 5)
    again = corpus.grow(("a", "new", [3.0] * max(5, length)), *rows[1:])
    assert clips_of(again) == {"a": cut("new", [3.0] * max(5, length))} | others


def test_a_rejected_source_is_taken_in_with_what_was_said_of_it_last(corpus: Corpus) -> None:
    """By `resume --retry-failed`, too, which knows no corpus."""
    b = ("b", "two", [0.5] * 10)
    corpus.put(c=0)
    corpus.grow(b, ("c", "old", [1.0] * 5))
    planned = corpus.grow(b, ("c", "new", [2.0] * 5))
    known = KnownCache(planned.storage, planned.manifest, planned.plan)
    (row,) = known.rejected_rows().to_pylist()
    assert (row["caption"], row[PER_FRAME]["act"]) == ("new", [2.0] * 5)
    number = len(planned.manifest.generations)
    assert len(corpus.grow(b, ("c", "new", [2.0] * 5)).manifest.generations) == number
    corpus.put(c=5)
    step, _ = plan_retry(planned, RETIRED_SCHEMA.empty_table(), lambda: Videos(a=10, b=10, c=5))
    ((rows,),) = step.clips.values()
    found = [(row["caption"], row[PER_FRAME]["act"]) for row in rows.to_pylist()]
    assert found == cut("new", [2.0] * 5)


def test_other_columns_per_frame_of_rejected_sources_are_noted_once() -> None:
    """Whatever their order is: the cache has the columns of all tables, in the order of the first."""

    def table(name: str, **columns: Any) -> pa.Table:
        chunks = {column: pa.chunked_array([values]) for column, values in columns.items()}
        caption = pa.array(["x"], pa.string())
        return pa.table({name: ["v"], "caption": caption, PER_FRAME: struct_of(chunks)})

    before = table("source", act=[[1.0]], turn=[[2.0]])
    same = table("name", turn=[[2.0]], act=[[1.0]])
    assert has_other_labels(same, before).tolist() == [False]
    assert has_other_labels(table("name", turn=[[2.0]]), before).tolist() == [False]
    assert has_other_labels(table("name", turn=[[3.0]]), before).tolist() == [True]
    assert has_other_labels(table("name", lift=[[2.0]]), before).tolist() == [True]
