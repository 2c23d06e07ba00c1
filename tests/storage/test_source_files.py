"""Source files: found by folder and pattern, and read, wherever they are."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentcache.errors import StorageError
from latentcache.storage.folder import Storage, join
from latentcache.storage.source_files import (
    RangesIgnoredError,
    find_files,
    glob_files,
    is_directory,
    is_file,
    open_source,
    read_many,
    read_range,
)
from tests.tools.http_files import Server, serve

pytestmark = pytest.mark.usefixtures("no_waiting")


def test_finds_files_and_reads_many(place: tuple[str, dict[str, Any]]) -> None:
    url, options = place
    store = Storage(url, options)
    names = ["a.mp4", "b c/d.mp4", "b c/d.txt", "e/[x].txt", "e/f/g.mp4"]
    for name in names:
        store.write(name, name.encode())
    assert find_files(url, options) == names
    assert find_files(f"{url}/", options) == names
    assert find_files(url, options, max_depth=1) == ["a.mp4"]
    assert find_files(url, options, max_depth=2) == names[:4]
    assert glob_files(f"{url}/**/*.mp4", options) == (url, ["a.mp4", "b c/d.mp4", "e/f/g.mp4"])
    assert glob_files(f"{url}/*/d.*", options) == (url, ["b c/d.mp4", "b c/d.txt"])
    assert glob_files(f"{url}/e/*", options) == (f"{url}/e", ["[x].txt"])
    assert is_directory(f"{url}/e", options)
    assert not is_directory(f"{url}/a.mp4", options)
    assert is_file(f"{url}/a.mp4", options)
    assert not is_file(f"{url}/e", options)
    assert not is_file(f"{url}/zzz", options)
    urls = [join(url, n) for n in reversed(names)]
    assert read_many(urls, options) == [n.encode() for n in reversed(names)]
    with open_source(urls[0], options) as file:
        assert file.read() == b"e/f/g.mp4"
    with pytest.raises(FileNotFoundError), open_source(join(url, "zzz"), options):
        pass
    with pytest.raises(FileNotFoundError):
        read_many([urls[0], join(url, "zzz")], options)


def test_symbolic_links_are_followed_once_and_pipes_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(b"1")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.mp4")
    found = find_files(str(tmp_path))
    assert {"a/x.mp4", "b/x.mp4", "gone.mp4"} <= set(found)
    assert "pipe.mp4" not in found
    assert len(found) < 10


def test_a_folder_that_cannot_be_listed_is_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        find_files(str(tmp_path))


@pytest.mark.slow
def test_a_folder_that_a_server_does_not_list_is_not_skipped(tmp_path: Path) -> None:
    for name in ("a/b/x.mp4", "a/c/y.mp4", "z.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    with serve(tmp_path) as server:
        server.lists = True
        assert find_files(server.url) == ["a/b/x.mp4", "a/c/y.mp4", "z.mp4"]
        assert find_files(server.url, max_depth=2) == ["z.mp4"]
        server.unlisted = {"c"}
        with pytest.raises(StorageError, match="cannot read"):
            find_files(server.url)


def test_a_local_name_may_hold_what_urls_use(tmp_path: Path) -> None:
    for name in ("a::b.mp4", "é\n💡.mp4", "#?[1]*.mp4"):
        (tmp_path / name).write_bytes(b"1")
        with open_source(str(tmp_path / name)) as file:
            assert file.read() == b"1"
        assert is_file(str(tmp_path / name))


#: More than what is read ahead of a file on http.
_LARGE = bytes(range(251)) * 50_000


@pytest.fixture(name="server")
def server_fixture(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("aiohttp", reason="fsspec reads http with it")
    (tmp_path / "v.mp4").write_bytes(_LARGE)
    with serve(tmp_path) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("gives_others", [False, True])
@pytest.mark.parametrize("ranges", [0, 1])
def test_a_file_is_read_from_a_server_that_gives_no_ranges_or_others(
    server: Server, ranges: int, gives_others: bool
) -> None:
    server.ranges_left, server.gives_others = ranges, gives_others
    with open_source(f"{server.url}/v.mp4") as file:
        assert file.read(1000) == _LARGE[:1000]
        assert file.read() == _LARGE[1000:]
    server.ranges_left = ranges
    with open_source(f"{server.url}/v.mp4", for_parts=True) as file:
        for start in (1000, len(_LARGE) - 10, 5):
            file.seek(start)
            assert file.read(10) == _LARGE[start : start + 10]


@pytest.mark.slow
def test_a_range_that_was_not_asked_for_is_none(server: Server) -> None:
    url = f"{server.url}/v.mp4"
    assert read_range(url, 5, 15) == _LARGE[5:15]
    server.ranges_left, server.gives_others = 0, True
    with pytest.raises(RangesIgnoredError, match="or another part of it, where a range of bytes"):
        read_range(url, 5, 15)
    assert read_range(url, 0, 15) == _LARGE[:15]
