"""Many changed caches each: any value of a JSON file, any bytes of a table or an object."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from latentcache.errors import LatentCacheError
from latentcache.format import checksum
from latentcache.format.paths import CACHE_JSON, INDEX
from tests.tools.hostile.cases import (
    PLAN,
    RANDOM,
    SAMPLES,
    random,
    read_all,
    reseal,
    shard_path,
    sound,
)
from tests.tools.hostile.objects import change_chunk

COUNT = {"read": 0}


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
