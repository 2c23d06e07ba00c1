"""What every shard format promises: the bits that went in come out, or an error names the clip."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import Bucket, ChunkRef
from latentcache.errors import ConfigError, CorruptionError
from latentcache.format import checksum
from latentcache.format.shards import get_format, ranges
from latentcache.format.shards.protocol import (
    TABLE_MARK,
    ArrayLayout,
    EncodedShard,
    embedded_table,
)
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.storage.folder import Storage
from tests.tools.synthetic import random_sample

FORMATS = ("zarr", "parquet")
CODECS = ("zstd", "lz4", "none")
DTYPES = ("bfloat16", "float16", "float32", "uint16")
CASES = [pytest.param(*c, id="-".join(c)) for c in itertools.product(FORMATS, DTYPES, CODECS)]
BUCKET = Bucket(frames=5, height=32, width=48)
#: -0.0, infinities, the smallest and largest subnormals, quiet and signalling NaN with payloads.
HARD_BITS = {
    "bfloat16": [0x8000, 0x7F80, 0xFF80, 0x0001, 0x807F, 0x7FC0, 0xFFC1, 0x7F81, 0x7FFF],
    "float16": [0x8000, 0x7C00, 0xFC00, 0x0001, 0x83FF, 0x7E00, 0xFE01, 0x7C01, 0x7FFF],
    "float32": [1 << 31, 0x7F800000, 0xFF800000, 1, 0x807FFFFF, 0x7FC00000, 0xFFC00001, 0x7F800001],
    "uint16": [0, 1, 0x7FFF, 0x8000, 0xFFFF],
}


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


@pytest.fixture(params=[None, 32], ids=["whole", "pieces"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local files are read in pieces: in one per chunk of these small samples, and in several."""
    if request.param:
        monkeypatch.setattr(ranges, "PIECE_BYTES", request.param)


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}")


@pytest.mark.parametrize(("name", "dtype", "codec"), CASES)
def test_the_same_bits_come_back_without_the_failed_rows(
    name: str, dtype: str, codec: str, storage: Storage
) -> None:
    layout = make_layout(dtype, codec)
    shards = [make_rows(layout, 4, failed=[1]), make_rows(layout, 3, failed=[0, 2])]
    check(name, storage, layout, shards, write(name, storage, layout, shards))


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize(("name", "dtype", "codec"), CASES)
def test_hard_bits_survive(name: str, dtype: str, codec: str, tmp_path: Path) -> None:
    layout = make_layout(dtype, codec)
    rows: list[Array | None] = [
        np.resize(np.array(HARD_BITS[dtype], f"u{numpy_dtype(dtype).itemsize}"), layout.shape).view(
            numpy_dtype(dtype)
        )
    ]
    for value in HARD_BITS[dtype][:3]:  # a clip of one value: of zeros, which a fill value is like
        rows.append(
            bits(np.zeros(layout.shape, numpy_dtype(dtype))) + np.array(value, bits(rows[0]).dtype)
        )
    rows[1:] = [row.view(numpy_dtype(dtype)) for row in rows[1:]]
    storage = Storage(str(tmp_path))
    check(name, storage, layout, [rows], write(name, storage, layout, [rows]))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    codec=st.sampled_from(CODECS),
    shape=st.lists(st.integers(1, 5), min_size=3, max_size=4),
    failed=st.sets(st.integers(0, 3)),
)
def test_any_shape_and_any_bits(
    name: str, data: Any, dtype: str, codec: str, shape: list[int], failed: set[int]
) -> None:
    layout = ArrayLayout(
        bucket=BUCKET, shape=tuple(shape), dtype=dtype, num_rows=4, shard_rows=4, codec=codec
    )
    size = int(np.prod(shape)) * numpy_dtype(dtype).itemsize
    rows: list[Array | None] = [
        None
        if row in failed
        else np.frombuffer(
            data.draw(st.binary(min_size=size, max_size=size)), numpy_dtype(dtype)
        ).reshape(shape)
        for row in range(4)
    ]
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    check(name, storage, layout, [rows], write(name, storage, layout, [rows]))


@pytest.mark.parametrize("name", FORMATS)
def test_a_shard_in_which_all_clips_failed_is_an_object_too(name: str, storage: Storage) -> None:
    layout = make_layout()
    (encoded,) = write(name, storage, layout, [[None] * 4])
    assert list(encoded.chunks) == [None] * 4
    assert encoded.body + encoded.tail
    assert storage.read(encoded.path) == whole(encoded)


@pytest.mark.parametrize(("name", "dtype", "codec"), CASES)
def test_the_same_rows_give_the_same_bytes(name: str, dtype: str, codec: str) -> None:
    layout = make_layout(dtype, codec)
    rows, member = make_rows(layout, 4, failed=[2]), get_format(name)
    first = member.encode_shard(layout, 0, rows)
    with ThreadPoolExecutor(1) as pool:  # not the main thread
        again = pool.submit(
            member.encode_shard, layout, 0, [r if r is None else r.copy() for r in rows]
        )
    assert again.result() == first


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_are_not_contiguous_are_stored_as_they_look(name: str, storage: Storage) -> None:
    layout = make_layout("float32", num_rows=1)
    rows: list[Array | None] = [random_sample(layout, np.random.default_rng(0)).T.copy().T]
    check(name, storage, layout, [rows], write(name, storage, layout, [rows]))


@pytest.mark.parametrize("name", FORMATS)
def test_rows_of_another_number_shape_or_dtype_are_refused(name: str) -> None:
    layout, member = make_layout(), get_format(name)
    for num in (0, 5):
        with pytest.raises(ValueError, match=f"shard 5x32x48/1 has 1 to 4 rows, not {num}"):
            member.encode_shard(layout, 1, make_rows(layout, num))
    with pytest.raises(
        ValueError, match=r"row 0: the cache stores bfloat16 \[3, 2, 4, 6\], not float32"
    ):
        member.encode_shard(layout, 0, [np.zeros(layout.shape, np.float32), None, None, None])


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_bit_anywhere_in_a_chunk_is_found(name: str, codec: str, tmp_path: Path) -> None:
    layout, storage = make_layout(codec=codec), Storage(str(tmp_path))
    (encoded,) = write(name, storage, layout, [make_rows(layout, 4, failed=[0])])
    chunk = encoded.chunks[2]
    assert chunk
    for offset in range(chunk.offset, chunk.offset + chunk.length, 7):
        data = bytearray(whole(encoded))
        data[offset] ^= 1 << (offset % 8)
        storage.write(encoded.path, bytes(data))
        with pytest.raises(CorruptionError, match=r"shard 5x32x48/0, row 2: .* fail their CRC32C"):
            read(name, storage, layout, 0, [encoded.chunks[1], chunk])


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_object_is_found(name: str, storage: Storage) -> None:
    layout = make_layout()
    encoded = get_format(name).encode_shard(layout, 0, make_rows(layout, 4))
    with pytest.raises(CorruptionError, match="shard 5x32x48/0, row 1: the object is missing"):
        read(name, storage, layout, 0, [encoded.chunks[1]])


@pytest.mark.usefixtures("_pieces")
@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_object_is_found(name: str, storage: Storage) -> None:
    layout = make_layout()
    (encoded,) = write(name, storage, layout, [make_rows(layout, 4)])
    last = encoded.chunks[3]
    assert last
    for end in (last.offset + last.length - 1, last.offset, 1, 0):
        storage.write(encoded.path, whole(encoded)[:end])
        with pytest.raises(CorruptionError, match=r"row 3: the object ends \d+ bytes early"):
            read(name, storage, layout, 0, [last])


@pytest.mark.parametrize("name", FORMATS)
def test_sound_bytes_that_are_no_sample_are_found(name: str, tmp_path: Path) -> None:
    layout, storage = make_layout(), Storage(str(tmp_path))
    (encoded,) = write(name, storage, layout, [make_rows(layout, 4)])
    import google_crc32c

    wrong = ChunkRef(row=0, offset=8, length=40, crc32c=google_crc32c.value(whole(encoded)[8:48]))
    with pytest.raises(CorruptionError, match=r"row 0: .*(do not decompress|cannot be read)"):
        read(name, storage, layout, 0, [wrong])


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_many_threads_read_at_once_in_any_order(name: str, storage: Storage) -> None:
    layout = make_layout(num_rows=40)
    shards = [make_rows(layout, 4, failed=[i % 4]) for i in range(10)]
    encoded = write(name, storage, layout, shards)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for index in rng.permutation(10):
            rows = rng.permutation([r for r in range(4) if shards[index][r] is not None])
            out = read(name, storage, layout, int(index), [encoded[index].chunks[r] for r in rows])
            for array, row in zip(out, rows, strict=True):
                expected = shards[index][row]
                assert expected is not None
                np.testing.assert_array_equal(bits(array), bits(expected))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))


@pytest.mark.parametrize("name", FORMATS)
def test_chunks_that_are_near_one_another_are_one_request(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, storage = make_layout(), Storage(f"memory://{uuid.uuid4().hex}")
    rows = make_rows(layout, 4)
    (encoded,) = write(name, storage, layout, [rows])
    read(name, storage, layout, 0, encoded.chunks)  # whatever a format reads once a file
    requests: list[int] = []
    original = Storage.read_ranges

    def counting(self: Storage, path: str, wanted: Any) -> list[bytes]:
        requests.append(len(wanted))
        return original(self, path, wanted)

    monkeypatch.setattr(Storage, "read_ranges", counting)
    first, last = encoded.chunks[0], encoded.chunks[3]
    assert first
    assert last
    gap = last.offset - first.offset - first.length
    for max_gap, wanted, num_requests in (
        (8, (2, 0, 1), 1),
        (gap - 1, (3, 0), 2),
        (gap, (3, 0), 1),
    ):
        monkeypatch.setattr(ranges, "MAX_GAP_BYTES", max_gap)
        found = read(name, storage, layout, 0, [encoded.chunks[i] for i in wanted])
        assert requests.pop() == num_requests
        for array, row in zip(found, wanted, strict=True):
            expected = rows[row]
            assert expected is not None
            np.testing.assert_array_equal(bits(array), bits(expected))
    assert requests == []


def test_the_header_of_a_compressed_chunk_is_not_believed(tmp_path: Path) -> None:
    layout, storage = make_layout(), Storage(str(tmp_path))
    (encoded,) = write("zarr", storage, layout, [make_rows(layout, 4)])
    chunk = encoded.chunks[1]
    assert chunk
    for place in (4, 12):  # the length that it decompresses to, and its own, which blosc believes
        data = bytearray(whole(encoded))
        data[chunk.offset + place] ^= 1
        storage.write(encoded.path, bytes(data))
        out = [np.empty(layout.shape, numpy_dtype(layout.dtype))]
        with pytest.raises(
            CorruptionError, match=r"row 1: its bytes do not decompress \(its header"
        ):
            get_format("zarr").read(storage, layout, 0, [chunk], out, check=False)


@pytest.mark.parametrize("name", FORMATS)
def test_metadata_is_the_same_each_time_and_sealed(name: str) -> None:
    layouts = [make_layout()]
    objects = get_format(name).metadata(layouts)
    assert get_format(name).metadata(layouts) == objects
    for data in objects.values():
        checksum.check(data)


def test_an_unknown_format_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown shard format 'zar'\. Did you mean 'zarr'"):
        get_format("zar")


# What plain readers see.


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


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_python_and_tensorstore_read_the_arrays(
    dtype: str, codec: str, reader: str, tmp_path: Path
) -> None:
    layout, storage = make_layout(dtype, codec), Storage(str(tmp_path))
    shards = [make_rows(layout, 4, failed=[1]), make_rows(layout, 3)]
    write("zarr", storage, layout, shards)
    array = open_array(reader, tmp_path)
    assert array.shape == (7, *layout.shape)
    if reader == "zarr-python":
        assert array.dtype == numpy_dtype(dtype)
    check_array(array, [*itertools.chain(*shards)])


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


@pytest.mark.parametrize(("name", "dtype", "codec"), CASES)
def test_an_array_that_grew_gives_the_bits_of_all_its_shards(
    name: str, dtype: str, codec: str, storage: Storage
) -> None:
    layout = make_layout(dtype, codec)
    grown, shards, encoded = grow(name, storage, layout)
    check(name, storage, grown, shards, encoded)
    check(name, storage, layout, shards[:2], encoded[:2])  # who opened it before sees what it saw


@pytest.mark.parametrize("name", FORMATS)
def test_growing_changes_no_byte_of_a_shard_that_is_still_to_be_written(name: str) -> None:
    layout = make_layout()
    grown = replace(layout, num_rows=13)
    for index, num in ((0, 4), (1, 3)):
        member, rows = get_format(name), make_rows(layout, num)
        assert member.encode_shard(grown, index, rows) == member.encode_shard(layout, index, rows)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_python_and_tensorstore_read_an_array_that_grew(
    dtype: str, codec: str, reader: str, tmp_path: Path
) -> None:
    layout, storage = make_layout(dtype, codec), Storage(str(tmp_path))
    _, shards, _ = grow("zarr", storage, layout)
    shards[1].append(None)  # the row that no clip has, in the middle of the array
    check_array(open_array(reader, tmp_path), [*itertools.chain(*shards)])


@pytest.mark.parametrize("codec", CODECS)
def test_shards_of_an_array_that_grew_are_those_that_zarr_python_writes(
    codec: str, tmp_path: Path
) -> None:
    layout, storage = make_layout(codec=codec), Storage(str(tmp_path / "ours"))
    grown, shards, encoded = grow("zarr", storage, layout)
    theirs = Storage(str(tmp_path / "theirs"))
    for path, data in get_format("zarr").metadata([grown]).items():
        theirs.write(path, data)
    array = zarr.open(theirs.url)[f"latents/{BUCKET.name}"]
    array[4:7], array[12:] = np.stack(shards[1]), np.stack(shards[3])
    for index in (1, 3):
        assert theirs.read(encoded[index].path) == encoded[index].body + encoded[index].tail


def read_with_pyarrow(file: Path, layout: ArrayLayout) -> dict[int, Array]:
    """The rows of a Parquet shard, as pyarrow reads them."""
    table = pq.read_table(file)
    values = table["latents"].combine_chunks().flatten()
    flat = np.frombuffer(values.buffers()[1], numpy_dtype(layout.dtype)) if len(values) else []
    return dict(zip(table["row"].to_pylist(), np.reshape(flat, (-1, *layout.shape)), strict=True))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pyarrow_reads_the_files_of_an_array_that_grew(
    dtype: str, codec: str, tmp_path: Path
) -> None:
    grown, shards, encoded = grow("parquet", Storage(str(tmp_path)), make_layout(dtype, codec))
    for rows, shard in zip(shards, encoded, strict=True):
        found = read_with_pyarrow(tmp_path / shard.path, grown)
        stored = {n: row for n, row in enumerate(rows) if row is not None}
        assert found.keys() == stored.keys()
        for n, row in stored.items():
            np.testing.assert_array_equal(bits(found[n]), bits(row))
    whole_array = pyarrow.dataset.dataset(tmp_path / "latents" / BUCKET.name, format="parquet")
    assert whole_array.count_rows() == sum(row is not None for rows in shards for row in rows)


# The sample table inside of an object.


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


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shard_objects_are_those_that_zarr_python_writes(
    dtype: str, codec: str, tmp_path: Path
) -> None:
    layout, storage = make_layout(dtype, codec), Storage(str(tmp_path / "ours"))
    shards = [make_rows(layout, 4), make_rows(layout, 3)]
    encoded = write("zarr", storage, layout, shards)
    theirs = Storage(str(tmp_path / "theirs"))
    for path, data in get_format("zarr").metadata([layout]).items():
        theirs.write(path, data)
    array = zarr.open(theirs.url)[f"latents/{BUCKET.name}"]
    array[:4], array[4:] = np.stack(shards[0]), np.stack(shards[1])
    # Theirs have no sample table, which no entry of their index would point to.
    assert [theirs.read(e.path) for e in encoded] == [e.body + e.tail for e in encoded]


@pytest.mark.slow
def test_a_process_that_imports_zarr_alone_reads_bfloat16(tmp_path: Path) -> None:
    layout, storage = make_layout(), Storage(str(tmp_path))
    rows = make_rows(layout, 4)
    write("zarr", storage, layout, [rows])
    code = (
        "import sys, zarr\n"
        f"sample = zarr.open({str(tmp_path)!r})['latents/{BUCKET.name}'][2]\n"
        "assert 'torch' not in sys.modules\n"
        "print(sample.dtype, sample.tobytes().hex())"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert rows[2] is not None
    assert result.stdout.split() == ["bfloat16", rows[2].tobytes().hex()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_pyarrow_reads_the_files(dtype: str, tmp_path: Path) -> None:
    layout, storage = make_layout(dtype), Storage(str(tmp_path))
    rows = make_rows(layout, 4, failed=[1])
    (encoded,) = write("parquet", storage, layout, [rows])
    table = pq.read_table(tmp_path / encoded.path)
    assert table["row"].to_pylist() == [0, 2, 3]
    metadata = {k: v.decode() for k, v in table.schema.metadata.items()}
    assert metadata[b"dtype"] == dtype
    shape = json.loads(metadata[b"shape"])
    values = table["latents"].combine_chunks().flatten()
    assert values.type == (pa.binary(2) if dtype == "bfloat16" else pa.from_numpy_dtype(dtype))
    found = np.frombuffer(values.buffers()[1], numpy_dtype(dtype)).reshape(3, *shape)
    expected = np.stack([row for row in rows if row is not None])
    np.testing.assert_array_equal(bits(found), bits(expected))
    assert pq.read_metadata(tmp_path / encoded.path).num_row_groups == 3


def test_a_parquet_footer_is_read_once_a_file_and_again_where_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentcache.format.shards import parquet

    layout, storage = make_layout(), Storage(str(tmp_path))
    shards = [make_rows(layout, 4), make_rows(layout, 3)]
    encoded = write("parquet", storage, layout, shards)
    member = parquet.ParquetFormat(max_footers=1)
    footers: list[str] = []
    original = parquet._read_footer

    def counting(storage: Storage, path: str) -> Any:
        footers.append(path)
        return original(storage, path)

    monkeypatch.setattr(parquet, "_read_footer", counting)
    out = [np.empty(layout.shape, numpy_dtype(layout.dtype))]
    for index in (0, 0, 1, 1, 0):
        member.read(storage, layout, index, [encoded[index].chunks[2]], out)
    assert footers == [encoded[i].path for i in (0, 1, 0)]
    again = member.encode_shard(layout, 0, [shards[0][1], None, shards[0][3], None])
    storage.write(again.path, whole(again))
    member.read(storage, layout, 0, [again.chunks[2]], out)
    assert shards[0][3] is not None
    np.testing.assert_array_equal(bits(out[0]), bits(shards[0][3]))


@pytest.mark.parametrize("damage", ["tail", "magic", "length"])
def test_a_damaged_parquet_footer_is_found(damage: str, tmp_path: Path) -> None:
    from latentcache.format.shards import parquet

    layout, storage = make_layout(), Storage(str(tmp_path))
    (encoded,) = write("parquet", storage, layout, [make_rows(layout, 4)])
    data = bytearray(whole(encoded))
    if damage == "tail":
        del data[-3:]
    else:
        data[-1 if damage == "magic" else -8] ^= 0x55
    storage.write(encoded.path, bytes(data))
    out = [np.empty(layout.shape, numpy_dtype(layout.dtype))]
    with pytest.raises(CorruptionError, match="shard 5x32x48/0, row 0: its footer cannot be read"):
        parquet.ParquetFormat().read(storage, layout, 0, [encoded.chunks[0]], out)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", FORMATS)
def test_many_narrow_integers_come_back(name: str, dtype: str, codec: str, tmp_path: Path) -> None:
    """Parquet holds them as 32 bits each, which is no sign of a page that takes too much memory."""
    layout = replace(make_layout(dtype, codec), shape=(8, 32, 48))
    kind = numpy_dtype(dtype)
    rng = np.random.default_rng(0)
    row = rng.integers(0, np.iinfo(kind).max, layout.shape, kind, endpoint=True)
    storage = Storage(str(tmp_path))
    (shard,) = write(name, storage, layout, [[row]])
    out = np.empty(layout.shape, kind)
    get_format(name).read(storage, layout, 0, shard.chunks, [out])
    np.testing.assert_array_equal(out, row)


# Chunks that go from shard to shard.


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
