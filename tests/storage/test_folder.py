"""Storage on a local folder, in memory and over the S3 protocol: one suite; then what differs."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import traceback
import uuid
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from latentcache.errors import ConfigError, StorageError
from latentcache.storage import folder, retry
from latentcache.storage.filesystems import open_filesystem
from latentcache.storage.folder import Storage, join
from latentcache.storage.source_files import (
    find_files,
    glob_files,
    is_directory,
    is_file,
    open_source,
    read_many,
)
from tests.tools.s3 import S3, SECRET, s3_fixture, s3_server_fixture  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """URL and options of an empty folder."""
    if request.param == "local":
        return str(tmp_path / "cache"), {}
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/cache", {}
    s3: S3 = request.getfixturevalue("s3")
    return f"{s3.url}/cache", s3.options


@pytest.fixture
def store(place: tuple[str, dict[str, Any]]) -> Storage:
    return Storage(*place)


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


def test_an_object_store_is_asked_for_each_prefix(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = Storage(f"{s3.url}/cache", s3.options), []
    for name in ("000001.parquet", "001001.parquet"):
        store.write(f"samples/{name}", b"1")
    filesystem = type(store._open()[0])
    find = filesystem.find

    def counting(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["prefix"])
        return find(self, path, *args, **kwargs)

    monkeypatch.setattr(filesystem, "find", counting)
    assert list(store.names("samples", ["001"])) == ["001001.parquet"]
    assert asked == ["001"]


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


# Local


def test_a_failed_local_write_leaves_the_old_bytes_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Storage(str(tmp_path))
    store.write("a", b"old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=r"cannot write .*/a: OSError: No space left .*Free some"
    ):
        store.write("a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert store.read("a") == b"old"


def test_a_temporary_file_is_never_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(str(tmp_path))
    seen: list[tuple[int, dict[str, int]]] = []
    fsync = os.fsync

    def look(fd: int) -> None:
        seen.append((len(list(tmp_path.iterdir())), store.list("")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", look)
    store.write("a", b"1")
    assert seen[0] == (1, {})  # the temporary file is there, and is not listed
    assert seen[1] == (1, {"a": 1})  # then the folder's own sync: the rename was before


def test_concurrent_local_writes_give_one_of_them_whole(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    bodies = [bytes([i]) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=store.write, args=("a", body)) for body in bodies]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if store.exists("a"):
            assert store.read("a") in bodies
    assert store.list("") == {"a": 100_000}


def test_of_concurrent_creations_one_succeeds(tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "cache"))
    created: list[int] = []
    start = threading.Barrier(8)

    def create(number: int) -> None:
        start.wait()
        if store.create("x", bytes([number]) * 100_000):
            created.append(number)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = created
    assert store.read("x") == bytes([winner]) * 100_000
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["x"]


def test_a_local_file_has_the_usual_permissions(tmp_path: Path) -> None:
    Storage(str(tmp_path)).write("a", b"1")
    (tmp_path / "b").write_bytes(b"1")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    store = Storage(str(tmp_path / "file"))
    assert store.list("") == {}
    with pytest.raises(StorageError, match=r"cannot write .*file/a/b: \w+Error: "):
        store.write("a/b", b"1")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_write_permission_is_a_storage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match=r"Permission denied.*Check the permissions"):
        Storage(str(tmp_path)).write("a", b"1")


def test_missing_permission_says_so_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def refuse(*args: Any) -> None:
        tries.append(args)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(folder, "_replace_file", refuse)
    with pytest.raises(StorageError, match=r"Permission denied.*Check the permissions"):
        Storage(str(tmp_path)).write("a", b"1")
    assert len(tries) == 1


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


def test_a_local_name_may_hold_what_urls_use(tmp_path: Path) -> None:
    for name in ("a::b.mp4", "é\n💡.mp4", "#?[1]*.mp4"):
        (tmp_path / name).write_bytes(b"1")
        with open_source(str(tmp_path / name)) as file:
            assert file.read() == b"1"
        assert is_file(str(tmp_path / name))


# S3


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    import s3fs

    calls: list[str] = []
    original = s3fs.S3FileSystem._call_s3

    async def record(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return await original(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", record)
    return calls


def test_an_s3_write_is_one_put(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, store = calls_of(monkeypatch), Storage(s3.url, s3.options)
    store.write("a", bytes(20 << 20))
    assert calls == ["put_object"]


@pytest.mark.parametrize(
    ("code", "status", "times"),
    [
        ("NotImplemented", 501, None),
        ("MethodNotAllowed", 405, None),
        ("InvalidArgument", 400, None),  # as of a store that does not know the condition
        ("BadDigest", 400, None),  # which says nothing of the condition
        ("RequestTimeout", 400, 1),  # nor does this, and it passes
    ],
)
def test_an_s3_object_is_never_written_without_the_condition(
    s3: S3, monkeypatch: pytest.MonkeyPatch, code: str, status: int, times: int | None
) -> None:
    """Whatever the store answers, an object that is there stays as it is."""
    store = Storage(f"{s3.url}/cache", s3.options)
    store.write("cache.json", b"theirs")
    fs, refused = store._open()[0], []
    pipe_file = fs.pipe_file

    def refuse(path: str, data: bytes, **options: Any) -> None:
        if options.get("mode") == "create" and len(refused) != times:
            refused.append(path)
            response: Any = {
                "Error": {"Code": code},
                "ResponseMetadata": {"HTTPStatusCode": status},
            }
            raise OSError(errno.EIO, "A header is not as it should be") from ClientError(
                response, "PutObject"
            )
        pipe_file(path, data, **options)

    monkeypatch.setattr(fs, "pipe_file", refuse)
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    if times:
        assert not store.create("cache.json", b"mine")
    else:
        with pytest.raises(StorageError):
            store.create("cache.json", b"mine")
        assert not store.creates_exclusively("cache.json")
    assert store.read("cache.json") == b"theirs"
    assert refused


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"file system without hard links.*latentcache copy"):
        Storage(str(tmp_path)).create("a", b"1")
    assert not list(tmp_path.iterdir())


def test_a_large_s3_write_appears_when_it_is_complete(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, store = calls_of(monkeypatch), Storage(s3.url, s3.options)
    data = os.urandom(1 << 20) * 100
    store.write("a", data)
    assert set(calls) == {"create_multipart_upload", "upload_part", "complete_multipart_upload"}
    assert calls[-1] == "complete_multipart_upload"
    assert store.read("a") == data


def test_ranges_of_an_s3_object_are_read_at_the_same_time(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    import s3fs

    store = Storage(s3.url, s3.options)
    store.write("a", bytes(100))
    running = peak = 0
    original = s3fs.S3FileSystem._call_s3

    async def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await original(self, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", count)
    assert store.read_ranges("a", [(i, 1) for i in range(8)]) == [b"\0"] * 8
    assert peak == 8


def test_a_missing_bucket_is_a_storage_error_that_names_it(s3: S3) -> None:
    store = Storage("s3://nobody-made-this/cache", s3.options)
    assert store.list("") == {}
    with pytest.raises(
        StorageError, match=r"cannot write s3://nobody-made-this/cache/a: .*no such bucket.*Create"
    ):
        store.write("a", b"1")


def test_no_error_shows_a_secret(s3: S3) -> None:
    options = {**s3.options, "client_kwargs": {"endpoint_url": f"http://user:{SECRET}@127.0.0.1:1"}}
    with pytest.raises(StorageError) as caught:
        Storage(s3.url, {**options, "skip_instance_cache": True, "retries": 1}).read("a")
    shown = (
        str(caught.value) + repr(caught.value) + "".join(traceback.format_exception(caught.value))
    )
    assert SECRET not in shown
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_systems_own_message_loses_its_secrets(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Storage(s3.url, s3.options)

    def refuse(*args: Any) -> None:
        raise ValueError(f"signed with {SECRET},\nat ftp://me:pw@host")

    monkeypatch.setattr(store._open()[0], "cat_file", refuse)
    with pytest.raises(StorageError) as caught:
        store.read("a")
    assert str(caught.value).endswith("/a: ValueError: signed with ***, at ftp://***@host.")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_forked_process_opens_its_own_file_system(s3: S3) -> None:
    store = Storage(s3.url, s3.options)
    store.write("a", b"1")
    child = os.fork()
    if child == 0:
        os._exit(0 if store.read("a") == b"1" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.read("a") == b"1"


def test_the_message_says_how_often_it_was_tried(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(s3.url, s3.options)

    def fail(*args: Any) -> None:
        raise ConnectionResetError("reset")

    monkeypatch.setattr(store._open()[0], "pipe_file", fail)
    with pytest.raises(StorageError) as caught:
        store.write("a", b"1")
    assert str(caught.value) == (
        f"cannot write {s3.url}/a: ConnectionResetError: reset (tried {retry.TRIES} times over 0 s). "
        "Check the network and the endpoint, then run the same command again."
    )


# URLs


def test_an_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown scheme 'memroy'. Did you mean 'memory'\?"):
        Storage("memroy://b/c")


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"gs://b/c: .*Run: pip install '?gcsfs"):
        Storage("gs://b/c")


def test_a_missing_demo_package_names_the_command() -> None:
    with pytest.raises(ConfigError, match=r"'no_such' is not installed.*pip install"):
        open_filesystem("package://no_such/data")


def test_a_folder_of_an_installed_package_is_found() -> None:
    assert "__init__.py" in find_files("package://latentcache", max_depth=1)
    assert is_directory("package://latentcache/decoders")


def test_a_place_where_no_folder_can_be_is_said_before_anything_is_written() -> None:
    with pytest.raises(StorageError, match="there is no such bucket or folder"):
        Storage("/proc/nope").creates_exclusively("cache.json")
