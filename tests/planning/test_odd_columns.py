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

from latentcache.config.files import load_config
from latentcache.errors import CorpusError
from latentcache.planning import planner
from tests.planning.test_pieces import Prober
from tests.tools.caches import make_config

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
        self.table = folder / "corpus.parquet"
        for name in "ab":
            (folder / f"{name}.mp4").write_bytes(b"0" * 1000)
        self._config = make_config(
            folder,
            self.table,
            str(folder / "cache"),
            corpus={"columns": {"video": "video"}, "keep": ["meta"]},
        )

    def write(self, values: pa.Array) -> None:
        pq.write_table(pa.table({"video": ["a.mp4", "b.mp4"], "meta": values}), self.table)

    def grow(self, video: str = "video") -> tuple[list[Any], int]:
        """Plan what is new; returns each source's value, and of how many clips it is another now."""
        config = load_config(str(self._config), [f"corpus.columns.video={video}"])
        relabelled = list[int]()
        hooks = planner.Hooks(on_step=lambda _, step, __: relabelled.append(step.num_relabelled))
        planned = planner.grow_cache(config, hooks=hooks)
        rows = pa.concat_tables([planned.plan.rows(shard) for shard in planned.planned_shards()])
        found = dict(zip(rows["source"].to_pylist(), rows["meta"].to_pylist(), strict=True))
        return [found[name] for name in sorted(found)], sum(relabelled)


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
