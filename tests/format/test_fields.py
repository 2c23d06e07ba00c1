"""A field's objects: shards of several arrays, versions that follow one another, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from latentcache.core.dtypes import numpy_dtype
from latentcache.core.fields import FieldArray
from latentcache.core.records import ShardId
from latentcache.errors import CacheError, ConfigError, CorruptionError
from latentcache.format.changes import Standing
from latentcache.format.fields.commit import (
    Sample,
    adopt_field_shard,
    commit_field_shard,
    read_field_table,
)
from latentcache.format.fields.manifest import (
    FieldManifest,
    Version,
    create_version,
    field_fingerprint,
    read_field,
)
from latentcache.format.fields.paths import field_json_path, version_path
from latentcache.format.fields.snapshot import (
    FIELD_INDEX_SCHEMA,
    count_field,
    publish_field,
    read_field_index,
    rows_to_try_again,
)
from latentcache.planning.fields.planned import write_metadata
from latentcache.planning.planned import PlannedCache
from latentcache.reading.fields import FieldReader
from latentcache.storage.folder import Storage
from tests.tools.caches import read_files
from tests.tools.fields import cache_of, grow

SHARD = ShardId("5x64x96", 0)
ARRAYS = (
    FieldArray(name="", shape=(64, 4), dtype="float32", padding="zeros"),
    FieldArray(name="pooled", shape=(4,), dtype="bfloat16"),
    FieldArray(name="glyphs", shape=(32, 2), dtype="float32", padding="mask", side="left"),
)


def field_of(cache: PlannedCache, choices: int = 1) -> FieldManifest:
    recipe = {"encoder": {"class": "Test"}}
    field = FieldManifest(
        name="text",
        kind="text",
        fingerprint=field_fingerprint(recipe, ARRAYS, cache.manifest.fingerprint),
        cache=cache.manifest.fingerprint,
        recipe=recipe,
        arrays=ARRAYS,
        choices=choices,
        generation=1,
        settings={},
    )
    cache.storage.create(field_json_path("text"), field.to_bytes())
    return read_field(cache.storage, "text", cache.manifest)


def sample_of(row: int, seed: int, choice: int = 0, tokens: int = 5) -> Sample:
    rng = np.random.default_rng([row, seed, choice])
    glyphs = 0 if tokens > 32 else tokens
    shapes = [(tokens, 4), (4,), (glyphs, 2)]
    arrays = [
        rng.standard_normal(shape).astype(numpy_dtype(array.dtype))
        for shape, array in zip(shapes, ARRAYS, strict=True)
    ]
    return Sample(
        key=f"v{row}#0", row=row, choice=choice, input_sha="0", arrays=arrays, tokens=tokens
    )


@pytest.fixture(name="cache", params=["zarr", "parquet"])
def cache_fixture(tmp_path: Path, request: pytest.FixtureRequest) -> PlannedCache:
    return cache_of(tmp_path, ["a", "b", "c"], filled=False, format=request.param)


def commit(cache: PlannedCache, field: FieldManifest, samples: Sequence[Sample]) -> Any:
    return commit_field_shard(cache.storage, cache.manifest, field, 1, SHARD, samples)


def stored(cache: PlannedCache, field: FieldManifest, row: int, number: int = 0) -> dict[str, Any]:
    index = publish_field(cache.storage, field, cache.manifest)
    reader = FieldReader(cache.storage, cache.manifest, field, index)
    return reader.sample(SHARD.bucket, SHARD.number, row, number)


def assert_stored(cache: PlannedCache, field: FieldManifest, sample: Sample) -> None:
    assert sample.arrays is not None
    found = stored(cache, field, sample.row, sample.choice)
    states, pooled, glyphs = sample.arrays
    np.testing.assert_array_equal(found["text"][: len(states)].numpy(), states)
    assert not found["text"][len(states) :].any()
    np.testing.assert_array_equal(found["text.pooled"].float().numpy(), pooled.astype(np.float32))
    np.testing.assert_array_equal(found["text.glyphs"][32 - len(glyphs) :].numpy(), glyphs)
    assert not found["text.glyphs"][: 32 - len(glyphs)].any()
    assert (found["text_tokens"], found["text.glyphs_tokens"]) == (len(states), len(glyphs))


def test_all_arrays_of_a_shard_come_back(cache: PlannedCache) -> None:
    field = field_of(cache)
    failed = Sample(key="v1#0", row=1, choice=0).failed("no_caption", None)
    report = commit(cache, field, [sample_of(0, 0), failed, sample_of(2, 0, tokens=40)])
    assert (report.num_ok, report.num_clips, dict(report.reasons)) == (2, 3, {"no_caption": 1})
    assert_stored(cache, field, sample_of(0, 0))
    assert_stored(cache, field, sample_of(2, 0, tokens=40))
    with pytest.raises(KeyError):
        stored(cache, field, 1)


def test_each_of_several_texts_comes_back(cache: PlannedCache) -> None:
    field = field_of(cache, choices=3)
    samples = [sample_of(0, 0, choice) for choice in range(3)]
    samples += [sample_of(1, 0), sample_of(2, 0).failed("non_finite", "NaN")]
    samples.append(sample_of(2, 0, 1))
    commit(cache, field, samples)
    for sample in samples[:3]:
        assert_stored(cache, field, sample)
    states = stored(cache, field, 2, number=0)["text"][:5].numpy()
    np.testing.assert_array_equal(states, samples[-1].arrays[0])  # the first one failed


def test_who_comes_second_takes_the_shard_that_is_there(cache: PlannedCache) -> None:
    field = field_of(cache)
    commit(cache, field, [sample_of(row, 0) for row in range(3)])
    report = commit(cache, field, [sample_of(row, 1) for row in range(3)])
    assert report.committed_before
    for row in range(3):
        assert_stored(cache, field, sample_of(row, 0))


@pytest.mark.parametrize("lacking", [1, 2])
def test_arrays_that_a_killed_attempt_left_go_with_those_of_the_next(
    cache: PlannedCache, lacking: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    field, created = field_of(cache), []
    create = type(cache.storage).create

    def dying(storage: Any, path: str, data: bytes) -> bool:
        if len(created) == len(ARRAYS) - lacking:
            raise KeyboardInterrupt
        created.append(path)
        return create(storage, path, data)

    first = [sample_of(row, 0) for row in range(2)]
    first.append(sample_of(2, 0).failed("non_finite", "NaN"))
    with monkeypatch.context() as patch:
        patch.setattr(type(cache.storage), "create", dying)
        with pytest.raises(KeyboardInterrupt):
            commit(cache, field, first)
    assert adopt_field_shard(cache.storage, cache.manifest, field, 1, SHARD) is None
    commit(cache, field, [sample_of(row, 1) for row in range(3)])
    table, _ = read_field_table(cache.storage, field, 1, SHARD)
    assert table["status"].to_pylist() == ["ok", "ok", "failed"]  # which a retry plans again
    found = stored(cache, field, 0)
    mixed = [sample_of(0, 1 if n < lacking else 0).arrays[n] for n in range(len(ARRAYS))]
    np.testing.assert_array_equal(found["text"][:5].numpy(), mixed[0])
    np.testing.assert_array_equal(found["text.pooled"].float().numpy(), mixed[1].astype("f4"))
    np.testing.assert_array_equal(found["text.glyphs"][-5:].numpy(), mixed[2])


def test_of_two_versions_of_one_number_the_first_counts(cache: PlannedCache) -> None:
    field = field_of(cache)
    assert create_version(cache.storage, field, "update", 1, {SHARD: frozenset({0})})
    assert not create_version(cache.storage, field, "retry", 1, {SHARD: frozenset({1})})
    (version,) = read_field(cache.storage, "text", cache.manifest).versions
    assert (version.kind, version.rows) == ("update", {SHARD: frozenset({0})})


def test_a_version_that_is_missing_or_was_replaced_is_found(cache: PlannedCache) -> None:
    field = field_of(cache)
    for row in range(2):
        create_version(cache.storage, field, "update", 1, {SHARD: frozenset({row})})
        field = read_field(cache.storage, "text", cache.manifest)
    other = FieldManifest(**{**vars_of(field), "versions": ()})
    second = cache.storage.read(version_path("text", 2))
    cache.storage.delete(version_path("text", 2))
    with pytest.raises(CorruptionError, match=r"000002\.parquet is missing"):
        read_field(cache.storage, "text", cache.manifest)
    create_version(cache.storage, other, "retry", 1, {SHARD: frozenset({2})})
    with pytest.raises(CorruptionError, match="does not follow"):
        read_field(cache.storage, "text", cache.manifest)
    cache.storage.write(version_path("text", 2), second[:-1])
    with pytest.raises(CorruptionError, match=r"000002\.parquet"):
        read_field(cache.storage, "text", cache.manifest)


def vars_of(field: FieldManifest) -> dict[str, Any]:
    return {name: getattr(field, name) for name in FieldManifest.__dataclass_fields__}


def test_a_field_of_another_cache_or_version_is_refused(cache: PlannedCache) -> None:
    field = field_of(cache)
    path = field_json_path("text")
    other = FieldManifest(**{**vars_of(field), "cache": "0" * 64})
    cache.storage.write(path, other.to_bytes())
    with pytest.raises(CorruptionError, match="of another cache"):
        read_field(cache.storage, "text", cache.manifest)
    newer = FieldManifest(**{**vars_of(field), "format_version": 2})
    cache.storage.write(path, newer.to_bytes())
    with pytest.raises(CacheError, match="Install a newer latentcache"):
        read_field(cache.storage, "text", cache.manifest)
    cache.storage.write(path, field.to_bytes()[:-20])
    with pytest.raises(CorruptionError, match="does not say what the field is"):
        read_field(cache.storage, "text", cache.manifest)


@pytest.mark.parametrize(
    ("length", "piece"), [(512, 64), (226, None), (1000, 50), (64, None), (128, 64), (256, 64)]
)
def test_padded_arrays_are_cut_into_equal_pieces(length: int, piece: int | None) -> None:
    array = FieldArray(name="", shape=(length, 8), dtype="bfloat16", padding="zeros")
    assert array.piece == piece


def test_an_array_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(ConfigError, match="'int128' cannot be stored"):
        FieldArray(name="", shape=(4,), dtype="int128")


def test_a_run_of_before_a_cache_has_grown_publishes_all_of_its_fields(
    cache: PlannedCache,
) -> None:
    """Also rows and versions that another run has planned and committed meanwhile; arrays only grow."""
    old = field_of(cache)
    commit(cache, old, [sample_of(row, 0) for row in range(3)])
    grown = grow(cache, ["d"])
    number = max(shard.number for shard in grown.planned_shards())
    field = read_field(grown.storage, "text", grown.manifest)
    new = ShardId(SHARD.bucket, number)
    commit_field_shard(grown.storage, grown.manifest, field, 1, new, [sample_of(0, 1)])
    assert create_version(grown.storage, field, "retry", 2, {SHARD: frozenset({1})})
    field = read_field(grown.storage, "text", grown.manifest)
    commit_field_shard(grown.storage, grown.manifest, field, 2, SHARD, [sample_of(1, 2)])
    write_metadata(grown.storage, grown.manifest, field)
    whole = publish_field(grown.storage, field, grown.manifest)
    before = read_files(Path(grown.storage.url))
    write_metadata(cache.storage, cache.manifest, old)
    own = publish_field(cache.storage, old, cache.manifest)
    assert read_field_index(grown.storage, field) == whole
    assert read_files(Path(grown.storage.url)) == before
    assert own.num_rows < whole.num_rows
    assert own.select(["version", "bucket", "shard"]).to_pylist() == [
        {"version": 1, "bucket": SHARD.bucket, "shard": SHARD.number}
    ]


def test_a_version_whose_answer_was_lost_counts(cache: PlannedCache) -> None:
    field, create = field_of(cache), Storage.create

    def lose(storage: Storage, path: str, data: bytes) -> bool:
        create(storage, path, data)
        return False

    rows = {SHARD: frozenset({0})}
    with mock.patch.object(Storage, "create", lose):
        assert create_version(cache.storage, field, "repair", 1, rows)
        assert not create_version(cache.storage, field, "repair", 1, {SHARD: frozenset({1})})


@pytest.mark.parametrize(
    ("newer", "retired", "num_lost"),
    [
        (None, (), 2),
        ({0, 1, 2}, (), 3),  # the new version has all rows
        ({1}, (), 3),  # and here only the one that had failed
        (None, (0, 1, 2), 0),
        ({0, 1, 2}, (0, 1, 2), 0),
    ],
)
def test_lost_tokens_of_rows_that_no_longer_count_are_not_counted(
    tmp_path: Path, newer: set[int] | None, retired: tuple[int, ...], num_lost: int
) -> None:
    cache = cache_of(tmp_path, ["a", "b", "c"], filled=False)
    field = field_of(cache)
    rows = [_indexed(version=1, num_lost=2, failed=[1])]
    if newer is not None:
        version = Version(number=2, kind="update", generation=1, rows={SHARD: frozenset(newer)})
        field = replace(field, versions=(version,))
        rows.append(_indexed(version=2, num_lost=len(newer), failed=[]))
    index = pa.Table.from_pylist(rows, schema=FIELD_INDEX_SCHEMA)
    standing = Standing(retired={SHARD: frozenset(retired)})
    assert count_field(field, cache.manifest, index, standing).num_lost == num_lost


@pytest.mark.parametrize(
    ("newer", "retired", "failed"),
    [
        (None, (), {"image_mark": 2, "non_finite": 1}),
        ({1}, (), {"non_finite": 1}),
        (None, (1,), {"non_finite": 1}),
        ({0, 1, 2}, (), {}),
    ],
)
def test_texts_that_failed_beside_others_count_where_their_row_does(
    tmp_path: Path, newer: set[int] | None, retired: tuple[int, ...], failed: dict[str, int]
) -> None:
    cache = cache_of(tmp_path, ["a", "b", "c"], filled=False)
    field = field_of(cache, choices=3)
    samples = [sample_of(row, 0, choice) for row in range(3) for choice in range(3)]
    for number, reason in {3: "image_mark", 4: "image_mark", 6: "non_finite"}.items():
        samples[number] = samples[number].failed(reason, "it fails")
    commit(cache, field, samples)
    rows = publish_field(cache.storage, field, cache.manifest).to_pylist()
    assert rows[0]["failed"] == []
    if newer is not None:
        version = Version(number=2, kind="retry", generation=1, rows={SHARD: frozenset(newer)})
        field = replace(field, versions=(version,))
        rows.append(_indexed(version=2, num_lost=0, failed=[]))
    index = pa.Table.from_pylist(rows, schema=FIELD_INDEX_SCHEMA)
    standing = Standing(retired={SHARD: frozenset(retired)})
    assert count_field(field, cache.manifest, index, standing).failed_texts == failed
    wanted = {1: "image_mark", 2: "non_finite"}
    again = frozenset(row for row, reason in wanted.items() if reason in failed)
    found = rows_to_try_again(field, cache.manifest, index, standing)
    assert found == ({SHARD: again} if again else {})


def _indexed(**facts: Any) -> dict[str, Any]:
    sizes = dict.fromkeys(("num_clips", "num_ok", "stored_bytes", "table_bytes"), 3)
    return {
        "bucket": SHARD.bucket,
        "shard": SHARD.number,
        **sizes,
        "lasting": [],
        "failed_texts": [],
        **facts,
    }
