"""The pieces that a sample is compressed in, one after the other, each followed by its CRC32C.

A sample without pieces is one. A padded sample has only the pieces that hold something of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import google_crc32c
import numcodecs.blosc
import numpy as np

from latentcache.core.dtypes import Array
from latentcache.core.spec import ITEM_BYTES
from latentcache.format.shards.protocol import ArrayLayout

CRC_BYTES = 4
BLOSC_HEADER_BYTES = 16

# As zarr-python sets it. Blosc's own threads would make the bytes depend on their timing, and they
# do not survive a fork; every caller here brings its own threads.
numcodecs.blosc.use_threads = False

#: On real bfloat16 latents, blosc's lz4 takes 0.65 to 0.67 of their size with bits shuffled, 0.69 to 0.72
#: with bytes; zstd 0.57 to 0.60 with bytes, and 0.01 more with bits.
SHUFFLES = {
    "zstd": ("shuffle", numcodecs.blosc.SHUFFLE),
    "lz4": ("bitshuffle", numcodecs.blosc.BITSHUFFLE),
}


def fill_value(layout: ArrayLayout) -> float:
    """Return what an array holds where nothing is stored, and what the last piece is filled up with."""
    return 0 if layout.dtype.startswith("uint") or layout.padded else float("nan")


def bytes_of(array: Array) -> Array:
    """Return the bytes of a contiguous array."""
    return array.view(np.uint8).reshape(-1)


def compress(layout: ArrayLayout, array: Array) -> tuple[int, list[bytes]]:
    """Return the number of the first piece that is stored, and all pieces but those of padding.

    There is at least one, for a sample without any is one that failed.
    """
    if not layout.piece:
        return 0, [_compress(layout, layout.whole(array))]
    num = max(1, -(-len(array) // layout.piece)) if layout.padded else layout.pieces
    start = layout.pieces - num if layout.padded == "left" else 0
    filled = _filled(layout, layout.whole(array))
    parts = np.split(filled, layout.pieces, axis=layout.piece_axis)
    return start, [_compress(layout, part) for part in parts[start : start + num]]


def decompress(layout: ArrayLayout, block: memoryview, out: Array) -> None:
    """Fill an array with a whole sample from its stored pieces. Raises ValueError, RuntimeError."""
    start, found = _numbered(layout, block)
    if not layout.piece:
        _decompress(layout, found[0], bytes_of(out))
        return
    out[: start * layout.piece if layout.padded else 0] = 0
    part = np.empty(layout.piece_shape, out.dtype)
    for number, piece in enumerate(found, start):
        _decompress(layout, piece, bytes_of(part))
        target = out[_along(layout, number)]
        target[:] = part[_along(layout, 0)][tuple(map(slice, target.shape))]
    if layout.padded:
        out[(start + len(found)) * layout.piece :] = 0


def decompress_frames(
    layout: ArrayLayout, block: memoryview, number: int, frames: Sequence[int], out: Array
) -> None:
    """Copy those of some frames that are in piece `number` to their places in `out`.

    Raises ValueError, RuntimeError.
    """
    num = layout.piece_shape[layout.piece_axis]
    part, axis = np.empty(layout.piece_shape, out.dtype), layout.piece_axis
    _decompress(layout, block, bytes_of(part))
    places = [n for n, frame in enumerate(frames) if frame // num == number]
    taken = np.moveaxis(part, axis, 0)[[frames[n] - number * num for n in places]]
    np.moveaxis(out, axis, 0)[places] = taken


def stored(layout: ArrayLayout, block: memoryview) -> tuple[int, list[bytes]]:
    """Return what `compress` gave for a sample. Raises ValueError."""
    start, found = _numbered(layout, block)
    return start, [bytes(piece) for piece in found]


def crc32c(data: bytes) -> int:
    """Return the CRC32C (Castagnoli) of bytes."""
    return int(google_crc32c.value(data))


def _along(layout: ArrayLayout, number: int) -> tuple[slice, ...]:
    """Return where a piece is in a sample."""
    num = layout.piece_shape[layout.piece_axis]
    return (*(slice(None),) * layout.piece_axis, slice(number * num, (number + 1) * num))


def _filled(layout: ArrayLayout, array: Array) -> Array:
    """Return a sample of whole pieces."""
    axis = layout.piece_axis
    missing = layout.pieces * layout.piece_shape[axis] - array.shape[axis]
    if not missing:
        return array
    ends = [(0, missing if n == axis else 0) for n in range(array.ndim)]
    return np.pad(array, ends, constant_values=fill_value(layout))


def _numbered(layout: ArrayLayout, block: memoryview) -> tuple[int, list[memoryview]]:
    """Return the number of the first stored piece, and the pieces. Raises ValueError."""
    found = list(_split(layout, block))
    if not 0 < len(found) <= layout.pieces or (not layout.padded and len(found) < layout.pieces):
        raise ValueError(f"it has {len(found)} pieces")
    return layout.pieces - len(found) if layout.padded == "left" else 0, found


def _compress(layout: ArrayLayout, array: Array) -> bytes:
    # A view as unsigned integers, because blosc takes the width of its shuffle from the items.
    words = np.ascontiguousarray(array).reshape(-1).view(f"<u{ITEM_BYTES[layout.dtype]}")
    if layout.codec == "none":
        return bytes(words.tobytes())
    codec, (_, shuffle) = layout.codec.encode(), SHUFFLES[layout.codec]
    return bytes(numcodecs.blosc.compress(words, codec, layout.level, shuffle))


def _split(layout: ArrayLayout, block: memoryview) -> Iterator[memoryview]:
    """Yield the pieces of a sample's stored bytes: each says its length, or all have the same."""
    if layout.pieces == 1:
        yield block
        return
    start, piece_bytes = 0, int(np.prod(layout.piece_shape)) * ITEM_BYTES[layout.dtype]
    while start < len(block):
        length = piece_bytes
        if layout.codec != "none":
            header = block[start : start + BLOSC_HEADER_BYTES]
            if len(header) < BLOSC_HEADER_BYTES:
                raise ValueError("it ends in the middle of a piece")
            length = struct.unpack_from("<I", header, 12)[0]
        if length < 1 or start + length > len(block):
            raise ValueError("it ends in the middle of a piece")
        yield block[start : start + length]
        start += length + CRC_BYTES


def _decompress(layout: ArrayLayout, block: memoryview, target: Array) -> None:
    if layout.codec == "none":
        if len(block) != len(target):
            raise ValueError(f"{len(block)} bytes are not one sample or piece")
        target[:] = np.frombuffer(block, np.uint8)
        return
    # Blosc believes its header: one that lies would have it read past the block, or write too little.
    num_bytes, _, compressed_bytes = (
        struct.unpack_from("<3I", block, 4) if len(block) > BLOSC_HEADER_BYTES else (0,) * 3
    )
    if (num_bytes, compressed_bytes) != (target.nbytes, len(block)):
        raise ValueError("its header is of another length")
    numcodecs.blosc.decompress(block, target)
