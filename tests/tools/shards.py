"""Shards of small arrays in every format, dtype and codec, written and read as a cache's are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import Bucket
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout, EncodedShard
from latentcache.format.tables import to_parquet
from latentcache.storage.folder import Storage
from tests.tools.synthetic import random_sample

FORMATS = ("zarr", "parquet")
CODECS = ("zstd", "lz4", "none")
DTYPES = ("bfloat16", "float16", "float32", "uint16")
CASES = [pytest.param(*c, id="-".join(c)) for c in itertools.product(FORMATS, DTYPES, CODECS)]
BUCKET = Bucket(frames=5, height=32, width=48)
#: Stands for the sample table that each object carries.
TABLE = pa.table({"row": pa.array(range(4), pa.int32()), "caption": ["a", None, "b", "c"]})


def make_layout(dtype: str = "bfloat16", codec: str = "zstd", num_rows: int = 7) -> ArrayLayout:
    shape = (2, 4, 6) if dtype == "uint16" else (3, 2, 4, 6)
    return ArrayLayout(
        bucket=BUCKET, shape=shape, dtype=dtype, num_rows=num_rows, shard_rows=4, codec=codec
    )


def make_rows(layout: ArrayLayout, num: int, failed: Sequence[int] = ()) -> list[Array | None]:
    rng = np.random.default_rng(num)
    return [None if i in failed else random_sample(layout, rng) for i in range(num)]


def bits(array: Array) -> Array:
    return array.view(f"u{array.dtype.itemsize}")


def write(
    name: str, storage: Storage, layout: ArrayLayout, shards: Sequence[Sequence[Array | None]]
) -> list[EncodedShard]:
    member = get_format(name)
    for path, data in member.metadata([layout]).items():
        storage.write(path, data)
    encoded = [member.encode_shard(layout, i, rows) for i, rows in enumerate(shards)]
    for shard in encoded:
        storage.write(shard.path, whole(shard))
    return encoded


def whole(shard: EncodedShard) -> bytes:
    """The object as it is committed, with a sample table in it."""
    return shard.with_table(to_parquet(TABLE))


def read(name: str, storage: Storage, layout: ArrayLayout, index: int, chunks: Any) -> list[Array]:
    out = [np.full(layout.shape, 7, numpy_dtype(layout.dtype)) for _ in chunks]
    get_format(name).read(storage, layout, index, chunks, out)
    return out


def check(
    name: str,
    storage: Storage,
    layout: ArrayLayout,
    shards: Sequence[Sequence[Array | None]],
    encoded: Sequence[EncodedShard],
) -> None:
    for index, (rows, shard) in enumerate(zip(shards, encoded, strict=True)):
        assert [c is None for c in shard.chunks] == [r is None for r in rows]
        assert all(c is None or c.row == row for row, c in enumerate(shard.chunks))
        chunks = [chunk for chunk in shard.chunks if chunk]
        expected = [row for row in rows if row is not None]
        for out, row in zip(read(name, storage, layout, index, chunks), expected, strict=True):
            np.testing.assert_array_equal(bits(out), bits(row))


def open_array(reader: str, root: Path) -> Any:
    """The bucket's array, as another program opens it."""
    if reader == "zarr-python":
        return zarr.open(str(root), mode="r")[f"latents/{BUCKET.name}"]
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore has no wheel here")
    kvstore = {"driver": "file", "path": f"{root}/latents/{BUCKET.name}"}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()


def check_array(array: Any, rows: Sequence[Array | None]) -> None:
    """Compare an array with its rows; those that failed, or that no clip has, are the fill value."""
    assert array.shape[0] == len(rows)
    for i, row in enumerate(rows):
        value = np.asarray(array[i])
        if row is not None:
            np.testing.assert_array_equal(bits(value), bits(row))
        elif value.dtype == np.uint16:
            assert (value == 0).all()
        else:
            assert np.isnan(value.astype(np.float32)).all()


READERS = ("zarr-python", "tensorstore")


def grow(
    name: str, storage: Storage, layout: ArrayLayout
) -> tuple[ArrayLayout, list[list[Array | None]], list[EncodedShard]]:
    """Write 7 rows, then 5 more in shards of their own, as the next generation does.

    Shard 1 keeps its 3 rows. Returns the array as it is then, and its shards.
    """
    shards = [
        make_rows(layout, 4, failed=[1]),
        make_rows(layout, 3),
        make_rows(layout, 4, failed=[0]),
        make_rows(layout, 1),
    ]
    encoded = write(name, storage, layout, shards[:2])
    before = {path: storage.read(path) for path in (shard.path for shard in encoded)}
    grown = replace(layout, num_rows=2 * layout.shard_rows + 5)
    member = get_format(name)
    for path, data in member.metadata([grown]).items():
        storage.write(path, data)
    for index in (2, 3):
        encoded.append(member.encode_shard(grown, index, shards[index]))
        storage.write(encoded[index].path, whole(encoded[index]))
    assert {path: storage.read(path) for path in before} == before
    return grown, shards, encoded
