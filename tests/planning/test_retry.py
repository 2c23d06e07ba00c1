"""Retries of sources that are no longer where they were planned: in rewritten files, in moved corpora."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.config.files import load_config
from latentcache.corpus.sources import read_corpus
from latentcache.decoders.identity import identify_url
from latentcache.errors import ClipError
from latentcache.format.schemas import RETIRED_SCHEMA
from latentcache.planning.create import take_step
from latentcache.planning.grow import Difference, plan_growth
from latentcache.planning.known import KnownCache, as_sources
from latentcache.planning.planned import PlannedCache
from latentcache.planning.planner import grow_cache
from latentcache.planning.retry import plan_retry
from latentcache.planning.step import Step
from latentcache.storage.part_files import open_whole_or_part
from tests.tools.caches import make_config
from tests.tools.tars import write_tar

#: Names and contents of sources, in the order in which they are in their file.
Members = Sequence[tuple[str, bytes]]
BAD, A, B = (letter * 600 for letter in (b"<", b"a", b"b"))
BUCKET = "5x64x96"


class Reading:
    """Looks at the bytes of sources, all of which are videos of five frames but those that begin with <.

    on_read: called before the first source is read.
    """

    window = 4

    def __init__(self, on_read: Callable[[], object] = lambda: None) -> None:
        self._on_read = on_read

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def probe(self, url: str, kind: str, **_: bool) -> Future[dict[str, Any]]:
        self._on_read()
        self._on_read = lambda: None
        found: Future[dict[str, Any]] = Future()
        try:
            found.set_result(self._look(url))
        except ClipError as error:
            found.set_exception(error)
        return found

    def _look(self, url: str) -> dict[str, Any]:
        with open_whole_or_part(url) as file:
            if file.read(1) == b"<":
                raise ClipError("unreadable", "it is no video")
        facts = {"frames": 5, "fps": 25.0, "duration_s": 0.2, "height": 64, "width": 96}
        return {**facts, "identity": identify_url(url)}


class Lab:
    """A cache, and the tar file or table of its corpus."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.file = folder / f"t.{suffix}"
        columns = {"columns": {"video": "video", "key": "id"}} if suffix == "parquet" else {}
        path = make_config(folder, self.file, str(folder / "cache"), corpus=columns)
        self.config = load_config(str(path))

    def write(self, members: Members) -> None:
        if self.file.suffix == ".tar":
            write_tar(self.file, [(f"{name}.mp4", data) for name, data in members])
            return
        names, videos = zip(*members, strict=True)
        pq.write_table(pa.table({"id": names, "video": pa.array(videos, pa.binary())}), self.file)

    def name(self, member: str) -> str:
        """What a cache calls the source."""
        return f"t.tar/{member}" if self.file.suffix == ".tar" else member

    def plan(self) -> PlannedCache:
        return grow_cache(self.config, prober=lambda _: Reading())

    def grow(self, planned: PlannedCache) -> tuple[Step, Difference]:
        return plan_growth(planned, read_corpus(self.config.corpus).table, Reading)


@pytest.fixture(name="lab", params=["tar", "parquet"])
def lab_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    return Lab(tmp_path, request.param)


def failed(*rows: int) -> pa.Table:
    """These clips of the first shard."""
    found = [{"bucket": BUCKET, "shard": 0, "row": row, "why": ""} for row in rows]
    return pa.Table.from_pylist(found, schema=RETIRED_SCHEMA)


def said(difference: Difference) -> dict[str, list[str]]:
    """What a step does with sources, by name."""
    kinds = (
        *("new", "changed", "completed", "repaired", "rejected", "moved", "touched"),
        *("retried", "rewritten", "unstamped"),
    )
    found = {kind: getattr(difference, kind).to_pylist() for kind in kinds}
    return {kind: names for kind, names in found.items() if names}


@pytest.mark.parametrize(
    "now",
    [[("b", B), ("a", A)], [("a", A * 2), ("b", B)], [("a", A), ("b", B)], [("a", A)]],
    ids=["in another order", "of another length", "of the same length", "fewer"],
)
def test_a_rejected_part_of_a_file_that_was_written_again_is_left_to_precompute(
    lab: Lab, now: Members
) -> None:
    lab.write([("a", BAD), ("b", B)])
    planned = lab.plan()
    lab.write(now)
    step, difference = plan_retry(planned, failed(), Reading)
    assert said(difference) == {"rewritten": [lab.name("a")]}
    assert not step
    _, difference = lab.grow(planned)
    assert difference.repaired.to_pylist() == [lab.name("a")]


def test_a_failed_part_of_a_file_that_was_written_again_is_tried_where_its_bytes_are_the_same(
    lab: Lab,
) -> None:
    lab.write([("a", A), ("b", B)])
    planned = lab.plan()
    lab.write([("a", A), ("c", B), ("b", A * 2)])
    step, difference = plan_retry(planned, failed(0, 1), Reading)
    both = {"retried": [lab.name("a"), lab.name("b")]}
    assert said(difference) == both
    assert step.num_clips == 2
    lab.write([("b", B), ("a", A)])
    step, difference = plan_retry(planned, failed(0, 1), Reading)
    assert said(difference) == {"rewritten": both["retried"]}
    assert not step


def test_a_file_that_is_written_again_while_its_parts_are_looked_at_was_written_again(
    lab: Lab,
) -> None:
    lab.write([("a", BAD), ("b", B)])
    planned = lab.plan()
    step, difference = plan_retry(
        planned, failed(), lambda: Reading(lambda: lab.write([("b", B), ("a", A)]))
    )
    assert said(difference) == {"rewritten": [lab.name("a")]}
    assert not step


def test_a_rejected_part_of_a_file_that_is_as_it_was_is_tried_again(lab: Lab) -> None:
    """As by a version of a decoder that can read it."""
    lab.write([("a", BAD), ("b", B)])
    planned = lab.plan()

    step, difference = plan_retry(planned, failed(), Newer)
    assert said(difference) == {"repaired": [lab.name("a")]}
    assert step.num_clips == 1


class Short(Reading):
    """Finds too few frames for a clip in what begins with <."""

    def _look(self, url: str) -> dict[str, Any]:
        with open_whole_or_part(url) as file:
            frames = 1 if file.read(1) == b"<" else 5
        facts = {
            "frames": frames,
            "fps": 25.0,
            "duration_s": frames / 25,
            "height": 64,
            "width": 96,
        }
        return {**facts, "identity": identify_url(url)}


class Newer(Reading):
    """Can read what begins with <, as a newer decoder may."""

    def _look(self, url: str) -> dict[str, Any]:
        facts = {"frames": 5, "fps": 25.0, "duration_s": 0.2, "height": 64, "width": 96}
        return {**facts, "identity": identify_url(url)}


@pytest.fixture(name="no_stamps")
def no_stamps_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that says neither when a file changed nor an ETag, as some web servers."""
    monkeypatch.setattr("latentcache.corpus.stamps.stamp_from", lambda _: None)


@pytest.mark.usefixtures("no_stamps")
@pytest.mark.parametrize("reading", [Reading, Short])
def test_a_rejected_part_of_a_file_without_a_stamp_that_still_gives_no_clip_stays(
    lab: Lab, reading: type[Reading]
) -> None:
    lab.write([("a", BAD), ("b", B)])
    planned = grow_cache(lab.config, prober=lambda _: reading())
    step, difference = plan_retry(planned, failed(), reading)
    assert (said(difference), difference.num_rejected) == ({}, 1)
    assert not step


@pytest.mark.usefixtures("no_stamps")
def test_a_rejected_part_without_a_stamp_that_can_be_read_now_may_be_of_another_source(
    lab: Lab,
) -> None:
    lab.write([("a", BAD), ("b", B)])
    planned = lab.plan()
    for now in ([("b", B), ("a", A)], [("a", A), ("b", B)]):
        lab.write(now)
        step, difference = plan_retry(planned, failed(), Reading)
        assert said(difference) == {"unstamped": [lab.name("a")]}
        assert not step
    assert lab.grow(planned)[1].repaired.to_pylist() == [lab.name("a")]


@pytest.mark.usefixtures("no_stamps")
def test_a_rejected_part_of_known_content_needs_no_stamp(lab: Lab) -> None:
    """Its identity tells whether its bytes are still there."""
    lab.write([("a", BAD), ("b", B)])
    planned = grow_cache(lab.config, prober=lambda _: Short())
    step, difference = plan_retry(planned, failed(), Newer)
    assert said(difference) == {"repaired": [lab.name("a")]}
    assert step.num_clips == 1
    lab.write([("b", B), ("a", BAD)])
    step, difference = plan_retry(planned, failed(), Newer)
    assert said(difference) == {"rewritten": [lab.name("a")]}
    assert not step


@pytest.mark.usefixtures("no_stamps")
def test_a_failed_part_without_a_stamp_tells_by_its_bytes_whether_its_file_was_written_again(
    lab: Lab,
) -> None:
    lab.write([("a", A), ("b", B)])
    planned = lab.plan()
    assert said(plan_retry(planned, failed(0, 1), Reading)[1]) == {
        "retried": [lab.name("a"), lab.name("b")]
    }
    lab.write([("b", B), ("a", BAD)])
    step, difference = plan_retry(planned, failed(0, 1), Reading)
    assert said(difference) == {"rewritten": [lab.name("a")], "unstamped": [lab.name("b")]}
    assert not step


def test_another_part_of_the_same_file_is_looked_at_though_its_stamp_is_as_it_was(
    tmp_path: Path,
) -> None:
    table = pa.table({"id": ["a", "b"], "large": [A, B], "small": [B, B]})
    pq.write_table(table, tmp_path / "t.parquet")
    caches = {}
    for column in ("large", "small"):
        corpus = {"columns": {"video": column, "key": "id"}}
        path = make_config(tmp_path, tmp_path / "t.parquet", f"{tmp_path}/cache", corpus=corpus)
        caches[column] = load_config(str(path))
    planned = grow_cache(caches["large"], prober=lambda _: Reading())
    small = read_corpus(caches["small"].corpus).table
    step, difference = plan_growth(planned, small, Reading)
    assert said(difference) == {"changed": ["a"], "moved": ["b"]}
    assert step.num_clips == difference.num_probed - 1 == 1


def test_a_file_that_moved_with_all_its_parts_is_not_read_again(lab: Lab) -> None:
    lab.write([("a", A), ("b", B)])
    planned = lab.plan()
    corpus = read_corpus(lab.config.corpus).table
    new = str(lab.file.rename(lab.file.parent / "moved"))
    urls = [url.replace(str(lab.file), new) for url in corpus["url"].to_pylist()]
    moved = corpus.set_column(corpus.column_names.index("url"), "url", pa.array(urls))

    def refuse() -> Any:
        raise AssertionError("a source is opened")

    _, difference = plan_growth(planned, moved, refuse)
    assert said(difference) == {"moved": [lab.name("a"), lab.name("b")]}


def test_a_rejected_source_that_moved_is_looked_for_at_its_new_place(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "a.mp4").write_bytes(BAD)
    (old / "b.mp4").write_bytes(B)
    config = load_config(str(make_config(tmp_path, old, f"{tmp_path}/cache")))
    planned = grow_cache(config, prober=lambda _: Reading())
    new = old.rename(tmp_path / "new")
    corpus = config.corpus.model_copy(update={"source": str(new)})
    step, difference = plan_growth(planned, read_corpus(corpus).table, Reading)
    assert said(difference) == {"moved": ["a.mp4", "b.mp4"]}
    taken = take_step(planned, step)
    assert taken is not None
    assert not plan_growth(taken, read_corpus(corpus).table, Reading)[0]
    (new / "a.mp4").write_bytes(A)
    step, difference = plan_retry(taken, failed(0), Reading)
    assert said(difference) == {"repaired": ["a.mp4"], "retried": ["b.mp4"]}
    (tables,) = step.clips.values()
    urls = {url for table in tables for url in table["url"].to_pylist()}
    assert urls == {str(new / "a.mp4"), str(new / "b.mp4")}


def test_a_failed_clip_of_a_source_that_lacks_clips_is_tried_again_and_no_other(lab: Lab) -> None:
    """`precompute` plans the whole source, and says that its content is as it was."""
    lab.write([("a", A), ("b", B)])
    planned = lab.plan()
    known, step = KnownCache(planned.storage, planned.manifest, planned.plan), Step(kind="grow")
    step.add_sources(as_sources(known, pa.chunked_array([[lab.name("a")]])), "partial")
    taken = take_step(planned, step)
    assert taken is not None
    step, difference = plan_retry(taken, failed(0), Reading)
    assert said(difference) == {"retried": [lab.name("a")]}
    assert step.num_clips == 1
    step, difference = lab.grow(taken)
    assert said(difference) == {"completed": [lab.name("a")]}
    (retired,) = step.retired
    assert retired.to_pylist() == [{"bucket": BUCKET, "shard": 0, "row": 0, "why": "completed"}]
    assert step.num_clips == 1
    grown = take_step(taken, step)
    assert grown is not None
    assert not lab.grow(grown)[0]
    lab.write([("a", A * 2), ("b", B)])
    assert said(plan_growth(taken, read_corpus(lab.config.corpus).table, Reading)[1])[
        "changed"
    ] == [lab.name("a")]
