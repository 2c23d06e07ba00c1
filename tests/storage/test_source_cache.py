"""The cache of remote sources: each byte is fetched once, torn blocks do not count, and the bound holds."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentcache.errors import StorageError
from latentcache.storage import source_cache
from latentcache.storage.source_cache import (
    BLOCK_BYTES,
    PIECE_BYTES,
    CachedSource,
    NoRoomError,
    SourceCache,
    StaleError,
)

MANY = 1 << 30
SIZE = 10 * BLOCK_BYTES + 17


@dataclass
class Remote:
    """A source at a storage that notes what is read. gate: reads wait for it."""

    data: bytes
    validator: str = "1"
    current: str = "1"
    reads: list[tuple[int, int]] = field(default_factory=list)
    gate: threading.Event | None = None
    error: Exception | None = None

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, end: int) -> bytes:
        self.reads.append((start, end))
        if self.gate is not None:
            self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return self.data[start:end]

    def is_same(self) -> bool:
        return self.current == self.validator


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture(name="remotes")
def remotes_fixture(monkeypatch: pytest.MonkeyPatch) -> dict[str, Remote]:
    remotes: dict[str, Remote] = {}

    def ranged(url: str, options: Mapping[str, Any] | None) -> Remote:
        return remotes[url]

    monkeypatch.setattr(source_cache, "ranged", ranged)
    return remotes


def opened(cache: SourceCache, url: str) -> CachedSource:
    source = cache.open(url, suffix=".mp4")
    assert source is not None
    return source


def disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.glob("*.data*"))


def test_each_byte_is_fetched_once_for_all(tmp_path: Path, remotes: dict[str, Remote]) -> None:
    remote = remotes["a"] = Remote(random_bytes(SIZE))
    first = opened(SourceCache(MANY, tmp_path / "c"), "a")
    second = opened(SourceCache(MANY, tmp_path / "c"), "a")
    middle = 5 * BLOCK_BYTES
    assert first.read(middle, 10) == remote.data[middle : middle + 10]
    assert second.read(middle - 5, 10) == remote.data[middle - 5 : middle + 5]
    assert remote.reads == [(middle, middle + BLOCK_BYTES), (middle - BLOCK_BYTES, middle)]
    assert not second.is_whole
    first.ensure_all()
    second.ensure_all()
    assert second.is_whole
    assert Path(second.path).read_bytes() == remote.data
    assert Path(second.path).suffix == ".mp4"
    assert sum(end - start for start, end in remote.reads) == SIZE


def test_reads_past_the_end_and_of_nothing(tmp_path: Path, remotes: dict[str, Remote]) -> None:
    remote = remotes["a"] = Remote(random_bytes(SIZE))
    source = opened(SourceCache(MANY, tmp_path / "c"), "a")
    assert source.read(SIZE - 3, 100) == remote.data[-3:]
    assert source.read(SIZE, 100) == b""
    assert source.read(SIZE + 10, 100) == b""
    assert source.read(0, 10, only_present=True) == bytes(10)
    for beyond in (SIZE, 1 << 40, 1 << 63, 1 << 80):  # to which a damaged header can lead
        assert source.read(beyond, 5) == source.read(beyond, 5, only_present=True) == b""


def test_a_torn_block_is_fetched_again(tmp_path: Path, remotes: dict[str, Remote]) -> None:
    remote = remotes["a"] = Remote(random_bytes(SIZE))
    cache = SourceCache(MANY, tmp_path / "c")
    opened(cache, "a").ensure(0, SIZE)
    with Path(opened(cache, "a").path).open("r+b") as file:
        file.seek(3 * BLOCK_BYTES)
        file.write(bytes(100))
    remote.reads.clear()
    assert opened(cache, "a").read(0, SIZE) == remote.data
    assert remote.reads == [(3 * BLOCK_BYTES, 4 * BLOCK_BYTES)]


def test_another_content_at_its_url_is_another_file(
    tmp_path: Path, remotes: dict[str, Remote]
) -> None:
    cache = SourceCache(MANY, tmp_path / "c")
    for validator in ("1", "2"):
        remotes["a"] = Remote(random_bytes(SIZE, int(validator)), validator, validator)
        assert opened(cache, "a").read(0, 50) == remotes["a"].data[:50]


def test_what_is_replaced_while_it_is_fetched_is_forgotten(
    tmp_path: Path, remotes: dict[str, Remote]
) -> None:
    remote = remotes["a"] = Remote(random_bytes(PIECE_BYTES + SIZE))
    cache = SourceCache(MANY, tmp_path / "c")
    source = opened(cache, "a")
    source.ensure(0, 1)
    remote.current = "2"
    with pytest.raises(StaleError):
        source.ensure_all()
    remote.current = "1"
    again = opened(cache, "a")
    assert not again.is_whole
    assert not again.has(0, 1)


def test_what_a_fetch_raises_is_kept(tmp_path: Path, remotes: dict[str, Remote]) -> None:
    error = StorageError("503")
    remote = remotes["a"] = Remote(random_bytes(SIZE), error=error)
    source = opened(SourceCache(MANY, tmp_path / "c"), "a")
    with pytest.raises(StorageError, match="503"):
        source.ensure(0, 1)
    assert source.failure is error
    remote.error = None
    assert source.read(0, 9) == remote.data[:9]


def test_the_bound_holds_and_what_is_in_use_stays(
    tmp_path: Path, remotes: dict[str, Remote]
) -> None:
    bound = 4 * SIZE
    cache = SourceCache(bound, tmp_path / "c")
    for number in range(10):
        remotes[f"{number}"] = Remote(random_bytes(SIZE, number))
    used = opened(cache, "0")
    used.ensure_all()
    for number in range(1, 10):
        other = opened(cache, f"{number}")
        other.ensure_all()
        other.close()
        assert disk_bytes(cache.folder) <= bound
    assert used.read(0, SIZE) == remotes["0"].data
    assert remotes["0"].reads == [(0, SIZE)]
    assert Path(used.path).exists()


def test_no_room_is_said_if_all_is_in_use(tmp_path: Path, remotes: dict[str, Remote]) -> None:
    cache = SourceCache(2 * SIZE + BLOCK_BYTES, tmp_path / "c")
    held = []
    for number in range(3):
        remotes[f"{number}"] = Remote(random_bytes(SIZE, number))
        held.append(opened(cache, f"{number}"))
    held[0].ensure_all()
    held[1].ensure_all()
    with pytest.raises(NoRoomError):
        held[2].ensure_all()
    held[0].close()
    held[2].ensure_all()


def test_what_is_larger_than_the_bound_is_not_kept(
    tmp_path: Path, remotes: dict[str, Remote]
) -> None:
    remotes["a"] = Remote(random_bytes(SIZE))
    assert SourceCache(SIZE - 1, tmp_path / "c").open("a") is None


def test_clearing_leaves_what_is_in_use(tmp_path: Path, remotes: dict[str, Remote]) -> None:
    cache = SourceCache(MANY, tmp_path / "c")
    for name in "ab":
        remotes[name] = Remote(random_bytes(SIZE))
    used, other = opened(cache, "a"), opened(cache, "b")
    for source in (used, other):
        source.ensure_all()
    other.close()
    cache.clear()
    assert Path(used.path).exists()
    assert not Path(other.path).exists()
    used.close()
    cache.clear()
    assert disk_bytes(cache.folder) == 0


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PermissionError, match="not a private folder"):
        SourceCache(MANY, tmp_path / "open")
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(PermissionError, match="not a private folder"):
        SourceCache(MANY, tmp_path / "link")


def test_a_process_that_stands_still_with_the_lock_is_not_waited_for(
    tmp_path: Path, remotes: dict[str, Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_cache, "LOCK_WAIT_S", 0.05)
    remote = remotes["a"] = Remote(random_bytes(SIZE))
    told: list[bool] = []
    source = SourceCache(MANY, tmp_path / "c").open("a", on_fetch=told.append)
    assert source is not None
    (name,) = (tmp_path / "c").glob("*.list")
    with name.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert source.read(0, 9) == remote.data[:9]
    assert told[0] is True
    assert told[-1] is False


def _fetch_for_ever(folder: Path, data: bytes) -> None:
    while True:
        setattr(source_cache, "ranged", lambda *_: Remote(data, str(time.time_ns())))  # noqa: B010
        source = opened(SourceCache(MANY, folder), "a")
        source.ensure_all()
        source.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_others_go_on_after_one_that_is_killed(tmp_path: Path, remotes: dict[str, Remote]) -> None:
    """Its locks are gone, and what it has torn does not count."""
    remote = remotes["a"] = Remote(random_bytes(SIZE))
    folder = tmp_path / "c"
    doomed = multiprocessing.get_context("fork").Process(
        target=_fetch_for_ever, args=(folder, remote.data)
    )
    doomed.start()
    while len(list(folder.glob("*.data*"))) < 3:
        time.sleep(0.01)
    assert doomed.pid
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.join()
    cache = SourceCache(4 * SIZE, folder)
    source = opened(cache, "a")
    source.ensure_all()
    assert Path(source.path).read_bytes() == remote.data
    assert disk_bytes(folder) <= 4 * SIZE
