"""What every shard format promises: the bits that went in come out, or an error names the clip."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import ChunkRef
from latentcache.errors import ConfigError, CorruptionError
from latentcache.format import checksum
from latentcache.format.shards import get_format, ranges
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.storage.folder import Storage
from tests.tools.shards import (
    BUCKET,
    CASES,
    CODECS,
    DTYPES,
    FORMATS,
    bits,
    check,
    grow,
    make_layout,
    make_rows,
    read,
    whole,
    write,
)
from tests.tools.synthetic import random_sample

#: -0.0, infinities, the smallest and largest subnormals, quiet and signalling NaN with payloads.
HARD_BITS = {
    "bfloat16": [0x8000, 0x7F80, 0xFF80, 0x0001, 0x807F, 0x7FC0, 0xFFC1, 0x7F81, 0x7FFF],
    "float16": [0x8000, 0x7C00, 0xFC00, 0x0001, 0x83FF, 0x7E00, 0xFE01, 0x7C01, 0x7FFF],
    "float32": [1 << 31, 0x7F800000, 0xFF800000, 1, 0x807FFFFF, 0x7FC00000, 0xFFC00001, 0x7F800001],
    "uint16": [0, 1, 0x7FFF, 0x8000, 0xFFFF],
}


@pytest.fixture(params=[None, 32], ids=["whole", "pieces"])
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local files are read in pieces: in one per chunk of these small samples, and in several."""
    if request.param:
        monkeypatch.setattr(ranges, "PIECE_BYTES", request.param)


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
