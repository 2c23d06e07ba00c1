from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentcache.core.records import Bucket
from latentcache.errors import CacheError
from latentcache.format.manifest import (
    Manifest,
    fingerprint,
    read_manifest,
    recipe_difference,
    seal_json,
)
from latentcache.format.paths import CACHE_JSON
from latentcache.storage.folder import Storage
from tests.tools.synthetic import make_manifest, make_spec


def manifest(**changes: Any) -> Manifest:
    return make_manifest(spec=make_spec(), buckets={"5x32x32": 11, "1x32x48": 4}, **changes)


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
    return seal_json(data)


def test_what_is_written_is_read() -> None:
    data = manifest().to_bytes()
    assert Manifest.from_bytes(data) == manifest()
    assert data == manifest().to_bytes()
    assert json.loads(data)["format_version"] == 1


def test_layouts_are_the_arrays_of_the_buckets() -> None:
    layout = manifest(codec="none", shard_clips=8).layouts()["5x32x32"]
    assert layout.bucket == Bucket(frames=5, height=32, width=32)
    assert (layout.shape, layout.dtype, layout.num_rows) == ((4, 2, 4, 4), "bfloat16", 11)
    assert (layout.shard_rows, layout.codec, layout.level) == (8, "none", 5)


def test_keys_that_are_not_known_are_left_alone() -> None:
    assert Manifest.from_bytes(changed("comment", "later")) == manifest()


def test_a_missing_cache_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"there is no cache here .*latentcache precompute"):
        read_manifest(Storage(str(tmp_path)))


def test_it_is_read_from_storage(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write(CACHE_JSON, manifest().to_bytes())
    assert read_manifest(storage) == manifest()


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
        ("compression.codec", "lz4", "unknown codec 'lz4'"),
        ("compression.level", 0, "compression.level"),
        ("shard_clips", 0, "shard_clips"),
        ("shard_clips", "4", "shard_clips: Input should be a valid integer"),
        ("buckets.0.name", "../etc", "is not a bucket"),
        ("buckets.0.shape", [4, -1, 2], "not positive whole numbers"),
        ("buckets.0.shape", [1 << 20, 1 << 20], "no sample is as large"),
        ("buckets.0.num_clips", 10**6, "do not hold 1000000 clips"),
        ("spec.dtype", "float8", "unknown stored dtype"),
        ("spec", None, "damaged"),
    ],
)
def test_values_that_make_no_sense_are_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        Manifest.from_bytes(changed(path, value))


def test_the_fingerprint_is_of_values_not_of_their_order() -> None:
    one = fingerprint({"a": 1, "b": {"c": [1, 2], "d": None}}, "plan")
    assert one == fingerprint({"b": {"d": None, "c": (1, 2)}, "a": 1}, "plan")
    assert len({one, fingerprint({"a": 1}, "plan"), fingerprint({"a": 1}, "other")}) == 3


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
    assert fingerprint({"a": 1}, "") != fingerprint({"a": 1.0}, "")
    assert recipe_difference({"a": 1}, {"a": 1.0}) == ["a: 1 in the cache, 1.0 now"]
