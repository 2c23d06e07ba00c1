"""Storage on a local folder, in memory and over the S3 protocol: one suite."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from latentcache.errors import StorageError
from latentcache.storage.folder import Storage
from tests.tools.s3 import SECRET

pytestmark = pytest.mark.usefixtures("no_waiting")


def test_reads_what_was_written_and_replaces_it_whole(store: Storage) -> None:
    store.write("a/b.bin", b"first, long")
    store.write("a/b.bin", b"second")
    assert store.read("a/b.bin") == b"second"
    assert store.size("a/b.bin") == 6
    assert store.exists("a/b.bin")


def test_creates_what_is_not_there_and_leaves_what_is(store: Storage) -> None:
    assert store.create("a/b.bin", b"first")
    assert not store.create("a/b.bin", b"second")
    assert store.read("a/b.bin") == b"first"
    store.write("a/b.bin", b"third")
    assert store.read("a/b.bin") == b"third"
    assert store.list("a") == {"b.bin": 5}


def test_what_is_not_there_is_file_not_found(store: Storage) -> None:
    assert not store.exists("a/b.bin")
    for read in (store.read, store.size, lambda p: store.read_ranges(p, [(0, 1)])):
        with pytest.raises(FileNotFoundError):
            read("a/b.bin")
    with pytest.raises(FileNotFoundError):
        store.read_ranges("a/b.bin", [(0, 1), (1, 1)])


def test_reads_ranges_in_order_and_cuts_them_at_the_end(store: Storage) -> None:
    store.write("x", bytes(range(100)))
    got = store.read_ranges("x", [(90, 20), (0, 3), (50, 2)])
    assert got == [bytes(range(90, 100)), b"\0\1\2", bytes([50, 51])]
    assert store.read_ranges("x", [(98, 9)]) == [bytes([98, 99])]
    assert store.read_ranges("x", [(200, 5), (0, 1), (100, 1)]) == [b"", b"\0", b""]
    assert store.read_ranges("x", [(200, 5)]) == [b""]
    assert store.read_ranges("x", []) == []


def test_lists_only_files_directly_in_the_folder(store: Storage) -> None:
    assert store.list("samples") == {}
    store.write("samples/0.parquet", b"12")
    store.write("samples/deep/1.parquet", b"1")
    store.write("samples/empty", b"")
    assert store.list("samples") == {"0.parquet": 2, "empty": 0}
    assert store.list("samples/0.parquet") == {}


def test_names_are_the_same_whether_or_not_they_are_listed_by_prefixes(store: Storage) -> None:
    assert list(store.names("samples", ["000"])) == []
    names = ["000998.parquet", "000999.parquet", "001000.parquet", "1000000.parquet"]
    for name in (*names, "000/1.parquet", "000999.parquet.tmp"):
        store.write(f"samples/{name}", b"1")
    assert sorted(store.names("samples")) == sorted(store.list("samples")) == names
    assert sorted(store.names("samples", ["000", "001", "1000", "100"])) == names
    assert list(store.names("samples/000998.parquet")) == []


def test_lists_folders_and_what_is_below_one(store: Storage) -> None:
    for path in ("a/x", "a/b/y", "a/c/d/z", "e"):
        store.write(path, b"1")
    assert list(store.folders("a")) == ["b", "c"]
    assert list(store.folders("nothing")) == []
    assert [file.path for file in store.files("a")] == ["a/b/y", "a/c/d/z", "a/x"]
    assert list(store.files("nothing")) == []


def test_a_listing_is_fresh_after_another_process_wrote(place: tuple[str, dict[str, Any]]) -> None:
    mine, other = Storage(*place), Storage(place[0], {**place[1], "skip_instance_cache": True})
    mine.write("f/a", b"1")
    assert mine.list("f") == {"a": 1}
    other.write("f/b", b"22")
    other.write("f/a", b"333")
    assert mine.list("f") == {"a": 3, "b": 2}
    assert mine.size("f/a") == 3
    assert mine.read("f/a") == b"333"
    other.delete("f/a")
    assert not mine.exists("f/a")


def test_deletes_once_and_again(store: Storage) -> None:
    store.write("a", b"1")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_travels_by_pickle_and_shows_no_options(place: tuple[str, dict[str, Any]]) -> None:
    store = Storage(*place)
    store.write("a", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read("a") == b"1"
    assert copy.url == place[0]
    assert SECRET not in repr(copy)


def test_a_place_where_no_folder_can_be_is_said_before_anything_is_written() -> None:
    with pytest.raises(StorageError, match="there is no such bucket or folder"):
        Storage("/proc/nope").creates_exclusively("cache.json")


def test_a_relative_path_stays_where_it_was_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Storage("cache")
    store.write("a", b"1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"
    opened = store._opened
    assert opened is not None
    store._opened = (0, *opened[1:])  # as in a process that was forked
    assert store.read("a") == b"1"
    assert (store.url, store.absolute_url) == ("cache", str(tmp_path / "cache"))
