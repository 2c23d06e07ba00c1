"""Videos whose pixels have another shape from a frame on, while their size stays."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av

from tests.tools.odd_videos import packet, packets_of
from tests.tools.videos import moving_pattern

#: Of a size that is 4:3 and 16:9 with pixels of these shapes, as MPEG-2 has them.
SIZE, SHAPES = (96, 128), (Fraction(1), Fraction(4, 3))
#: Frames of each shape.
FRAMES = 12
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "mpeg2video": {"g": "4", "bf": "2"},
    "libx264": {"g": "4", "bf": "2"},
    "libx265": {"x265-params": "log-level=none:bframes=2:keyint=4"},
    "mpeg4": {"g": "4", "bf": "1"},
}


def of_two_shapes(path: Path, codec: str, shapes: Sequence[Fraction] = SHAPES) -> Path:
    """Write a video of `FRAMES` of each shape, of which the stream tells; MP4 declares the first one."""
    with av.open(str(path), "w") as out:
        stream = None
        for number, shape in enumerate(shapes):
            part, first = path.with_name(f"part{number}.ts"), number * FRAMES
            _encode(part, codec, shape, number)
            if stream is None:
                with av.open(str(part)) as read:
                    stream = out.add_stream_from_template(read.streams.video[0])
            packets = list(packets_of(part))
            start, step = min(one.pts or 0 for one in packets), packets[0].duration or 1
            for row, one in enumerate(packets):
                pts = first + 2 + round(((one.pts or 0) - start) / step)
                made = packet(bytes(one), one, pts, first + row)
                made.time_base, made.duration, made.stream = Fraction(1, 25), 1, stream
                out.mux(made)
            part.unlink()
    return path


def _encode(path: Path, codec: str, shape: Fraction, seed: int) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=dict(OPTIONS[codec]))
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.sample_aspect_ratio = shape
        for picture in moving_pattern(FRAMES, *SIZE, seed):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


def without_declared_shape(path: Path) -> Path:
    """Let an MP4 say nothing of its pixels' shape."""
    data = path.read_bytes()
    assert b"pasp" in data
    path.write_bytes(data.replace(b"pasp", b"free"))
    return path


def described_twice(path: Path) -> Path:
    """Give an MP4 of H.264 whose `moov` is its end its sample description once more."""
    data = bytearray(path.read_bytes())
    entry = data.index(b"avc1", data.index(b"stsd")) - 4
    size = struct.unpack_from(">I", data, entry)[0]
    data[entry:entry] = data[entry : entry + size]
    struct.pack_into(">I", data, entry - 4, 2)
    for name in (b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        at = data.index(name) - 4
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + size)
    path.write_bytes(data)
    return path
