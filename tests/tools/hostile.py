"""Caches that were made to do harm, opened under a limit of memory: `python -m tests.tools.hostile FOLDER`.

Prints one line a case: its name, and the error that it ended with, or `read` where samples came out.
tests/system/test_hostile.py runs it: a limit of memory cannot be taken back, and a crash takes the process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from latentcache.errors import LatentCacheError
from latentcache.format import checksum
from latentcache.format.checksum import seal_json
from latentcache.format.paths import (
    CACHE_JSON,
    INDEX,
    columns_index_path,
    columns_path,
    generation_path,
    rejected_path,
    sample_path,
    sources_path,
)
from latentcache.format.schemas import (
    CHANGED_SCHEMA,
    INDEX_FACTS,
    INDEX_SCHEMA,
    PLANNED_SOURCE_SCHEMA,
)
from latentcache.format.snapshot import publish, to_index
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.reading.cache import open_cache
from latentcache.storage.folder import Storage
from tests.tools.synthetic import Synthetic, facts_of, write_cache

#: That a case may take beyond what the process has when it begins. Sound caches here take 1 MiB.
MEMORY_BYTES = 1 << 30
BUCKET = "5x32x32"
SAMPLES = sample_path(BUCKET, 0)

Case = Callable[[Path], None]
#: Each writes one cache into a folder.
CASES: dict[str, Case] = {}
#: Each writes many, and reads them.
RANDOM: dict[str, Case] = {}
COUNT = {"read": 0}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def random(function: Case) -> Case:
    RANDOM[function.__name__] = function
    return function


def sound(folder: Path, format: str = "zarr", **options: Any) -> Synthetic:  # noqa: A002
    return write_cache(str(folder), format=format, buckets={BUCKET: 8}, **options)


def read_all(folder: Path) -> int:
    """Read a cache in every way that a trainer does; returns the number of samples."""
    from latentcache.reading.loader.loader import LatentLoader

    cache = open_cache(str(folder))
    cache.table()
    for n in range(len(cache)):
        cache[n]
    for _ in LatentLoader(cache, batch_size=2, num_threads=1):
        pass
    return len(cache)


# cache.json and generations

PLAN = generation_path(1)


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


# What later generations say


def grow(folder: Path, tables: Callable[[str], dict[str, pa.Table]], **counts: int) -> None:
    """Take a step whose tables follow from its folder's name; the snapshot is published after it."""
    written = sound(folder)
    first = written.manifest.generations[0]
    step = replace(first, number=2, kind="grow", parent_sha256=first.sha256, parts=(), **counts)
    written.storage.write(generation_path(2), step.to_bytes())
    for path, table in tables(step.folder).items():
        written.storage.write(path, to_parquet(table))
    index = from_parquet(written.storage.read(INDEX))
    manifest = replace(written.manifest, generations=(first, step))
    rows = [
        {**row, "columns": step.folder if columns_of(counts) else None} for row in index.to_pylist()
    ]
    publish(written.storage, to_index(rows, manifest))


def columns_of(counts: dict[str, int]) -> bool:
    return bool(counts.get("num_relabelled"))


def columns_case(name: str, **columns: Any) -> None:
    """Captions of another form than they have."""
    sound_columns = {"row": pa.array(range(4), pa.int32()), "caption": ["a"] * 4}

    def tables(step: str) -> dict[str, pa.Table]:
        table = pa.table({**sound_columns, **columns})
        places = [{"bucket": BUCKET, "shard": shard} for shard in range(2)]
        return {
            columns_index_path(step): pa.Table.from_pylist(places, schema=CHANGED_SCHEMA),
            columns_path(step, BUCKET, 0): table,
            columns_path(step, BUCKET, 1): table,
        }

    CASES[name] = lambda folder: grow(folder, tables, num_relabelled=4)


columns_case("columns_of_no_rows", row=pa.array([], pa.int32()), caption=pa.array([], pa.string()))
columns_case("columns_of_other_rows", row=pa.array([10**9 + n for n in range(4)], pa.int32()))
columns_case("columns_rows_as_text", row=["0", "1", "2", "3"])
columns_case("columns_rows_as_lists", row=[[0], [1], [2], [3]])
columns_case("columns_captions_as_lists", caption=[["a"]] * 4)
columns_case("columns_captions_as_numbers", caption=[1] * 4)
columns_case("columns_that_replace_places", offset=[2**62] * 4)
columns_case("columns_rows_as_nothing", row=pa.nulls(4, pa.int32()))
columns_case("columns_that_replace_places_of_plans", url=["/etc/passwd"] * 4)
columns_case("columns_that_replace_keys", key=["a"] * 4)
columns_case("columns_that_replace_status", status=["failed"] * 4)


@case
def columns_without_captions(folder: Path) -> None:
    grow(folder, lambda _: {}, num_relabelled=4)


def rejected_case(name: str, rejected: pa.Table, sources: pa.Table) -> None:
    """A table of rejected sources, or of sources, of another form than they have."""

    def tables(step: str) -> dict[str, pa.Table]:
        return {rejected_path(step): rejected, sources_path(step): sources}

    CASES[name] = lambda folder: grow(folder, tables, num_rejected=1, num_sources=1)


rejected_case("rejected_of_no_columns", pa.table({"x": [1]}), pa.table({"x": [1]}))
rejected_case(
    "rejected_rows_as_text",
    pa.table({"key": ["a"], "source": ["a"], "row": ["0"], "status": ["failed"]}),
    pa.table({"x": [1]}),
)
rejected_case(
    "rejected_messages_as_lists",
    pa.table(
        {
            "key": ["a"],
            "source": ["a"],
            "row": pa.array([0], pa.int32()),
            "status": ["failed"],
            "message": [["a"]],
        }
    ),
    pa.Table.from_pylist([], schema=PLANNED_SOURCE_SCHEMA),
)


# Tables


def index_case(name: str, **values: Any) -> None:
    def make(folder: Path) -> None:
        written = sound(folder)
        index = from_parquet(written.storage.read(INDEX))
        rows = index.to_pylist()
        rows[0].update(values)
        table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
        written.storage.write(INDEX, to_parquet(table, facts_of(index)))

    CASES[name] = make


index_case("index_negative", num_ok=-1)
index_case("index_more_ok_than_clips", num_ok=5)
index_case("index_huge_shard", shard=10**15)
index_case("index_huge_counts", num_ok=2**31 - 1, num_clips=2**31 - 1)
index_case("index_path_up", bucket="../../x")
index_case("index_twice", shard=1)
index_case("index_more_clips_than_the_shard", num_clips=3, num_ok=3)
index_case("index_retires_what_is_counted", retired=[0])
index_case("index_retires_far_rows", retired=[2**31 - 1], num_clips=3, num_ok=3)
index_case("index_columns_up", columns="../../x")
index_case("index_columns_that_are_not_there", columns="000009-0123456789ab")


def index_facts_case(name: str, **facts: Any) -> None:
    def make(folder: Path) -> None:
        storage = sound(folder).storage
        index = from_parquet(storage.read(INDEX))
        known = facts_of(index)
        storage.write(INDEX, to_parquet(index, {INDEX_FACTS: {**known[INDEX_FACTS], **facts}}))

    CASES[name] = make


index_facts_case("index_of_a_far_generation", generation=10**18)
index_facts_case("index_of_a_negative_generation", generation=-1)
index_facts_case("index_of_a_generation_as_text", generation="1")
index_facts_case("index_of_another_cache", fingerprint="0" * 64)


@case
def index_of_other_types(folder: Path) -> None:
    storage = sound(folder).storage
    columns = {name: [["x"]] for name in INDEX_SCHEMA.names}
    storage.write(INDEX, to_parquet(pa.table(columns), index_facts(storage)))


@case
def index_of_many_rows_in_a_few_bytes(folder: Path) -> None:
    storage = sound(folder).storage
    rows = 200_000_000
    table = pa.table({"bucket": pa.nulls(rows, pa.string())})
    storage.write(INDEX, to_parquet(table, index_facts(storage)))


def index_facts(storage: Storage) -> dict[str, Any]:
    """The metadata of the sound snapshot, so that only its rows are what is wrong."""
    return facts_of(from_parquet(storage.read(INDEX)))


def change_samples(folder: Path, **columns: Any) -> None:
    """Set values of every row of one sample table, and seal it."""
    storage = sound(folder).storage
    table = from_parquet(storage.read(SAMPLES))
    for name, value in columns.items():
        array = value if isinstance(value, pa.Array) else pa.array([value] * 4, table[name].type)
        field = pa.field(name, array.type)
        at = table.column_names.index(name)
        table = table.set_column(at, field, array)
    storage.write(SAMPLES, to_parquet(table, facts_of(table)))


def samples_case(name: str, **columns: Any) -> None:
    CASES[name] = lambda folder: change_samples(folder, **columns)


samples_case("samples_offset_beyond", offset=2**45)
samples_case("samples_offset_huge", offset=2**62)
samples_case("samples_offset_negative", offset=-1)
samples_case("samples_length_huge", length=2**62)
samples_case("samples_length_two_gib", length=2**31)
samples_case("samples_length_zero", length=0)
samples_case("samples_length_negative", length=-(2**62))
samples_case("samples_without_place", offset=None, length=None)
samples_case("samples_offset_as_text", offset=pa.array(["0"] * 4))
samples_case("samples_key_as_list", key=pa.array([["a"] * 3] * 4))


@case
def samples_of_no_rows(folder: Path) -> None:
    storage = sound(folder).storage
    table = from_parquet(storage.read(SAMPLES)).slice(0, 0)
    storage.write(SAMPLES, to_parquet(table, facts_of(table)))


@case
def samples_without_columns(folder: Path) -> None:
    storage = sound(folder).storage
    table = from_parquet(storage.read(SAMPLES)).select(["key"])
    storage.write(SAMPLES, to_parquet(table, facts_of(table)))


@case
def samples_that_decompress_to_much(folder: Path) -> None:
    change_samples(folder, caption=pa.array(["x" * (300 << 20)] + [None] * 3))


@case
def samples_of_one_text_repeated(folder: Path) -> None:
    storage = sound(folder).storage
    text = pa.array(["x" * (1 << 19)])
    caption = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1 << 16, np.int32)), text)
    table = pa.table({"caption": caption, "status": ["ok"] * (1 << 16)})
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({checksum.KEY: checksum.EMPTY})
    storage.write(SAMPLES, checksum.seal(buffer.getvalue().to_pybytes()))


@case
def samples_with_a_footer_beyond_the_file(folder: Path) -> None:
    storage = sound(folder).storage
    data = bytearray(storage.read(SAMPLES))
    data[-8:-4] = (2**32 - 1).to_bytes(4, "little")
    storage.write(SAMPLES, reseal(bytes(data)))


@case
def samples_of_a_terabyte(folder: Path) -> None:
    sound(folder)
    with (folder / SAMPLES).open("r+b") as file:
        file.truncate(1 << 40)


def reseal(data: bytes) -> bytes:
    """Return a changed file with a CRC32C that fits, as somebody who means harm would."""
    mark = checksum.KEY.encode() + b"\x18\x08"
    place = data.rfind(mark) + len(mark)
    try:
        return checksum.seal(data[:place] + checksum.EMPTY.encode() + data[place + 8 :])
    except ValueError:  # the place itself was changed
        return data


# Shard objects


def change_chunk(folder: Path, change: Callable[[bytearray], None], **options: Any) -> None:
    """Change the bytes of the first clip, and make its CRC32C fit."""
    written = sound(folder, **options)
    storage, row = written.storage, from_parquet(written.storage.read(SAMPLES)).to_pylist()[0]
    path = shard_path(written)
    data = bytearray(storage.read(path))
    chunk = data[row["offset"] : row["offset"] + row["length"]]
    change(chunk)
    data[row["offset"] : row["offset"] + row["length"]] = chunk
    storage.write(path, bytes(data))
    table = from_parquet(storage.read(SAMPLES))
    crcs = table["crc32c"].to_pylist()
    crcs[0] = google_crc32c.value(bytes(chunk))
    at = table.column_names.index("crc32c")
    table = table.set_column(at, table.schema.field("crc32c"), pa.array(crcs, pa.uint32()))
    storage.write(SAMPLES, to_parquet(table, facts_of(table)))


def shard_path(written: Synthetic) -> str:
    from latentcache.format.shards import get_format

    layout = written.manifest.layouts()[BUCKET]
    return get_format(written.manifest.format).path(layout, 0)


def header_case(name: str, start: int, value: int) -> None:
    def change(chunk: bytearray) -> None:
        chunk[start : start + 4] = value.to_bytes(4, "little")

    CASES[name] = lambda folder: change_chunk(folder, change)


header_case("blosc_claims_two_gib", 4, 2**31 - 1)
header_case("blosc_claims_less", 4, 16)
header_case("blosc_claims_longer_input", 12, 2**31 - 1)


@case
def parquet_object_with_a_footer_beyond_the_file(folder: Path) -> None:
    written = sound(folder, "parquet")
    data = bytearray(written.storage.read(shard_path(written)))
    data[-8:-4] = (2**32 - 1).to_bytes(4, "little")
    written.storage.write(shard_path(written), bytes(data))


# Random changes


@random
def random_json(folder: Path) -> None:
    """Any value of cache.json replaced by any other."""
    change_values(folder, CACHE_JSON)


@random
def random_plan(folder: Path) -> None:
    """Any value of a generation replaced by any other."""
    change_values(folder, PLAN)


def change_values(folder: Path, file: str) -> None:
    sound(folder)
    original = json.loads((folder / file).read_bytes())
    places = [path for path in _places(original) if path and path[-1] != checksum.KEY]
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=5,
    )
    big = st.sampled_from([2**31, 2**63, 10**30, -1, 0, 1e308, [], {}, "", [[0, 2**40]] * 2])

    @fuzz
    @given(st.sampled_from(places), values | big)
    def attempt(path: tuple[Any, ...], value: Any) -> None:
        data = json.loads(json.dumps(original))
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        text = json.dumps({**data, checksum.KEY: checksum.EMPTY}, indent=2, sort_keys=True)
        (folder / file).write_bytes(checksum.seal(text.encode()))
        is_read_or_refused(folder)

    attempt()


def _places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield from _places(data[key], (*path, key))


def random_bytes(name: str, format: str, codec: str, path: str | None) -> None:  # noqa: A002
    """Some bytes of an object changed, in a table so that its seal fits."""

    def make(folder: Path) -> None:
        written = sound(folder, format, codec=codec)
        place = path or shard_path(written)
        original = written.storage.read(place)
        edits = st.lists(
            st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)),
            min_size=1,
            max_size=4,
        )

        @fuzz
        @given(edits)
        def attempt(edits: list[tuple[int, int]]) -> None:
            data = bytearray(original)
            for at, value in edits:
                data[at] = value
            (folder / place).write_bytes(reseal(bytes(data)) if path else bytes(data))
            is_read_or_refused(folder)

        attempt()

    RANDOM[name] = make


random_bytes("random_samples", "zarr", "zstd", SAMPLES)
random_bytes("random_index", "zarr", "zstd", INDEX)
random_bytes("random_parquet_object", "parquet", "zstd", None)
random_bytes("random_plain_parquet_object", "parquet", "none", None)


@random
def random_chunks(folder: Path) -> None:
    """Some bytes of a compressed clip changed, with a CRC32C that fits."""

    @fuzz
    @given(st.lists(st.tuples(st.integers(0, 2**30), st.integers(0, 255)), min_size=1, max_size=4))
    def attempt(edits: list[tuple[int, int]]) -> None:
        def change(chunk: bytearray) -> None:
            for at, value in edits:
                chunk[at % len(chunk)] = value

        change_chunk(folder, change)
        is_read_or_refused(folder)

    attempt()


def fuzz(test: Any) -> Any:
    return settings(
        max_examples=int(sys.argv[2]) if len(sys.argv) > 2 else 10,
        deadline=None,
        derandomize=len(sys.argv) <= 2,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(test)


def is_read_or_refused(folder: Path) -> None:
    with contextlib.suppress(LatentCacheError):
        read_all(folder)
        COUNT["read"] += 1


def outcome(read: Callable[[], int]) -> str:
    try:
        return f"read {read()}"
    except LatentCacheError as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    except BaseException as error:  # noqa: BLE001 - whatever else is what the test looks for
        return f"UNEXPECTED {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def limit_memory() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    now = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, now + MEMORY_BYTES))


def main() -> None:
    folder = Path(sys.argv[1])
    for name, make in CASES.items():
        make(folder / name)
    read_all(Path(sound(folder / "sound").url))  # loads what reading loads
    limit_memory()
    for name in CASES:
        print(f"{name}\t{outcome(functools.partial(read_all, folder / name))}", flush=True)
    for name, run in RANDOM.items():
        text = outcome(functools.partial(count_runs, run, folder / name))
        print(f"{name}\t{text}", flush=True)


def count_runs(run: Case, folder: Path) -> int:
    """Return how many changed caches gave samples."""
    COUNT["read"] = 0
    run(folder)
    return COUNT["read"]


if __name__ == "__main__":
    main()
