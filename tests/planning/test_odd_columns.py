"""Kept columns of any type that Parquet files have: planned, found the same, and found changed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentcache
from latentcache import LatentLoader
from latentcache.config.files import load_config
from latentcache.errors import CorpusError
from latentcache.planning import planner
from latentcache.planning.kept_types import as_known
from latentcache.planning.planned import PlannedCache
from tests.planning.test_pieces import Prober
from tests.tools.caches import make_config
from tests.tools.planned import fill_cache

IDS = [uuid.UUID(int=number) for number in (1, 2, 3)]
#: Two sources' values in a type, the first one's afterwards, and both as they are read.
ODD: dict[str, tuple[Callable[[list[Any]], pa.Array], list[Any], Any, list[Any]]] = {
    "json": (
        lambda values: pa.array(values, pa.json_()),
        ['{"x": 1}', None],
        "[]",
        ['{"x": 1}', None],
    ),
    "uuid": (
        lambda values: pa.array([value.bytes for value in values], pa.uuid()),
        IDS[:2],
        IDS[2],
        [str(each) for each in IDS[:2]],
    ),
    "bool8": (
        lambda values: pa.ExtensionArray.from_storage(pa.bool8(), pa.array(values, pa.int8())),
        [1, 0],
        0,
        [1, 0],
    ),
    "float16": (lambda values: pa.array(np.array(values, np.float16)), [0.5, 2], 3, [0.5, 2.0]),
    "string_view": (
        lambda values: pa.array(values, pa.string_view()),
        ["x", None],
        "y",
        ["x", None],
    ),
    "binary_view": (
        lambda values: pa.array(values, pa.binary_view()),
        [b"x", None],
        b"y",
        [b"x", None],
    ),
    "large_string": (
        lambda values: pa.array(values, pa.large_string()),
        ["x", None],
        "y",
        ["x", None],
    ),
    "category": (lambda values: pa.array(values).dictionary_encode(), ["x", "z"], "y", ["x", "z"]),
    "decimal": (lambda values: pa.array(values, pa.decimal128(5, 0)), [1, None], 2, [1, None]),
    "list": (lambda values: pa.array(values), [["x"], None], ["y"], [["x"], None]),
    "struct": (lambda values: pa.array(values), [{"a": 1}, None], {"a": 2}, [{"a": 1}, None]),
    "map": (
        lambda values: pa.array(values, pa.map_(pa.string(), pa.int32())),
        [[("a", 1)], None],
        [("a", 2)],
        [[("a", 1)], None],
    ),
}


class Corpus:
    """Two videos whose table keeps a column, and the cache that is planned of them."""

    def __init__(self, folder: Path) -> None:
        self.table, self.url = folder / "corpus.parquet", str(folder / "cache")
        for name in "abc":
            (folder / f"{name}.mp4").write_bytes(b"0" * 1000)
        self._config = make_config(
            folder,
            self.table,
            self.url,
            corpus={"columns": {"video": "video"}, "keep": ["meta"]},
        )

    def write(self, values: pa.Array) -> None:
        names = ["a.mp4", "b.mp4", "c.mp4"][: len(values)]
        pq.write_table(pa.table({"video": names, "meta": values}), self.table)

    def grow(self, video: str = "video", *, fill: bool = False) -> tuple[list[Any], int]:
        """Plan what is new; returns each source's value, and of how many clips it is another now."""
        planned, num_relabelled = self.plan(video)
        if fill:
            fill_cache(planned)
        tables = [planned.plan.rows(shard) for shard in planned.planned_shards()]
        rows = pa.concat_tables(tables, promote_options="permissive")
        found = dict(zip(rows["source"].to_pylist(), rows["meta"].to_pylist(), strict=True))
        return [found[name] for name in sorted(found)], num_relabelled

    def plan(self, video: str = "video") -> tuple[PlannedCache, int]:
        """Plan what is new; returns the cache, and of how many clips the column has another value now."""
        config = load_config(str(self._config), [f"corpus.columns.video={video}"])
        relabelled = list[int]()
        hooks = planner.Hooks(on_step=lambda _, step, __: relabelled.append(step.num_relabelled))
        return planner.grow_cache(config, hooks=hooks), sum(relabelled)


@pytest.fixture(name="corpus")
def corpus_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(planner, "probing_pool", lambda _: Prober(""))
    return Corpus(tmp_path)


@pytest.mark.parametrize("kind", ODD)
def test_a_column_is_kept_and_only_what_changed_is_taken_in(corpus: Corpus, kind: str) -> None:
    made, values, changed, expected = ODD[kind]
    corpus.write(made(values))
    assert corpus.grow() == (expected, 0)
    assert corpus.grow() == (expected, 0)
    corpus.write(made([changed, *values[1:]]))
    after, num_relabelled = corpus.grow()
    assert after[0] != expected[0]
    assert after[1:] == expected[1:]
    assert num_relabelled == 8


#: Values of a column in a corpus, where `None`, `[]` and members that are None are all that a part has.
EMPTY: dict[str, tuple[Any, Any]] = {
    "truth": (None, True),
    "number": (None, 5),
    "list": (None, ["x"]),
    "items": ([], ["x"]),
    "inner list": ([[]], [[True]]),
    "object": (None, {"a": 1}),
    "member": ({"a": None, "n": 1}, {"a": True, "n": 2}),
    "list in a member": ({"a": [], "n": 1}, {"a": [1.5], "n": 2}),
    "member in a list": ([{"a": None}], [{"a": {"b": True}}]),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_a_column_may_have_values_later_and_lose_them(corpus: Corpus, kind: str) -> None:
    empty, value = EMPTY[kind]
    for values in ([empty, empty], [empty, value], [empty, empty], [empty, value, value]):
        corpus.write(pa.array(values))
        assert corpus.grow()[0] == values


def test_items_of_maps_may_have_values_later_and_lose_them(corpus: Corpus) -> None:
    empty, value = [("x", None)], [("x", 5)]
    null, number = (pa.map_(pa.string(), kind) for kind in (pa.null(), pa.int64()))
    for values, kind in (
        ([empty, None], null),
        ([empty, value], number),
        ([empty, None], null),
        ([value, empty, value], number),
    ):
        corpus.write(pa.array(values, kind))
        assert corpus.grow()[0] == values


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.list_(pa.int8()), pa.dictionary(pa.int8(), pa.string())]
)
def test_nulls_of_any_type_fit(corpus: Corpus, kind: pa.DataType) -> None:
    corpus.write(pa.array([{"a": True}, {"a": False}]))
    corpus.grow()
    corpus.write(pa.nulls(2, kind))
    assert corpus.grow()[0] == [None, None]
    corpus.write(pa.array([{"a": None}] * 2, pa.struct({"a": kind})))
    assert corpus.grow()[0] == [{"a": None}] * 2


TEXT, TRUTH, INT = pa.string(), pa.bool_(), pa.int64()


def _members(*kinds: pa.DataType) -> pa.DataType:
    return pa.struct(dict(zip("an", kinds, strict=False)))


@pytest.mark.parametrize(
    ("values", "now", "before"),
    [
        ([[None] * 2, None, [None] * 2], pa.list_(TEXT, 2), pa.list_(TRUTH, 2)),
        ([[{"a": None}], None, []], pa.large_list(_members(TEXT)), pa.list_(_members(TRUTH))),
        ([{"a": None}, None], _members(TEXT), _members(TRUTH)),
        ([{"a": None, "n": 1}, None], _members(TEXT, INT), _members(TRUTH, INT)),
        ([[[]], None, []], pa.list_(pa.list_(TEXT)), pa.list_(pa.list_(TRUTH))),
    ],
)
def test_parts_without_values_take_their_types_of_before(
    values: list[Any], now: pa.DataType, before: pa.DataType
) -> None:
    column = pa.array([values[0], *values], now).slice(1)
    chunks = pa.chunked_array([column.slice(0, 1), column.slice(1)])
    for given in (chunks, chunks.slice(0, 0), pa.chunked_array([], now)):
        found = as_known(pa.table({"meta": given}), {"meta": before})["meta"]
        found.validate(full=True)
        assert (found.type, found.to_pylist()) == (before, given.to_pylist())


def test_clips_of_before_a_column_had_values_are_read_with_those_after(corpus: Corpus) -> None:
    corpus.write(pa.nulls(2))
    corpus.grow(fill=True)
    cache = latentcache.open_cache(corpus.url)
    assert {clip["meta"] for clip in cache} == {None}
    assert len(cache.dataset(where="meta is null or meta = 'x'")) == len(cache)
    corpus.write(pa.array([None, None, True]))
    corpus.grow(fill=True)
    cache = latentcache.open_cache(corpus.url)
    assert {clip["meta"] for clip in cache} == {None, True}
    assert [*{clip["meta"] for clip in cache.dataset(where="meta")}] == [True]
    (batch,) = LatentLoader(cache, batch_size=len(cache), shuffle=False)
    assert {*batch["meta"]} == {None, True}


def test_the_path_of_a_video_may_be_kept_as_a_category(corpus: Corpus) -> None:
    names = pa.array(["a.mp4", "b.mp4"]).dictionary_encode()
    pq.write_table(pa.table({"meta": names}), corpus.table)
    assert corpus.grow("meta")[0] == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("value", [{}, [{}]])
def test_objects_without_members_are_refused_before_a_source_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    table = tmp_path / "corpus.jsonl"
    table.write_text(json.dumps({"video": "a.mp4", "meta": value}) + "\n")
    config = make_config(
        tmp_path,
        table,
        str(tmp_path / "cache"),
        corpus={"columns": {"video": "video"}, "keep": ["meta"]},
    )
    monkeypatch.setattr(planner, "probing_pool", lambda _: pytest.fail("it is probed"))
    with pytest.raises(
        CorpusError, match=r"corpus.keep: 'meta' holds objects that have no members"
    ):
        planner.grow_cache(load_config(str(config)))


def test_captions_that_were_lists_are_lists_of_one_text() -> None:
    texts = pa.chunked_array([["-", "one", None], [], ["two"]], pa.string()).slice(1)
    corpus = pa.table({"caption": texts})
    lists = as_known(corpus, {"captions": pa.list_(pa.string())})["captions"]
    assert lists.to_pylist() == [["one"], None, ["two"]]
    assert as_known(corpus, {"captions": pa.string()}).column_names == ["caption"]
