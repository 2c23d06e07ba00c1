"""A shard's object as a whole: the sample table in it, and its chunks packed into other objects."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.core.dtypes import numpy_dtype
from latentcache.errors import CorruptionError
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import TABLE_MARK, EncodedShard, embedded_table
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.storage.folder import Storage
from tests.tools.shards import (
    CASES,
    CODECS,
    FORMATS,
    TABLE,
    bits,
    make_layout,
    make_rows,
    whole,
    write,
)


@pytest.mark.parametrize(("name", "dtype", "codec"), CASES)
@pytest.mark.parametrize("failed", [[], [1], [0, 1, 2, 3]])
def test_an_object_gives_its_sample_table_and_its_latents(
    name: str, dtype: str, codec: str, failed: list[int]
) -> None:
    layout, member = make_layout(dtype, codec), get_format(name)
    rows = make_rows(layout, 4, failed)
    shard = member.encode_shard(layout, 0, rows)
    data = whole(shard)
    table = embedded_table(data, member.tail_bytes(layout, data))
    assert from_parquet(table) == pq.read_table(pa.BufferReader(table)) == TABLE
    for row, chunk in zip(rows, shard.chunks, strict=True):
        if row is not None:
            assert chunk
            out = np.full(layout.shape, 7, numpy_dtype(dtype))
            member.decode(layout, data, chunk, out)
            np.testing.assert_array_equal(bits(out), bits(row))


#: Of an object without one, or of which the end, by which it is found, is gone.
NO_TABLE = "no sample table in it|does not end as a Parquet file|its footer would have"


def without_table(shard: EncodedShard) -> bytes:
    return shard.body + shard.tail


def with_length(length: int) -> Callable[[EncodedShard], bytes]:
    def make(shard: EncodedShard) -> bytes:
        table = b"".join([to_parquet(TABLE), length.to_bytes(8, "little"), TABLE_MARK])
        return shard.body + table + shard.tail

    return make


def cut(shard: EncodedShard) -> bytes:
    return whole(shard)[:-1]


@pytest.mark.parametrize(
    "change", [without_table, with_length(1 << 40), with_length(2**64 - 1), cut]
)
@pytest.mark.parametrize("name", FORMATS)
def test_an_object_without_a_sample_table_is_refused(
    name: str, change: Callable[[EncodedShard], bytes]
) -> None:
    layout, member = make_layout(), get_format(name)
    data = change(member.encode_shard(layout, 0, make_rows(layout, 4)))
    with pytest.raises(ValueError, match=NO_TABLE):
        embedded_table(data, member.tail_bytes(layout, data))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 15, 16, 60])
def test_what_is_shorter_than_any_object_has_no_sample_table(name: str, num_bytes: int) -> None:
    layout, member = make_layout(), get_format(name)
    data = whole(member.encode_shard(layout, 0, make_rows(layout, 4)))
    for short in (data[:num_bytes], data[-num_bytes or len(data) :]):
        with pytest.raises(ValueError, match=NO_TABLE):
            embedded_table(short, member.tail_bytes(layout, short))


@pytest.mark.parametrize(("name", "dtype", "codec"), CASES)
def test_a_chunk_of_a_whole_object_that_is_no_sample_is_a_value_error(
    name: str, dtype: str, codec: str
) -> None:
    layout, member = make_layout(dtype, codec), get_format(name)
    shard = member.encode_shard(layout, 0, make_rows(layout, 4))
    data, chunk = whole(shard), shard.chunks[1]
    assert chunk
    out = np.empty(layout.shape, numpy_dtype(dtype))
    for wrong in (
        replace(chunk, length=chunk.length - 1),
        replace(chunk, offset=chunk.offset + 1, length=chunk.length - 1),
        replace(chunk, offset=len(data)),
    ):
        with pytest.raises(ValueError, match=r"one sample|header|no row group|decompress"):
            member.decode(layout, data, wrong, out)


@pytest.mark.parametrize(("name", "dtype", "codec"), CASES)
def test_packed_chunks_are_the_object_that_encoding_gives(
    name: str, dtype: str, codec: str, storage: Storage
) -> None:
    layout, member = make_layout(dtype, codec), get_format(name)
    rows = [make_rows(layout, 4, failed=[1]), make_rows(layout, 3, failed=[2])]
    first, second = write(name, storage, layout, rows)
    wanted = [(0, 3), (1, 1), None, (0, 2)]
    refs = [(first, second)[at[0]].chunks[at[1]] for at in wanted if at]
    taken = [
        chunk
        for (index, _), ref in zip(filter(None, wanted), refs, strict=True)
        for chunk in member.take(storage, layout, index, [ref])
    ]
    packed = member.pack(layout, 7, [taken[0], taken[1], None, taken[2]])
    encoded = member.encode_shard(layout, 7, [at and rows[at[0]][at[1]] for at in wanted])
    assert packed.chunks == encoded.chunks
    assert whole(packed) == whole(encoded)
    together = member.take(storage, layout, 0, [refs[2], refs[0]])
    assert [chunk.data for chunk in together] == [taken[2].data, taken[0].data]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "codec"), list(itertools.product(FORMATS, CODECS)))
def test_samples_in_pieces_are_packed_as_they_are_encoded(
    name: str, codec: str, side: Any, tmp_path: Path
) -> None:
    """Of padded samples only the pieces with a token of their own are stored; equal ones once."""
    layout = replace(make_layout("float32", codec), shape=(8, 6), padded=side, piece=2)
    rng, storage, member = np.random.default_rng(1), Storage(str(tmp_path)), get_format(name)
    lengths = (3, 0, 8, 5)
    rows = [rng.normal(size=(n, 6)).astype(np.float32) for n in lengths]
    (shard,) = write(name, storage, layout, [rows])
    taken = member.take(storage, layout, 0, shard.chunks)
    packed = member.pack(layout, 7, [taken[2], None, taken[0], taken[2]])
    encoded = member.encode_shard(layout, 7, [rows[2], None, rows[0], rows[2]])
    assert packed.chunks == encoded.chunks
    assert whole(packed) == whole(encoded)
    again = member.pack(layout, 0, taken)
    assert whole(again) == whole(shard)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_a_shard_may_be_packed_of_more_chunks_than_a_byte_counts(name: str, tmp_path: Path) -> None:
    layout = replace(make_layout("bfloat16", "zstd", 300), shard_rows=300)
    member, storage = get_format(name), Storage(str(tmp_path))
    rows = make_rows(layout, 300)
    (shard,) = write(name, storage, layout, [rows])
    taken = member.take(storage, layout, 0, shard.chunks)
    assert whole(member.pack(layout, 0, taken)) == whole(shard)


@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_a_chunk_that_fails_its_crc_is_not_taken(name: str, tmp_path: Path) -> None:
    layout, storage = make_layout("bfloat16", "zstd"), Storage(str(tmp_path))
    (shard,) = write(name, storage, layout, [make_rows(layout, 2)])
    ref = shard.chunks[1]
    wrong = replace(ref, crc32c=ref.crc32c ^ 1)
    with pytest.raises(CorruptionError, match="row 1: its bytes fail their CRC32C"):
        get_format(name).take(storage, layout, 0, [wrong])
