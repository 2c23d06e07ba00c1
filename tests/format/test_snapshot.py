from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentcache.errors import CacheError, CorruptionError
from latentcache.format import snapshot
from latentcache.format.paths import INDEX, sample_path
from latentcache.format.schemas import INDEX_SCHEMA
from latentcache.format.snapshot import build_index, publish, read_index
from latentcache.format.tables import from_parquet
from latentcache.storage.folder import Storage
from tests.tools.synthetic import write_cache

FAILED = [("5x32x32", 1), ("1x32x48", 4)]


def test_it_lists_committed_shards_in_order(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), failed=FAILED, rejected=2, published=False)
    cache.storage.write("samples/5x32x32/notes.txt", b"")
    table = build_index(cache.storage)
    assert table.schema == INDEX_SCHEMA
    found = [(r["bucket"], r["shard"], r["num_clips"], r["num_ok"]) for r in table.to_pylist()]
    assert found == [
        ("1x32x48", 0, 4, 4),
        ("1x32x48", 1, 1, 0),
        ("5x32x32", 0, 4, 3),
        ("5x32x32", 1, 4, 4),
        ("5x32x32", 2, 3, 3),
    ]


def test_stored_bytes_are_those_of_the_clips(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), failed=FAILED)
    table = from_parquet(cache.storage.read(sample_path("5x32x32", 0)))
    expected = sum(length or 0 for length in table["length"].to_pylist())
    rows = {
        (r["bucket"], r["shard"]): r["stored_bytes"] for r in build_index(cache.storage).to_pylist()
    }
    assert rows["5x32x32", 0] == expected > 0
    assert rows["1x32x48", 1] == 0


def test_only_unknown_shards_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(str(tmp_path), failed=FAILED)
    whole = build_index(cache.storage)
    read: list[tuple[str, int]] = []
    original = snapshot._summarise

    def counting(storage: Storage, bucket: str, shard: int) -> dict[str, Any]:
        read.append((bucket, shard))
        return original(storage, bucket, shard)

    monkeypatch.setattr(snapshot, "_summarise", counting)
    assert build_index(cache.storage, whole.slice(0, 3)) == whole
    assert sorted(read) == [("5x32x32", 1), ("5x32x32", 2)]
    cache.storage.delete(sample_path("5x32x32", 2))
    assert build_index(cache.storage, whole) == whole.slice(0, 4)


def test_what_is_published_is_read(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), published=False)
    table = build_index(cache.storage)
    publish(cache.storage, table)
    assert read_index(cache.storage) == table


def test_a_cache_without_commits_has_an_empty_snapshot(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), published=False)
    for bucket, shard in [("1x32x48", 0), ("1x32x48", 1), *(("5x32x32", i) for i in range(3))]:
        cache.storage.delete(sample_path(bucket, shard))
    table = build_index(cache.storage)
    assert (len(table), table.schema) == (0, INDEX_SCHEMA)


def test_no_snapshot_yet_says_what_to_do(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), published=False)
    with pytest.raises(CacheError, match=r"no snapshot yet .*latentcache resume"):
        read_index(cache.storage)


@pytest.mark.parametrize("data", [b"", b"PAR1 nonsense PAR1"])
def test_a_damaged_snapshot_says_how_to_write_it_anew(tmp_path: Path, data: bytes) -> None:
    cache = write_cache(str(tmp_path))
    cache.storage.write(INDEX, data)
    with pytest.raises(
        CorruptionError, match=r"index\.parquet cannot be read .*latentcache resume"
    ):
        read_index(cache.storage)


def test_a_table_that_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path))
    cache.storage.write(INDEX, cache.storage.read(sample_path("5x32x32", 0)))
    with pytest.raises(CorruptionError, match="cannot be read"):
        read_index(cache.storage)


def test_a_damaged_sample_table_is_named(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path))
    cache.storage.write(sample_path("5x32x32", 1), b"PAR1")
    with pytest.raises(CorruptionError, match=r"samples/5x32x32/000001\.parquet cannot be read"):
        build_index(cache.storage)
