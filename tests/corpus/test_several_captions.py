"""Captions that are lists of texts, in every kind of corpus that can hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentcache.corpus import table_readers
from latentcache.errors import CorpusError
from tests.tools.corpora import column, make, read, write_jsonl, write_parquet
from tests.tools.tars import write_tar

LISTS = [["long a", "short a"], ["", "b"], [], None]
FIRSTS = ["long a", "b", None, None]
COLUMNS = {"image": "path", "caption": "said"}


def rows(captions: list[Any]) -> list[dict[str, Any]]:
    return [{"path": f"{n}.png", "said": said} for n, said in enumerate(captions)]


def write_json(path: Path, given: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(given))
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [("c.jsonl", write_jsonl), ("c.json", write_json), ("c.parquet", write_parquet)],
)
def test_the_first_caption_counts_and_all_are_kept(tmp_path: Path, name: str, write: Any) -> None:
    make(tmp_path, *(f"{n}.png" for n in range(4)))
    corpus = read(write(tmp_path / name, rows(LISTS)), columns=COLUMNS)
    assert column(corpus, "caption") == FIRSTS
    assert column(corpus, "captions") == LISTS


def test_a_single_text_among_lists_is_a_list_of_one(tmp_path: Path) -> None:
    make(tmp_path, "0.png", "1.png")
    corpus = read(write_jsonl(tmp_path / "c.jsonl", rows(["one", ["a", "b"]])), columns=COLUMNS)
    assert column(corpus, "caption") == ["one", "a"]
    assert column(corpus, "captions") == [["one"], ["a", "b"]]


@pytest.mark.parametrize(
    "said",
    [
        ["a", None, "b", ["c", "d"]],
        [["c", "d"], "a", None, "b"],
        [None, None, ["c"]],
        [["a", "b"], ["c"]],
        ["a", "b", ["c"], [None], None, None],
    ],
)
def test_texts_and_lists_agree_however_many_lines_are_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[Any]
) -> None:
    make(tmp_path, *(f"{n}.png" for n in range(len(said))))
    path = write_jsonl(tmp_path / "c.jsonl", rows(said))
    whole = read(path, columns=COLUMNS).table
    for lines in (1, 2, 3):
        monkeypatch.setattr(table_readers, "JSON_ROWS", lines)
        assert read(path, columns=COLUMNS).table.to_pylist() == whole.to_pylist()
    expected = [each if each is None or isinstance(each, list) else [each] for each in said]
    assert whole["captions"].to_pylist() == expected


def test_texts_alone_make_no_lists_and_a_kept_column_of_that_name_stays(tmp_path: Path) -> None:
    make(tmp_path, "0.png")
    corpus = read(write_jsonl(tmp_path / "c.jsonl", rows(["one"])), columns=COLUMNS)
    assert "captions" not in corpus.table.column_names
    given = [{**row, "captions": 7} for row in rows([["a"]])]
    kept = read(write_jsonl(tmp_path / "k.jsonl", given), columns=COLUMNS, keep=["captions"])
    assert column(kept, "captions") == [7]


@pytest.mark.parametrize("columns", [None, {"image": "png", "caption": "caption"}])
def test_a_json_of_a_tar_file_has_several(tmp_path: Path, columns: Any) -> None:
    facts = [{"caption": ["p", "q"]}, {"caption": "one"}, {}]
    members = [(f"{n}.png", b"x") for n in range(3)]
    members += [(f"{n}.json", json.dumps(fact).encode()) for n, fact in enumerate(facts)]
    corpus = read(write_tar(tmp_path / "t.tar", members), columns=columns)
    assert column(corpus, "caption") == ["p", "one", None]
    assert column(corpus, "captions") == [["p", "q"], ["one"], None]


@pytest.mark.parametrize("said", [[["a", {"b": 1}]], [{"text": "a"}]])
def test_what_is_no_text_is_refused_with_its_line(tmp_path: Path, said: list[Any]) -> None:
    make(tmp_path, "0.png", "1.png")
    with pytest.raises(CorpusError, match=r"line 2: column 'said' is .*, not text"):
        read(write_jsonl(tmp_path / "c.jsonl", rows([["fine"], *said])), columns=COLUMNS)
