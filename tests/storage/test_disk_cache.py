"""Remote chunks on a local disk: right whatever happens to the files, bounded, shared by processes."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import pickle
import signal
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from latentcache.core.dtypes import as_numpy
from latentcache.core.records import ChunkRef
from latentcache.errors import ConfigError
from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.storage.disk_cache import FOLDER, SUFFIX, DiskCache
from latentcache.storage.folder import Storage
from tests.tools.s3 import S3
from tests.tools.synthetic import Synthetic, random_sample, write_cache, write_shard

BUCKET = "5x32x32"
LARGE = 1 << 30


@pytest.fixture
def written() -> Synthetic:
    return write_cache(f"memory://{uuid.uuid4().hex}", buckets={BUCKET: 11})


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Ranged requests for latents, by path."""
    counts: Counter[str] = Counter()
    original = Storage.read_ranges

    def counting(self: Storage, path: str, ranges: Any) -> list[bytes]:
        counts[path] += path.startswith("latents/")
        return original(self, path, ranges)

    monkeypatch.setattr(Storage, "read_ranges", counting)
    return counts


def read_all(cache: Cache, check: bool = True) -> dict[str, Any]:
    loader = LatentLoader(cache, batch_size=3, normalise=False, check=check)
    return {
        key: as_numpy(latents)
        for batch in loader
        for key, latents in zip(batch["key"], batch["latents"], strict=True)
    }


def same(found: dict[str, Any], expected: Any) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[key].view(np.uint16), expected[key].view(np.uint16)) for key in found
    )


def files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob(f"*/*{SUFFIX}"))


def disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in files(folder))


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["zstd", "none"])
@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_what_was_read_once_is_not_asked_for_again(
    name: str, codec: str, tmp_path: Path, requests: Counter[str]
) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    written = write_cache(url, format=name, codec=codec, buckets={BUCKET: 11})
    assert same(read_all(open_cache(url, disk_cache=tmp_path)), written.arrays)
    assert requests.total()
    requests.clear()
    again = pickle.loads(pickle.dumps(open_cache(url, disk_cache=tmp_path)))
    for check in (True, False):
        assert same(read_all(again, check), written.arrays)
    assert as_numpy(again.stored(3)).tobytes() == list(written.arrays.values())[3].tobytes()
    assert requests.total() == 0


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "hole", "gone"])
def test_files_that_are_damaged_are_not_believed(
    harm: str, check: bool, written: Synthetic, tmp_path: Path, requests: Counter[str]
) -> None:
    cache = open_cache(written.url, disk_cache=tmp_path)
    read_all(cache)
    for file in files(tmp_path):
        data = file.read_bytes()
        if harm == "flip":
            file.write_bytes(bytes(b ^ 1 for b in data))
        elif harm in ("cut", "empty"):
            os.truncate(file, len(data) - 1 if harm == "cut" else 0)
        elif harm == "hole":
            file.write_bytes(bytes(len(data)))
        else:
            file.unlink()
    requests.clear()
    assert same(read_all(cache, check), written.arrays)
    assert requests.total() >= 3  # of each of the three shards something was lost
    requests.clear()
    assert same(read_all(cache, check), written.arrays)
    assert requests.total() == 0


@pytest.mark.slow
@pytest.mark.parametrize("check", [True, False])
def test_a_shard_that_was_encoded_again_is_not_served_as_it_was(
    check: bool, written: Synthetic, tmp_path: Path
) -> None:
    assert same(read_all(open_cache(written.url, disk_cache=tmp_path)), written.arrays)
    layout, rng = written.manifest.layouts()[BUCKET], np.random.default_rng(9)
    rows = [random_sample(layout, rng) for _ in range(4)]
    write_shard(written.storage, "zarr", layout, 0, rows, written.manifest.fingerprint)
    expected = dict(written.arrays) | dict(zip(list(written.arrays)[:4], rows, strict=True))
    assert same(read_all(open_cache(written.url, disk_cache=tmp_path), check), expected)


def test_a_local_cache_is_not_copied(tmp_path: Path) -> None:
    written = write_cache(str(tmp_path / "cache"))
    read_all(open_cache(written.url, disk_cache=tmp_path / "disk"))
    assert not (tmp_path / "disk").exists()


def chunk_of(number: int, size: int = 10_000) -> tuple[ChunkRef, bytes]:
    data = np.random.default_rng(number).bytes(size)
    offset = number % 4 * 2 * size
    return ChunkRef(
        row=number % 4, offset=offset, length=size, crc32c=google_crc32c.value(data)
    ), data


def put(cache: DiskCache, number: int) -> None:
    chunk, data = chunk_of(number)
    cache.write(f"shard/{number // 4}", {chunk: memoryview(data)})


def has(cache: DiskCache, number: int) -> bool:
    chunk, data = chunk_of(number)
    buffers = [memoryview(bytearray(chunk.length))]
    found = list(cache.read(f"shard/{number // 4}", [chunk], buffers))
    assert all(bytes(view) == data for _, view in found)
    return bool(found)


def test_the_files_used_longest_ago_go_and_nobody_elses(tmp_path: Path) -> None:
    mine = tmp_path / "notes.txt"
    (tmp_path / FOLDER).mkdir()
    other = tmp_path / FOLDER / "keep.txt"
    for file in (mine, other):
        file.write_bytes(bytes(1 << 20))
    cache = DiskCache(tmp_path, 200_000, "f")
    for number in range(100):
        put(cache, number)
        assert has(cache, number)
        assert has(cache, 0), "it was used all the time"
        assert disk_bytes(tmp_path) <= 200_000
        time.sleep(0.002)  # the clock of the file system ticks
    assert not has(cache, 8)
    assert mine.exists()
    assert other.exists()


def test_what_does_not_fit_is_not_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 9_000, "f")
    put(cache, 0)
    assert not has(cache, 0)
    assert files(tmp_path) == []


def test_the_bound_holds_where_the_count_was_lost(tmp_path: Path) -> None:
    for number in range(40):
        put(DiskCache(tmp_path, LARGE, "f"), number)
    (tmp_path / FOLDER / "used").unlink()
    cache = DiskCache(tmp_path, 100_000, "other")
    put(cache, 41)
    assert has(cache, 41)
    assert disk_bytes(tmp_path) <= 100_000


def hammer(folder: Path, seed: int, num: int) -> None:
    cache, rng = DiskCache(folder, 300_000, "f"), np.random.default_rng(seed)
    for _ in range(num):
        number = int(rng.integers(80))
        if not has(cache, number):
            put(cache, number)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_share_a_folder_and_survive_one_that_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    doomed, *others = (
        context.Process(target=hammer, args=(tmp_path, seed, num))
        for seed, num in enumerate((10**9, 300, 300))
    )
    for process in (doomed, *others):
        process.start()
    while len(files(tmp_path)) < 8:  # they are at it
        time.sleep(0.01)
    assert doomed.pid
    os.kill(doomed.pid, signal.SIGKILL)
    for process in [doomed, *others]:
        process.join()
    assert [process.exitcode for process in others] == [0, 0]
    slack = 3 * 12_288  # what three processes were about to write
    assert disk_bytes(tmp_path) <= 300_000 + slack
    hammer(tmp_path, 3, 200)
    assert disk_bytes(tmp_path) <= 300_000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_amid_a_write_does_not_hold_the_lock(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, LARGE, "f")
    with cache._room.used():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()  # with a copy of the descriptor that holds the lock
    try:
        with (tmp_path / FOLDER / "used").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        child.kill()
        child.join()


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, written: Synthetic) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"disk_cache .*file: Not a directory\. Give a folder"):
        open_cache(written.url, disk_cache=file)
    with pytest.raises(ConfigError, match="disk_cache_bytes is 0"):
        open_cache(written.url, disk_cache=tmp_path, disk_cache_bytes=0)


def test_a_disk_that_fails_costs_a_warning_alone(tmp_path: Path, written: Synthetic) -> None:
    cache = open_cache(written.url, disk_cache=tmp_path)
    folder = tmp_path / FOLDER / written.manifest.fingerprint
    folder.rmdir()
    folder.write_text("in the way")
    with pytest.warns(RuntimeWarning, match="chunks are read from the remote cache"):
        found = read_all(cache)
    assert same(found, written.arrays)


def test_it_serves_object_storage(tmp_path: Path, s3: S3, requests: Counter[str]) -> None:
    written = write_cache(f"{s3.url}/cache", options=s3.options, buckets={BUCKET: 11})
    for _ in range(2):
        cache = open_cache(written.url, s3.options, disk_cache=tmp_path)
        assert same(read_all(cache), written.arrays)
        assert requests.total() <= 11
