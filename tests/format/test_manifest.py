from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentcache.core.records import Bucket, ShardId
from latentcache.errors import CacheError, CorruptionError
from latentcache.format import checksum
from latentcache.format.generations import Generation, Part
from latentcache.format.manifest import (
    Manifest,
    fingerprint,
    read_all,
    read_manifest,
    recipe_difference,
    refresh,
)
from latentcache.format.paths import CACHE_JSON, generation_path
from latentcache.storage.folder import Storage
from tests.tools.synthetic import make_manifest, make_spec, write_manifest


def manifest(**changes: Any) -> Manifest:
    return make_manifest(spec=make_spec(), buckets={"5x32x32": 11, "1x32x48": 4}, **changes)


def grown(before: Manifest, *parts: Part, **changes: Any) -> Manifest:
    """The cache with one more generation, which adds these shards."""
    last = before.generations[-1]
    step = replace(
        last,
        number=last.number + 1,
        kind="grow",
        parent_sha256=last.sha256,
        tables_sha256=str(last.number) * 64,
        parts=parts,
        **changes,
    )
    return replace(before, generations=(*before.generations, step))


def part(bucket: str, first_shard: int, num_shards: int, num_clips: int) -> Part:
    return Part(bucket=bucket, first_shard=first_shard, num_shards=num_shards, num_clips=num_clips)


def changed(path: str, value: Any) -> bytes:
    data = json.loads(manifest().to_bytes())
    *outer, last = path.split(".")
    inner = data
    for key in outer:
        inner = inner[int(key) if key.isdigit() else key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return checksum.seal_json(data)


def test_what_is_written_is_read() -> None:
    data = manifest().to_bytes()
    assert Manifest.from_bytes(data) == replace(manifest(), generations=())
    assert data == manifest().to_bytes() == replace(manifest(), generations=()).to_bytes()
    assert json.loads(data)["format_version"] == 1


def test_layouts_are_the_arrays_of_the_buckets() -> None:
    layout = manifest(codec="none", shard_clips=8).layouts()["5x32x32"]
    assert layout.bucket == Bucket(frames=5, height=32, width=32)
    assert (layout.shape, layout.dtype, layout.num_rows) == ((4, 2, 4, 4), "bfloat16", 11)
    assert (layout.shard_rows, layout.codec, layout.level) == (8, "none", 5)


def test_keys_that_are_not_known_are_left_alone() -> None:
    assert Manifest.from_bytes(changed("comment", "later")) == replace(manifest(), generations=())


def test_a_missing_cache_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"there is no cache here .*latentcache precompute"):
        read_manifest(Storage(str(tmp_path)))


def test_it_is_read_from_storage(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_manifest(storage, manifest())
    assert read_manifest(storage) == manifest()
    later = grown(manifest(), part("5x32x32", 3, 1, 2))
    storage.write(generation_path(2), later.generations[1].to_bytes())
    assert refresh(storage, manifest()) == read_manifest(storage) == later
    assert later.at(1) == manifest()


def test_a_cache_without_a_plan_says_to_plan_it(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write(CACHE_JSON, manifest().to_bytes())
    assert read_all(storage) == replace(manifest(), generations=())
    with pytest.raises(CacheError, match=r"nothing is planned yet.*the command that") as got:
        read_manifest(storage)
    for command in (
        f"precompute CONFIG.yaml cache.url={tmp_path}",
        f"copy CACHE_URL {tmp_path}",
        f"merge CACHE_URL CACHE_URL -o {tmp_path}",
        f"import LAYOUT FOLDER {tmp_path}",
    ):
        assert f"latentcache {command}" in str(got.value)


def test_a_cache_that_grew_has_the_shards_of_all_its_generations() -> None:
    """The last shard of each generation has fewer rows; the next generation begins another shard."""
    later = grown(manifest(), part("5x32x32", 3, 2, 5), part("9x32x32", 0, 1, 1), num_retired=3)
    assert [bucket.name for bucket in later.buckets] == ["1x32x48", "5x32x32", "9x32x32"]
    assert (later.num_shards, later.num_clips) == (1 + 5 + 1, 4 + 16 + 1 - 3)
    assert [later.num_rows(ShardId("5x32x32", n)) for n in range(5)] == [4, 4, 3, 4, 1]
    assert (later.num_rows(ShardId("1x32x48", 0)), later.num_rows(ShardId("9x32x32", 0))) == (4, 1)
    bucket = later.buckets[1]
    assert [bucket.part_of(n)[0].number for n in range(5)] == [1, 1, 1, 2, 2]
    assert later.layouts()["5x32x32"].num_rows == 3 * 4 + 5
    assert later.layouts()["5x32x32"].shape == manifest().layouts()["5x32x32"].shape


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([part("../etc", 0, 1, 1)], "000002.json does not fit cache.json: .*is not a bucket"),
        ([part("05x32x32", 0, 1, 1)], "'05x32x32' is not a bucket's name, which is 5x32x32"),
        ([part("5x32x32", 3, 1, 10**6)], "1 shards of 4 do not hold 1000000 clips"),
        ([part("5x32x32", 3, 2, 4)], "2 shards of 4 do not hold 4 clips"),
        ([part("9x8192x800000", 0, 1, 1)], "no sample is as large"),
        ([part("6x32x32", 0, 1, 1)], "does not fit cache.json"),
        ([part("5x32x32", 2, 1, 1)], "adds shard 2 to bucket 5x32x32, which does not follow"),
        ([part("5x32x32", 4, 1, 1)], "adds shard 4 to bucket 5x32x32, which does not follow"),
        ([part("5x32x32", 3, 1, 0)], "counts that cannot be"),
        ([part("5x32x32", 3, 1, 1 << 41)], "counts that cannot be"),
        ([part("5x32x32", 3, 11 * 10**6, 44 * 10**6)], "11000000 shards"),
        ([part(f"1x32x{8 * n}", 0, 9 * 10**6, 36 * 10**6) for n in (1, 2)], "more than 10000000"),
    ],
)
def test_shards_that_make_no_sense_are_refused(
    parts: list[Part], message: str, tmp_path: Path
) -> None:
    storage = Storage(str(tmp_path))
    write_manifest(storage, grown(manifest(), *parts))
    with pytest.raises(CorruptionError, match=message):
        read_manifest(storage)


def of_another_recipe(step: Generation) -> Generation:
    return replace(step, fingerprint="0" * 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (of_another_recipe, "000002.json is of another cache"),
        (lambda step: replace(step, parent_sha256="0" * 64), "does not follow generations/000001"),
        (lambda step: replace(step, parent_sha256=None), "does not follow generations/000001"),
        (lambda step: replace(step, number=3), "it says that it is number 3"),
        (lambda step: replace(step, num_retired=-1), "counts that cannot be"),
        (lambda step: replace(step, kind="shrink"), "is no generation: kind: "),
        (lambda step: replace(step, num_sources="1"), "is no generation: num_sources: "),
        (
            lambda step: replace(step, kept="text"),
            "is no generation: its kept columns are no schema",
        ),
    ],
)
def test_a_generation_that_makes_no_sense_is_refused(
    change: Any, message: str, tmp_path: Path
) -> None:
    later = grown(manifest(), part("5x32x32", 3, 1, 2))
    *first, step = later.generations
    storage = Storage(str(tmp_path))
    write_manifest(storage, replace(later, generations=tuple(first)))
    storage.write(generation_path(2), change(step).to_bytes())
    with pytest.raises(CorruptionError, match=message):
        read_manifest(storage)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"null"])
def test_what_is_no_generation_is_refused(data: bytes, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_manifest(storage, manifest())
    storage.write(generation_path(1), data)
    with pytest.raises(CorruptionError, match=r"generations/000001\.json is no generation"):
        read_manifest(storage)


def test_a_flipped_byte_of_a_generation_is_found(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_manifest(storage, manifest())
    data = storage.read(generation_path(1))
    storage.write(generation_path(1), data.replace(b'"num_clips": 11', b'"num_clips": 10'))
    with pytest.raises(CorruptionError, match=r"generations/000001\.json .*fail their CRC32C"):
        read_manifest(storage)


def test_a_generation_that_is_missing_is_named(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_manifest(storage, grown(manifest(), part("5x32x32", 3, 1, 2)))
    storage.delete(generation_path(1))
    with pytest.raises(CorruptionError, match=r"000001\.json is missing, and later ones are there"):
        read_manifest(storage)


def test_a_newer_format_says_to_upgrade() -> None:
    with pytest.raises(CacheError, match=r"format version 2; .*up to 1 .*Install a newer"):
        Manifest.from_bytes(changed("format_version", 2))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"format_version": "x"}']
)
def test_other_files_are_no_manifest(data: bytes) -> None:
    with pytest.raises(CacheError, match=r"somewhere is not the cache\.json of a cache"):
        Manifest.from_bytes(data, "somewhere")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("recipe", KeyError, "recipe: Field required"),
        ("format", "zip", "unknown format 'zip'"),
        ("compression.codec", "snappy", "unknown codec 'snappy'"),
        ("compression.level", 0, "compression.level"),
        ("shard_clips", 0, "shard_clips"),
        ("shard_clips", "4", "shard_clips: Input should be a valid integer"),
        ("spec.channels", -1, "not a latent spec: channels -1"),
        ("spec.stride", [4, 8, 1 << 41], "not positive whole numbers"),
        ("generations", [{}], "damaged"),
        ("spec.dtype", "float8", "unknown stored dtype"),
        ("spec", None, "damaged"),
    ],
)
def test_values_that_make_no_sense_are_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        Manifest.from_bytes(changed(path, value))


def test_the_fingerprint_is_of_values_not_of_their_order() -> None:
    one = fingerprint({"a": 1, "b": {"c": [1, 2], "d": None}})
    assert one == fingerprint({"b": {"d": None, "c": (1, 2)}, "a": 1})
    assert len({one, fingerprint({"a": 1}), fingerprint({"a": 2})}) == 3


def test_a_difference_names_what_the_cache_has_and_what_is_now() -> None:
    old = {
        "encoder": {"dtype": "bfloat16", "tiles": [1, 2], "seed": 1},
        "same": {"x": 1},
        "gone": 0,
    }
    new = {
        "encoder": {"dtype": "float32", "tiles": (1, 3), "seed": "1"},
        "same": {"x": 1},
        "new": None,
    }
    assert recipe_difference(old, new) == [
        "encoder.dtype: bfloat16 in the cache, float32 now",
        'encoder.seed: 1 in the cache, "1" now',
        "encoder.tiles[1]: 2 in the cache, 3 now",
        "gone: 0 in the cache, absent now",
        "new: absent in the cache, null now",
    ]
    assert recipe_difference(old, old) == []
    assert recipe_difference({"a": [1]}, {"a": [1, 2]}) == ["a: [1] in the cache, [1, 2] now"]


def test_whatever_changes_the_fingerprint_is_a_difference() -> None:
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.0})
    assert recipe_difference({"a": 1}, {"a": 1.0}) == ["a: 1 in the cache, 1.0 now"]
