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
from latentcache.errors import ClipError, CorpusError
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

    def __init__(self, folder: Path, **clips: Any) -> None:
        self._folder, self._table = folder, folder / "corpus.parquet"
        self._clips = {"frames": 5, "size": [64, 96], "select": "all", **clips}
        self._frames: dict[str, int] = {}
        self.difference = Difference()
        self.name_columns("act")

    def name_columns(self, *names: str) -> None:
        """Say which columns are per frame."""
        columns = {"video": "video", "caption": "caption"}
        corpus = {"columns": columns, "per_frame": [*names]}
        url = f"{self._folder}/cache"
        self.config = make_config(self._folder, self._table, url, corpus=corpus, clips=self._clips)

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
            clip = (row["caption"], (row.get(PER_FRAME) or {}).get("act"))
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
    assert has_other_labels(same, before, [PER_FRAME]).tolist() == [False]
    assert has_other_labels(table("name", turn=[[2.0]]), before, [PER_FRAME]).tolist() == [False]
    assert has_other_labels(table("name", turn=[[3.0]]), before, [PER_FRAME]).tolist() == [True]
    assert has_other_labels(table("name", lift=[[2.0]]), before, [PER_FRAME]).tolist() == [True]


WHOLE = [[float(n), 0.0] for n in range(10)]
#: Values that do not fit ten frames, and what is said of them.
WRONG: dict[str, tuple[Any, str]] = {
    "longer": ([[-1.0, 0.0], *WHOLE], "act has 11 values, and the source has 10 frames"),
    "shorter": (WHOLE[:-1], "act has 9 values, and the source has 10 frames"),
    "null": ([*WHOLE[:3], None, *WHOLE[4:]], "act has no value at frame 3"),
    "a number is null": ([*WHOLE[:3], [3.0, None], *WHOLE[4:]], "are not of one length, or lack"),
    "wider": ([[*vector, 1.0] for vector in WHOLE], "act have 3 numbers; those of other sources 2"),
    "nothing": (None, "there is nothing in act, a column of corpus.per_frame"),
}


@pytest.mark.parametrize("how", WRONG)
@pytest.mark.parametrize("check_content", [False, True])
def test_a_source_whose_values_do_not_fit_stays_as_it_is(
    tmp_path: Path, how: str, check_content: bool
) -> None:
    """Whether or not it is opened; the others take what the table says."""
    wrong, why = WRONG[how]
    other = [[0.5, 0.5]] * 10
    corpus = Corpus(tmp_path)
    corpus.put(a=10, b=10)
    corpus.grow(("a", "one", WHOLE), ("b", "two", WHOLE))
    rows = ("a", "new", wrong), ("b", "three", other)
    planned = corpus.grow(*rows, check_content=check_content)
    assert clips_of(planned) == {"a": cut("one", WHOLE), "b": cut("three", other)}
    assert corpus.difference.unreadable.to_pylist() == ["a.mp4"]
    assert corpus.difference.num_same == 1
    assert why in corpus.difference.why["a.mp4"]
    again = corpus.grow(*rows, check_content=check_content)
    assert len(again.manifest.generations) == len(planned.manifest.generations)


def test_new_sources_have_vectors_of_the_length_that_the_cache_has(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    corpus.put(a=10, c=10)
    corpus.grow(("a", "one", WHOLE))
    planned = corpus.grow(("c", "new", WRONG["wider"][0]))
    known = KnownCache(planned.storage, planned.manifest, planned.plan)
    (row,) = known.rejected_rows().to_pylist()
    assert (row["source"], row["reason"]) == ("c.mp4", "per_frame")


def test_columns_per_frame_that_come_later_are_compared_with_the_sources(tmp_path: Path) -> None:
    """Nobody has noted how many frames these have, so they are opened, until there are values."""
    corpus = Corpus(tmp_path)
    corpus.put(a=10, b=10)
    corpus.name_columns()
    corpus.grow(("a", "one", None), ("b", "two", None))
    corpus.name_columns("act")
    rows = ("a", "one", WHOLE), ("b", "three", WRONG["longer"][0])
    assert clips_of(corpus.grow(*rows)) == {"a": cut("one", WHOLE), "b": [("two", None)] * 2}
    assert corpus.difference.num_probed == 2
    assert corpus.difference.why["b.mp4"] == WRONG["longer"][1]
    rows = rows[0], ("b", "three", WHOLE)
    assert clips_of(corpus.grow(*rows)) == {"a": cut("one", WHOLE), "b": cut("three", WHOLE)}
    assert corpus.difference.num_probed == 1
    corpus.grow(*rows)
    assert corpus.difference.num_probed == 0


@pytest.mark.parametrize("clips", [{"fps": 25.0}, {"sampling": "spread", "select": "first"}])
def test_columns_per_frame_that_come_later_need_clips_of_known_frames(
    tmp_path: Path, clips: dict[str, Any]
) -> None:
    corpus = Corpus(tmp_path, **clips)
    corpus.put(a=10)
    corpus.name_columns()
    corpus.grow(("a", "one", None))
    corpus.name_columns("act")
    with pytest.raises(CorpusError, match="nobody knows any more which frames"):
        corpus.grow(("a", "one", WHOLE))
