"""Samples that are compressed in pieces of some latent frames: what is read of them, and what is found."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.errors import CorruptionError
from latentcache.format.shards import get_format, pieces, ranges, zarr_index
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.storage.disk_cache import DiskCache
from latentcache.storage.folder import Storage
from tests.tools.shards import (
    BUCKET,
    CODECS,
    DTYPES,
    READERS,
    bits,
    check,
    check_array,
    make_layout,
    make_rows,
    open_array,
    whole,
    write,
)


def cut(layout: ArrayLayout, piece: int, num_frames: int = 5) -> ArrayLayout:
    *first, _, height, width = layout.shape
    shape = (*first, num_frames, height, width)
    return replace(layout, shape=shape, piece=piece, piece_axis=len(first))


def read_frames(
    storage: Storage, layout: ArrayLayout, chunks: Sequence[Any], picks: Any, **options: Any
) -> list[Array]:
    *first, num, height, width = layout.shape
    out = [
        np.full(
            (*first, num if frames is None else len(frames), height, width),
            7,
            numpy_dtype(layout.dtype),
        )
        for frames in picks
    ]
    get_format("zarr").read_frames(storage, layout, 0, chunks, picks, out, **options)
    return out


def index_of(layout: ArrayLayout, data: bytes) -> Array:
    """Return (offset, length) of the pieces of each row."""
    entries = np.frombuffer(data[-zarr_index.index_bytes(layout) : -pieces.CRC_BYTES], "<u8")
    return entries.reshape(layout.shard_rows, layout.pieces, 2)


def pieces_of(layout: ArrayLayout, data: bytes) -> list[bytes]:
    places = index_of(layout, data).reshape(-1, 2).tolist()
    return [data[start : start + length] for start, length in places]


@pytest.fixture
def memory() -> Storage:
    return Storage(f"memory://{uuid.uuid4().hex}")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_samples_come_back_and_their_pieces_are_those_that_zarr_python_writes(
    dtype: str, codec: str, tmp_path: Path
) -> None:
    layout, ours = cut(make_layout(dtype, codec), 2), Storage(str(tmp_path / "ours"))
    shards = [make_rows(layout, 4), make_rows(layout, 3)]
    encoded = write("zarr", ours, layout, shards)
    check("zarr", ours, layout, shards, encoded)
    theirs = Storage(str(tmp_path / "theirs"))
    for path, data in get_format("zarr").metadata([layout]).items():
        theirs.write(path, data)
    array = zarr.open(theirs.url)[f"latents/{BUCKET.name}"]
    assert array.chunks == (1, *layout.piece_shape)
    array[:4], array[4:] = np.stack(shards[0]), np.stack(shards[1])
    for shard in encoded:  # theirs are in another order
        found = [pieces_of(layout, storage.read(shard.path)) for storage in (theirs, ours)]
        assert found[0] == found[1]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "uint16"])
def test_zarr_python_and_tensorstore_read_the_arrays(
    dtype: str, reader: str, tmp_path: Path
) -> None:
    layout, storage = cut(make_layout(dtype), 2), Storage(str(tmp_path))
    shards = [make_rows(layout, 4, failed=[1]), make_rows(layout, 3)]
    write("zarr", storage, layout, shards)
    check_array(open_array(reader, tmp_path), [*itertools.chain(*shards)])


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    codec=st.sampled_from(CODECS),
    num_frames=st.integers(2, 9),
    piece=st.integers(1, 8),
    data=st.data(),
)
def test_any_frames_are_those_of_the_whole(
    dtype: str, codec: str, num_frames: int, piece: int, data: Any
) -> None:
    layout = cut(make_layout(dtype, codec), min(piece, num_frames - 1), num_frames)
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    rows = make_rows(layout, 4, failed=[1])
    (encoded,) = write("zarr", storage, layout, [rows])
    frames = st.lists(st.integers(0, num_frames - 1), min_size=1, max_size=12)
    wanted = data.draw(st.lists(st.sampled_from([0, 2, 3]), min_size=1, max_size=5))
    picks = [data.draw(st.none() | frames) for _ in wanted]
    found = read_frames(storage, layout, [encoded.chunks[n] for n in wanted], picks)
    for row, pick, out in zip(wanted, picks, found, strict=True):
        expected = rows[row]
        assert expected is not None
        expected = expected if pick is None else expected.take(pick, axis=-3)
        np.testing.assert_array_equal(bits(out), bits(expected))


@pytest.mark.parametrize("name", ["zarr", "parquet"])
def test_frames_of_samples_without_pieces_are_those_of_the_whole(
    name: str, memory: Storage
) -> None:
    layout = make_layout()
    rows = make_rows(layout, 2)
    (encoded,) = write(name, memory, layout, [rows])
    out = [np.empty((3, n, 4, 6), numpy_dtype(layout.dtype)) for n in (1, 2)]
    get_format(name).read_frames(memory, layout, 0, encoded.chunks, [[1], None], out)
    np.testing.assert_array_equal(bits(out[0]), bits(rows[0][:, 1:2]))
    np.testing.assert_array_equal(bits(out[1]), bits(rows[1]))


@pytest.mark.parametrize("codec", CODECS)
def test_only_the_pieces_with_picked_frames_are_read(
    codec: str, memory: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = cut(make_layout(codec=codec), 4, 361)
    (encoded,) = write("zarr", memory, layout, [make_rows(layout, 4)])
    requested: list[tuple[int, int]] = []
    original = Storage.read_ranges

    def counting(self: Storage, path: str, wanted: Any) -> list[bytes]:
        requested.extend(wanted)
        return original(self, path, wanted)

    monkeypatch.setattr(Storage, "read_ranges", counting)
    monkeypatch.setattr(ranges, "MAX_GAP_BYTES", 0)
    frames = [*range(100, 110), *range(300, 310)]
    chunk = encoded.chunks[2]
    read_frames(memory, layout, [chunk], [frames])
    assert requested.pop(0)[1] == zarr_index.index_bytes(layout)  # once
    table = index_of(layout, encoded.tail)[2]
    pieces = sorted({frame // 4 for frame in frames})
    assert sum(length for _, length in requested) == int(table[pieces, 1].sum())
    assert len(requested) == 2  # pieces that follow one another are one request
    requested.clear()
    read_frames(memory, layout, [chunk], [[0]])
    assert requested == [(chunk.offset, int(table[0, 1]))]


@pytest.mark.parametrize("codec", CODECS)
def test_a_flipped_bit_of_a_piece_is_found_where_that_piece_is_read(
    codec: str, tmp_path: Path
) -> None:
    layout, storage = cut(make_layout(codec=codec), 2), Storage(str(tmp_path))
    rows = make_rows(layout, 4)
    (encoded,) = write("zarr", storage, layout, [rows])
    for piece, (offset, length) in enumerate(index_of(layout, encoded.tail)[1].tolist()):
        for place in range(offset, offset + length, 19):
            data = bytearray(whole(encoded))
            data[place] ^= 1 << (place % 8)
            storage.write(encoded.path, bytes(data))
            with pytest.raises(CorruptionError, match="row 1: its bytes fail their CRC32C"):
                read_frames(storage, layout, [encoded.chunks[1]], [[piece * 2]])
            other = (piece + 1) % layout.pieces * 2
            (out,) = read_frames(storage, layout, [encoded.chunks[1]], [[other]])
            np.testing.assert_array_equal(bits(out), bits(rows[1][:, [other]]))


@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_a_damaged_index_is_found(damage: str, memory: Storage) -> None:
    layout = cut(make_layout(), 2)
    (encoded,) = write("zarr", memory, layout, [make_rows(layout, 4)])
    data = bytearray(whole(encoded))
    if damage == "flipped":
        data[-20] ^= 1
    memory.write(encoded.path, bytes(data[:20] if damage == "short" else data))
    if damage == "missing":
        memory.delete(encoded.path)
    expected = {"flipped": "its index fails", "short": "too short", "missing": "is missing"}
    with pytest.raises(CorruptionError, match=expected[damage]):
        read_frames(memory, layout, [encoded.chunks[1]], [[0]])


def test_an_object_in_place_of_another_is_read_by_its_own_index(memory: Storage) -> None:
    layout = cut(make_layout(), 2)
    (encoded,) = write("zarr", memory, layout, [make_rows(layout, 4)])
    read_frames(memory, layout, [encoded.chunks[3]], [[4]])
    rows = make_rows(layout, 3, failed=[0])
    (other,) = write("zarr", memory, layout, [rows])
    (out,) = read_frames(memory, layout, [other.chunks[2]], [[4]])
    np.testing.assert_array_equal(bits(out), bits(rows[2][:, [4]]))
    with pytest.raises(CorruptionError, match="its index says other places"):
        read_frames(memory, layout, [encoded.chunks[3]], [[4]])


def test_a_disk_cache_tells_objects_of_one_path_apart(tmp_path: Path) -> None:
    layout = cut(make_layout(codec="none"), 2)
    caches = [Storage(f"memory://{uuid.uuid4().hex}") for _ in range(2)]
    disk = DiskCache(tmp_path, 1 << 30, "a" * 64)
    for number, storage in enumerate(caches):
        rows = make_rows(layout, 3 + number)
        (encoded,) = write("zarr", storage, layout, [rows])
        for _ in range(2):
            (out,) = read_frames(storage, layout, [encoded.chunks[1]], [[3, 0]], disk=disk)
            np.testing.assert_array_equal(bits(out), bits(rows[1][:, [3, 0]]))
        storage.delete(encoded.path)
        (out,) = read_frames(storage, layout, [encoded.chunks[1]], [[3]], disk=disk)
        np.testing.assert_array_equal(bits(out), bits(rows[1][:, [3]]))


@pytest.mark.parametrize("codec", CODECS)
def test_packed_chunks_are_the_object_that_encoding_gives(codec: str, memory: Storage) -> None:
    layout, member = cut(make_layout(codec=codec), 2), get_format("zarr")
    rows = make_rows(layout, 4, failed=[1])
    (encoded,) = write("zarr", memory, layout, [rows])
    taken = member.take(memory, layout, 0, [encoded.chunks[3], encoded.chunks[0]])
    packed = member.pack(layout, 0, [taken[0], None, taken[1]])
    assert whole(packed) == whole(member.encode_shard(layout, 0, [rows[3], None, rows[0]]))
    assert packed.chunks == member.encode_shard(layout, 0, [rows[3], None, rows[0]]).chunks
    with pytest.raises(ValueError, match="pieces"):
        member.pack(cut(make_layout(codec=codec), 2, 9), 0, [taken[0]])
