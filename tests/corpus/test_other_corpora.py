"""Corpora as other programs write them: JSON arrays, .caption files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentcache.errors import CorpusError
from tests.tools.corpora import column, make, read


def test_a_json_array_is_a_table_and_keeps_lists(tmp_path: Path) -> None:
    rows = [
        {"path": "a.mp4", "cap": "one", "tags": ["x", "y"]},
        {"path": "b/b.mp4", "tags": []},
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    corpus = read(path, columns={"video": "path", "caption": "cap"}, keep=["tags"])
    assert column(corpus, "name") == ["a.mp4", "b/b.mp4"]
    assert column(corpus, "caption") == ["one", None]
    assert column(corpus, "tags") == [["x", "y"], []]


def test_json_lines_called_json_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"video": "a.mp4"}\n{"video": "b.mp4"}\n')
    assert column(read(tmp_path / "t.json"), "name") == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[", "is not JSON"),
        ('[{"video": "a"}] x', "is not JSON"),
        ('["a"]', "item 1 is a str, not an object"),
        ('[{"video": "a"}, {"video": ["b"]}]', r"item 2: column 'video' is \['b'\], not text"),
        ("[]", "has no rows"),
        ("", "has no rows"),
        ('[{"path": "a"}]', "has no column 'video'"),
        ('"a"', "is a str, not an object"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_array_is_refused_with_the_item(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(CorpusError, match=rf"t\.json.*{why}"):
        read(tmp_path / "t.json")


def test_caption_files_are_captions_and_text_files_come_first(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "a.caption").write_text("of a")
    (tmp_path / "b.caption").write_text("not this")
    (tmp_path / "b.txt").write_text("of b")
    captions = ["of a", "of b", None]
    assert column(read(tmp_path), "caption") == captions
    assert column(read(f"{tmp_path}/*.mp4"), "caption") == captions
    assert column(read(tmp_path / "a.mp4"), "caption") == ["of a"]
    assert read(tmp_path).ignored == {".caption": 1}
