"""Display matrices of MP4, of a track and of the whole movie: both decoders show the same pixels."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentcache.decoders.frames import Frame
from latentcache.decoders.source import Source
from tests.tools.bad_videos import encode
from tests.tools.videos import read_with_pyav

Matrix = tuple[float, float, float, float]
SAME, MIRRORED, FLIPPED = (1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1)
LEFT, HALF, TRANSPOSED = (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, 1, 0)


def by_degrees(degrees: float) -> Matrix:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return c, s, -s, c


def set_matrix(path: Path, box: bytes, matrix: Matrix) -> None:
    data = bytearray(path.read_bytes())
    offset = {b"mvhd": 36, b"tkhd": 40}[box]
    at = data.rfind(box) + 4 + offset + 12 * (data[data.rfind(box) + 4] == 1)
    a, b, c, d = (round(0x10000 * value) for value in matrix)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)


def lengthen_times(path: Path) -> None:
    """Make `mvhd` one of version 1, with times of 8 bytes; the file ends with its `moov`."""
    data = bytearray(path.read_bytes())
    moov, mvhd = data.rfind(b"moov") - 4, data.rfind(b"mvhd") - 4
    body = bytes(data[mvhd + 12 : mvhd + struct.unpack_from(">I", data, mvhd)[0]])
    created, modified, scale, duration = struct.unpack(">4I", body[:16])
    times = struct.pack(">QQIQ", created, modified, scale, duration)
    data[mvhd:] = (
        struct.pack(">I4sI", 8 + 4 + len(times) + len(body) - 16, b"mvhd", 1 << 24)
        + times + body[16:] + data[mvhd + 12 + len(body) :]
    )  # fmt: skip
    struct.pack_into(">I", data, moov, struct.unpack_from(">I", data, moov)[0] + 12)
    path.write_bytes(data)


def read(path: Path, without_decord: bool) -> tuple[str, Frame]:
    with contextlib.closing(Source(str(path), "video")) as source:
        reader = source.reader(without_decord)
        return reader.name, np.stack(list(reader.frames(np.arange(4))))


@pytest.mark.parametrize(
    ("track", "movie", "decoder", "shown"),
    [
        (SAME, HALF, "decord", lambda p: p[:, ::-1, ::-1]),
        (SAME, LEFT, "decord", lambda p: np.rot90(p, axes=(1, 2))),
        (LEFT, LEFT, "decord", lambda p: p[:, ::-1, ::-1]),
        (SAME, MIRRORED, "pyav", lambda p: p[:, :, ::-1]),
        (SAME, FLIPPED, "pyav", lambda p: p[:, ::-1]),
        (SAME, TRANSPOSED, "pyav", lambda p: p.swapaxes(1, 2)),
        (MIRRORED, MIRRORED, "pyav", lambda p: p),
        (MIRRORED, FLIPPED, "pyav", lambda p: p[:, ::-1, ::-1]),
        (by_degrees(50), SAME, "pyav", None),
        (SAME, by_degrees(50), "pyav", None),
        (by_degrees(20), by_degrees(30), "pyav", None),
        (by_degrees(10), SAME, "pyav", None),
    ],
)
@pytest.mark.parametrize("is_long", [False, True], ids=["version 0", "version 1"])
def test_both_decoders_turn_and_mirror_alike(
    tmp_path: Path, track: Matrix, movie: Matrix, decoder: str,
    shown: Callable[[Frame], Frame] | None, is_long: bool,
) -> None:  # fmt: skip
    path = encode(tmp_path / "v.mp4", options={"bf": "0"}, frames=4)
    plain = read_with_pyav(path)
    if is_long:
        lengthen_times(path)
    set_matrix(path, b"tkhd", track)
    set_matrix(path, b"mvhd", movie)
    name, pixels = read(path, without_decord=False)
    np.testing.assert_array_equal(pixels, read(path, without_decord=True)[1])
    if shown is not None:
        np.testing.assert_array_equal(pixels, shown(plain))
    assert name == decoder
