"""Stamps: a file that was written again has another one, and what says nothing has none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from latentcache.corpus import stamps
from latentcache.corpus.stamps import NUM_THREADS, stamp_sources


def stamp(path: Path) -> str | None:
    return stamp_sources([str(path)], None)[0]


def test_a_stamp_changes_with_size_or_time_and_with_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "v.mp4"
    file.write_bytes(b"one")
    os.utime(file, (1.0, 1.0))
    first = stamp(file)
    assert first is not None
    assert stamp(file) == first
    file.write_bytes(b"other")
    os.utime(file, (1.0, 1.0))
    assert stamp(file) not in (None, first)
    file.write_bytes(b"one")
    os.utime(file, (2.0, 2.0))
    assert stamp(file) not in (None, first)


@pytest.mark.parametrize("num_present", [1, 2 * NUM_THREADS])
def test_stamps_are_in_the_order_of_the_urls_and_none_where_nothing_is(
    tmp_path: Path, num_present: int
) -> None:
    files = [tmp_path / f"{n}" for n in range(num_present)]
    for size, file in enumerate(files):
        file.write_bytes(b"x" * size)
    found = stamp_sources([*map(str, files), str(tmp_path / "missing")], None)
    assert found == [*map(stamp, files), None]
    assert [text.partition(":")[0] for text in found[:-1] if text] == [
        str(size) for size in range(num_present)
    ]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"size": 3, "ETag": '"a"', "LastModified": "noon"}, '3:"a"'),
        ({"size": 3, "ETag": None, "LastModified": "noon"}, "3:noon"),
        ({"size": 3, "mtime": 0.0}, "3:0.0"),
        ({"size": 3, "blob_id": "a", "lfs": None, "last_commit": None}, "3:a"),
        ({"size": 3}, None),
    ],
)
def test_a_stores_tag_says_more_than_its_time(
    monkeypatch: pytest.MonkeyPatch, facts: Mapping[str, Any], expected: str | None
) -> None:
    monkeypatch.setattr(stamps, "file_facts", lambda *_: facts)
    assert stamp_sources(["s3://bucket/v.mp4"], None) == [expected]
