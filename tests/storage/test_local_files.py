"""Storage on a local folder: files that appear whole, and what local disks refuse."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from latentcache.errors import StorageError
from latentcache.storage import local_files
from latentcache.storage.folder import Storage

pytestmark = pytest.mark.usefixtures("no_waiting")


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


def test_what_goes_while_a_folder_is_listed_is_left_out(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    store.write("stays/a", b"1")
    is_over = threading.Event()

    def come_and_go() -> None:
        while not is_over.is_set():
            for n in range(20):
                store.write(f"f{n % 3}/{n}", b"1")
            for n in range(3):
                shutil.rmtree(tmp_path / f"f{n}")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(2000):
            assert "stays/a" in [file.path for file in store.files()]
    finally:
        is_over.set()
        thread.join()


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

    monkeypatch.setattr(local_files, "replace", refuse)
    with pytest.raises(StorageError, match=r"Permission denied.*Check the permissions"):
        Storage(str(tmp_path)).write("a", b"1")
    assert len(tries) == 1


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
