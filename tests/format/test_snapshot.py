from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from latentcache.core.records import ShardId
from latentcache.errors import CacheError, CorruptionError
from latentcache.format import snapshot
from latentcache.format.changes import Changes
from latentcache.format.paths import INDEX, sample_path, sample_prefixes
from latentcache.format.schemas import INDEX_FACTS, INDEX_SCHEMA
from latentcache.format.snapshot import (
    build_index,
    check_index,
    generation_of,
    known_index,
    publish,
    read_index,
)
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.storage.folder import Storage
from tests.tools.synthetic import facts_of, retire, write_cache

FAILED = [("5x32x32", 1), ("1x32x48", 4)]


def test_it_lists_committed_shards_in_order(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), failed=FAILED, rejected=2, published=False)
    cache.storage.write("samples/5x32x32/notes.txt", b"")
    table = build_index(cache.storage, cache.manifest)
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
    index = build_index(cache.storage, cache.manifest)
    rows = {(r["bucket"], r["shard"]): r["stored_bytes"] for r in index.to_pylist()}
    assert rows["5x32x32", 0] == expected > 0
    assert rows["1x32x48", 1] == 0


def test_only_unknown_shards_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(str(tmp_path), failed=FAILED)
    whole = build_index(cache.storage, cache.manifest)
    read = count_reads(monkeypatch)
    assert build_index(cache.storage, cache.manifest, whole.slice(0, 3)) == whole
    assert sorted(read) == [("5x32x32", 1), ("5x32x32", 2)]
    cache.storage.delete(sample_path("5x32x32", 2))
    assert build_index(cache.storage, cache.manifest, whole) == whole.slice(0, 4)
    assert len(read) == 2


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[ShardId]:
    """Note the shards whose sample tables are read from now on."""
    read: list[ShardId] = []
    original = snapshot._summarise

    def counting(storage: Storage, shard: ShardId, changes: Changes) -> dict[str, Any]:
        read.append(shard)
        return original(storage, shard, changes)

    monkeypatch.setattr(snapshot, "_summarise", counting)
    return read


def test_only_shards_of_which_rows_were_retired_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write_cache(str(tmp_path), failed=FAILED)
    index_before = build_index(cache.storage, cache.manifest)
    before = index_before.to_pylist()
    manifest = retire(cache, [("5x32x32", 0, 3), ("5x32x32", 0, 1)])
    read = count_reads(monkeypatch)
    index_after = build_index(cache.storage, manifest, index_before)
    after = index_after.to_pylist()
    assert read == [("5x32x32", 0)]
    assert [row for row in after if row not in before] == [after[2]]
    assert (after[2]["retired"], after[2]["num_clips"], after[2]["num_ok"]) == ([1, 3], 2, 2)
    assert 0 < after[2]["stored_bytes"] < before[2]["stored_bytes"]
    assert build_index(cache.storage, manifest) == build_index(cache.storage, manifest, index_after)
    # Looked at as it was, it is what it was: nothing was replaced.
    assert build_index(cache.storage, cache.manifest, index_after).to_pylist() == before


def test_of_several_rows_of_a_shard_the_first_is_taken(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), failed=FAILED)
    whole = build_index(cache.storage, cache.manifest)
    at = whole.column_names.index("table_bytes")
    other = whole.set_column(
        at, whole.schema.field(at), pa.array([7] * whole.num_rows, whole.schema.field(at).type)
    )
    known = pa.concat_tables([whole.slice(1, 2), other])
    found = build_index(cache.storage, cache.manifest, known)
    is_other = [n not in (1, 2) for n in range(whole.num_rows)]
    assert [size == 7 for size in found["table_bytes"].to_pylist()] == is_other


@pytest.mark.parametrize("num_shards", [2001, 12_345, 1_000_000, 1_234_567])
def test_prefixes_cover_every_sample_table(num_shards: int) -> None:
    prefixes = tuple(sample_prefixes(num_shards))
    assert len(prefixes) == -(-num_shards // 1000)
    numbers = {0, 999, 1000, 99_999, 100_000, 999_999, 1_000_000, num_shards - 1}
    for number in numbers & set(range(num_shards)):
        name = sample_path("b", number).rpartition("/")[2]
        assert name.startswith(prefixes), number


def test_what_is_published_is_read(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), published=False)
    table = build_index(cache.storage, cache.manifest)
    publish(cache.storage, table)
    assert read_index(cache.storage) == table
    assert generation_of(read_index(cache.storage)) == 1
    assert known_index(cache.storage, cache.manifest) == table


def test_it_says_which_generation_it_shows(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path))
    manifest = retire(cache, [("5x32x32", 0, 3)])
    publish(cache.storage, build_index(cache.storage, manifest))
    index = read_index(cache.storage)
    assert generation_of(index) == 2
    check_index(index, manifest)
    with pytest.raises(ValueError, match="it shows generation 2, and the cache has 1"):
        check_index(index, cache.manifest)
    with pytest.raises(ValueError, match="it is of another cache"):
        check_index(index, replace(manifest, fingerprint="0" * 64))
    assert known_index(cache.storage, cache.manifest).num_rows == 0


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {INDEX_FACTS: []},
        {INDEX_FACTS: {"generation": 1}},
        {INDEX_FACTS: {"generation": "1", "fingerprint": "f"}},
        {INDEX_FACTS: {"generation": True, "fingerprint": "f"}},
    ],
)
def test_a_snapshot_that_does_not_say_what_it_shows_is_refused(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    cache = write_cache(str(tmp_path))
    table = from_parquet(cache.storage.read(INDEX))
    cache.storage.write(INDEX, to_parquet(table, {**facts_of(table), **facts} if facts else {}))
    with pytest.raises(CorruptionError, match="does not say which generation it shows"):
        read_index(cache.storage)


def test_a_cache_without_commits_has_an_empty_snapshot(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), published=False)
    for bucket, shard in [("1x32x48", 0), ("1x32x48", 1), *(("5x32x32", i) for i in range(3))]:
        cache.storage.delete(sample_path(bucket, shard))
    table = build_index(cache.storage, cache.manifest)
    assert (len(table), table.schema) == (0, INDEX_SCHEMA)


def test_no_snapshot_yet_says_what_to_do(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), published=False)
    with pytest.raises(CacheError, match=r"no snapshot yet .*latentcache resume"):
        read_index(cache.storage)


@pytest.mark.parametrize("data", [b"", b"PAR1 nonsense PAR1"])
def test_a_damaged_snapshot_says_how_to_write_it_again(tmp_path: Path, data: bytes) -> None:
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
        build_index(cache.storage, cache.manifest)
