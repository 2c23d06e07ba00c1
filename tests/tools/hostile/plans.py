"""Cases of cache.json and of a cache's first plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentcache.format import checksum
from latentcache.format.checksum import seal_json
from latentcache.format.paths import CACHE_JSON
from tests.tools.hostile.cases import CASES, PLAN, case, sound


def change_json(folder: Path, *path: str | int, value: Any, file: str = CACHE_JSON) -> None:
    sound(folder)
    data = json.loads((folder / file).read_bytes())
    *outer, last = path
    inner = data
    for key in outer:
        inner = inner[key]
    inner[last] = value
    # Not by seal_json, which refuses numbers that are none.
    text = json.dumps({**data, checksum.KEY: checksum.EMPTY}, indent=2, sort_keys=True)
    (folder / file).write_bytes(checksum.seal(text.encode()))


def json_case(name: str, *path: str | int, value: Any) -> None:
    CASES[name] = lambda folder: change_json(folder, *path, value=value)


def plan_case(name: str, *path: str | int, value: Any) -> None:
    CASES[name] = lambda folder: change_json(folder, *path, value=value, file=PLAN)


plan_case("plan_huge_clips", "parts", 0, "num_clips", value=10**18)
plan_case("plan_many_shards", "parts", 0, "num_shards", value=10**12)
plan_case("plan_huge_shape", "parts", 0, "bucket", value="1000001x8000000x8000000")
plan_case("plan_number_of_digits", "parts", 0, "bucket", value=f"{'9' * 10**5}x32x32")
plan_case("plan_path_up", "parts", 0, "bucket", value="../../x")
plan_case("plan_path_absolute", "parts", 0, "bucket", value="/5x32x32")
plan_case("plan_path_zeros", "parts", 0, "bucket", value="05x32x32")
plan_case("plan_negative_shard", "parts", 0, "first_shard", value=-1)
plan_case("plan_many_retired", "num_retired", value=10**18)
plan_case("plan_infinite_time", "created_s", value=float("inf"))
plan_case("plan_text_as_number", "number", value="1")
plan_case("plan_list_as_kind", "kind", value=["plan"])
plan_case("plan_of_another_cache", "fingerprint", value="0" * 64)
plan_case("plan_tables_up", "tables_sha256", value="../../x/")
json_case("json_huge_shard", "shard_clips", value=10**12)
json_case("json_number_of_digits", "shard_clips", value="DIGITS")
json_case("json_fingerprint_up", "fingerprint", value="../../x")
json_case("json_nan", "spec", "normaliser", "scale", value=[float("nan")])
json_case("json_infinite", "spec", "pixel_range", value=[-1e999, 1])
json_case("json_endless_frame_rule", "spec", "frame_rule", "multiple", value=10**15)
json_case("json_list_for_recipe", "recipe", value=[1])
json_case("json_unhashable_format", "format", value=["zarr"])
json_case("json_module_as_format", "format", value="..encoders.taehv")
json_case(
    "json_pickled_spec", "spec", value="gASVHgAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAR0cnVllIWUUpQu"
)


@case
def json_deep(folder: Path) -> None:
    sound(folder)
    (folder / CACHE_JSON).write_bytes(b"[" * 1_000_000)


@case
def json_deep_inside(folder: Path) -> None:
    sound(folder)
    data = json.loads((folder / CACHE_JSON).read_bytes())
    data["recipe"] = "DEEP"
    text = seal_json(data).replace(b'"DEEP"', b"[" * 900 + b"]" * 900)
    place = text.rfind(checksum.KEY.encode()) + len(checksum.KEY) + 4
    text = text[:place] + checksum.EMPTY.encode() + text[place + 8 :]
    (folder / CACHE_JSON).write_bytes(checksum.seal(text))


@case
def json_with_generations(folder: Path) -> None:
    sound(folder)
    data = json.loads((folder / CACHE_JSON).read_bytes())
    data["generations"] = [json.loads((folder / PLAN).read_bytes())]
    (folder / CACHE_JSON).write_bytes(seal_json(data))


@case
def json_huge_file(folder: Path) -> None:
    sound(folder)
    with (folder / CACHE_JSON).open("r+b") as file:
        file.truncate(1 << 40)


@case
def plan_deep(folder: Path) -> None:
    sound(folder)
    (folder / PLAN).write_bytes(b"[" * 1_000_000)


@case
def plan_many_parts(folder: Path) -> None:
    sound(folder)
    data = json.loads((folder / PLAN).read_bytes())
    data["parts"] = data["parts"] * 20_000
    (folder / PLAN).write_bytes(seal_json(data))


@case
def plan_huge_file(folder: Path) -> None:
    sound(folder)
    with (folder / PLAN).open("r+b") as file:
        file.truncate(1 << 40)


@case
def plan_of_a_far_number(folder: Path) -> None:
    """The next generation is missing, and the numbers up to it are very many."""
    sound(folder)
    data = (folder / PLAN).read_bytes()
    (folder / f"generations/{'9' * 30}.json").write_bytes(data)


@case
def plan_twice(folder: Path) -> None:
    """Two names of one number."""
    sound(folder)
    (folder / "generations/1.json").write_bytes((folder / PLAN).read_bytes())
