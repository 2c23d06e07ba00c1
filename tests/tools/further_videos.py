"""Further variants of each kind of odd video: other codecs, containers, times, edits, shapes.

Makers by name, in one table per kind; a name ends in its container. `EXACT` has all of which each frame
must be FFmpeg's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from tests.tools import odd_videos as odd
from tests.tools.bad_videos import OPEN_GOP, encode
from tests.tools.odd_videos import B_FRAMES, GOP, INTERLACED, mux, packet, packets_of

Make = Callable[[Path], object]
Table = dict[str, Make]
RATE = 24
X265 = {"x265-params": "log-level=none:bframes=3:keyint=12"}
X265_OPEN = {
    "x265-params": "log-level=none:open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=3"
}
ALT_REF = {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "30"}
SVT = {"preset": "10", "g": "30", "svtav1-params": "lp=1"}
VARIABLE = [0, 1, 2, 10, 11, 30, 31, 32, 90, 91, 92, 93, 200, 201, 202, 203, 204, 205, 206, 300]
#: Where 33 bits of 90 kHz end.
WRAP_S = 2**33 / 90000


def each(suffixes: str, name: str, make: Make) -> Table:
    """One maker for several containers."""
    return {f"{name}.{suffix}": make for suffix in suffixes.split()}


def made(codec: str, options: Mapping[str, str] | None = None, **kwargs: Any) -> Make:
    return lambda path: encode(path, codec, options, **kwargs)


def filtered(source: Path, path: Path, name: str) -> None:
    """Copy a video through a bit stream filter."""
    with av.open(str(source)) as read, av.open(str(path), "w") as write:
        given = read.streams.video[0]
        stream = write.add_stream_from_template(given)
        bits = BitStreamFilterContext(name, given, stream)
        for one in [*(p for p in read.demux(given) if p.size), None]:
            for changed in bits.filter(one):
                changed.stream = stream
                write.mux(changed)
    source.unlink()


def split(path: Path) -> None:
    """VP9 whose hidden frames are packets of their own."""
    whole = encode(path.with_name("w.webm"), "libvpx-vp9", ALT_REF, frames=40)
    filtered(whole, path, "vp9_superframe_split")


def packed(path: Path) -> None:
    """MPEG-4 as DivX packs it: a B picture behind the one that it needs, then one that is not coded."""
    whole = encode(path.with_name("w.mkv"), "mpeg4", {"bf": "1", "g": "12"}, frames=36)
    blank = b"\0\0\1\xb6" + int("01010000110".ljust(16, "1"), 2).to_bytes(2, "big")
    given = list(packets_of(whole))
    parts: list[tuple[bytes, bool]] = []
    while given:
        one = given.pop(0)
        if given and (given[0].pts or 0) < (one.pts or 0):
            parts += [(bytes(one) + bytes(given.pop(0)), one.is_keyframe), (blank, False)]
        else:
            parts.append((bytes(one), one.is_keyframe))

    def change(index: int, one: av.Packet) -> Iterator[av.Packet]:
        for number, (data, is_key) in enumerate(parts if index == 0 else ()):
            changed = packet(data, one, 42 * number, 42 * number)
            changed.is_keyframe = is_key
            yield changed

    mux(whole, path, change)


def from_second_key(codec: str, options: Mapping[str, str], suffix: str = "mkv") -> Make:
    """A recording that starts at a key frame behind which pictures refer to what is not there."""

    def make(path: Path) -> None:
        num_keys = 0

        def change(_: int, one: av.Packet) -> list[av.Packet]:
            nonlocal num_keys
            num_keys += one.is_keyframe
            return [one] if num_keys > 1 else []

        mux(encode(path.with_name(f"w.{suffix}"), codec, options, frames=40), path, change)

    return make


def in_decoding_order(codec: str, options: Mapping[str, str]) -> Make:
    def make(path: Path) -> None:
        whole = encode(path.with_name("w.mkv"), codec, options, frames=40)
        mux(whole, path, lambda i, one: [packet(bytes(one), one, 40 * i, 40 * i)])

    return make


def with_edits(path: Path, edits: Sequence[tuple[int, int | None]]) -> None:
    """Give an MP4 whose `moov` is its end another edit list: (frames, first frame; None shows nothing)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") - 4
    (size,) = struct.unpack_from(">I", data, at)
    (first,) = struct.unpack_from(">i", data, at + 20)
    media, movie = (
        struct.unpack_from(">I", data, data.index(n) + 16)[0] for n in (b"mdhd", b"mvhd")
    )
    body = struct.pack(">II", 0, len(edits))
    for frames, start in edits:
        begin = -1 if start is None else first + round(start * media / RATE)
        body += struct.pack(">Iii", round(frames * movie / RATE), begin, 1 << 16)
    grown = struct.pack(">I4s", 8 + len(body), b"elst") + body
    data[at : at + size] = grown
    _grow(data, [data.index(n) - 4 for n in (b"edts", b"trak", b"moov")], len(grown) - size)
    path.write_bytes(data)


def _grow(data: bytearray, starts: Sequence[int], count: int) -> None:
    for start in starts:
        struct.pack_into(">I", data, start, struct.unpack_from(">I", data, start)[0] + count)


def with_aperture(path: Path, width: int, height: int, x: int = 0, y: int = 0) -> None:
    """Give an MP4 of H.264 whose `moov` is its end a clean aperture, its centre moved by x and y."""
    data = bytearray(path.read_bytes())
    entry = data.index(b"avc1", data.index(b"stsd")) - 4
    end = entry + struct.unpack_from(">I", data, entry)[0]
    data[end:end] = struct.pack(">I4s8i", 40, b"clap", width, 1, height, 1, x, 1, y, 1)
    names = (b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov")
    _grow(data, [entry, *(data.index(name) - 4 for name in names)], 40)
    path.write_bytes(data)


def with_pixel_crop(path: Path, top: int, bottom: int, left: int, right: int) -> None:
    """Give a Matroska file a crop, in place of bytes that its writer left free before the tracks."""
    data = bytearray(path.read_bytes())
    sides = {0x54BB: top, 0x54AA: bottom, 0x54CC: left, 0x54DD: right}
    crop = b"".join(struct.pack(">HBB", k, 0x81, value) for k, value in sides.items())
    segment = _child(data, 0, len(data), b"\x18\x53\x80\x67")
    tracks = _child(data, *segment, b"\x16\x54\xae\x6b")
    track = _child(data, *tracks, b"\xae")
    video = _child(data, *track, b"\xe0")
    data[video[1] : video[1]] = crop
    for start, _ in (video, track, tracks):
        _resize_element(data, start, len(crop))
    free = _child(data, *segment, b"\xec")[0]
    _resize_element(data, free, -len(crop))
    del data[free : free + len(crop)]
    path.write_bytes(data)


def _child(data: bytearray, at: int, end: int, wanted: bytes) -> tuple[int, int]:
    """Return (start, end) of the body of an EBML element between two offsets."""
    while at < end:
        width = 9 - data[at].bit_length()
        length = 9 - data[at + width].bit_length()
        body = at + width + length
        size = int.from_bytes(data[at + width : body]) - (1 << 7 * length)
        if data[at : at + width] == wanted:
            return body, body + size
        at = body + size
    raise AssertionError(f"no element {wanted.hex()}")


def _resize_element(data: bytearray, body: int, count: int) -> None:
    """Change the size that stands before an element's body: it may have up to eight bytes."""
    width = next(n for n in range(1, 9) if data[body - n].bit_length() == 9 - n)
    size = int.from_bytes(data[body - width : body]) + count
    data[body - width : body] = size.to_bytes(width, "big")


def edited(edits: Sequence[tuple[int, int | None]], options: Mapping[str, str]) -> Make:
    return lambda path: with_edits(encode(path, options=options, frames=48), edits)


def with_palette(codec: str) -> Make:
    """Pictures of 256 colours, which the container or the packets say."""

    def make(path: Path) -> None:
        step = np.arange(256)
        colours = np.stack([step * 0 + 255, step, 255 - step, step * 3 % 256], 1).astype(np.uint8)
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=RATE)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "pal8"
            for number in range(10):
                picture = (np.arange(64 * 96).reshape(64, 96) // 7 + 11 * number) % 200
                given = (picture.astype(np.uint8), np.roll(colours, number, axis=0))
                frame = av.VideoFrame.from_ndarray(given, format="pal8")
                frame.pts = number
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))

    return make


def turned(degrees: int, codec: str = "libx264", options: Any = None, **kwargs: Any) -> Make:
    """Pictures that are shown turned; in Matroska by a projection."""

    def make(path: Path) -> None:
        whole = encode(path.with_name("w.mkv"), codec, options or B_FRAMES, frames=16, **kwargs)
        with av.open(str(whole)) as read, av.open(str(path), "w") as write:
            stream = write.add_stream_from_template(read.streams.video[0])
            stream.set_display_rotation(degrees)
            for one in read.demux(video=0):
                if one.size:
                    one.stream = stream
                    write.mux(one)
        whole.unlink()

    return make


def of_two_sizes(
    codec: str, options: Mapping[str, str], suffix: str, pix_fmt: str = "yuv420p"
) -> Make:
    """A size that changes in the middle."""

    def make(path: Path) -> None:
        sizes = {path.with_name(f"{n}.{suffix}"): s for n, s in enumerate([(64, 96), (96, 128)])}
        parts = [
            encode(part, codec, options, size=size, frames=8, pix_fmt=pix_fmt)
            for part, size in sizes.items()
        ]
        with av.open(str(parts[0])) as first, av.open(str(path), "w") as out:
            stream = out.add_stream_from_template(first.streams.video[0])
            data = [p for part in parts for p in packets_of(part)]
            for number, one in enumerate(data):
                again = packet(bytes(one), one, number, number)
                again.time_base, again.duration, again.stream = Fraction(1, RATE), 1, stream
                out.mux(again)
        for part in parts:
            part.unlink()

    return make


HIDDEN: Table = {
    **each("webm mkv ivf avi nut", "vp8", made("libvpx", ALT_REF, frames=40)),
    **each("webm mkv ivf mp4", "vp9", made("libvpx-vp9", ALT_REF, frames=40)),
    **each("webm mkv mp4", "vp9_split", split),
    **each("mkv mp4 webm ivf obu", "av1", made("libsvtav1", SVT, frames=40)),
    **each("avi mkv nut", "packed", packed),
}
MIDDLE: Table = {
    **each("mkv mp4 mov ts", "hevc_cra", from_second_key("libx265", X265_OPEN)),
    **each("mkv mp4 mov", "h264_recovery", from_second_key("libx264", OPEN_GOP)),
    **each("mkv mp4 avi ts mpg mxf", "mpeg2", from_second_key("mpeg2video", B_FRAMES, "ts")),
}
JOINED: Table = {
    **each("ts m2ts", "mpeg2", lambda p: odd.joined(p, "mpeg2video", B_FRAMES, (0, 1))),
    **each("ts m2ts", "h264", lambda p: odd.joined(p, "libx264", OPEN_GOP, (1, 0, 2))),
    **each("ts m2ts", "wrap", made("libx264", GOP, frames=60,
                                   container={"output_ts_offset": str(WRAP_S - 1.3)})),
}  # fmt: skip
ORDER: Table = {
    **each("mkv mp4 mov", "hevc", in_decoding_order("libx265", X265)),
    **each("mkv mp4 mov ts", "mpeg2", in_decoding_order("mpeg2video", B_FRAMES)),
    **each("mov ts nut", "h264", lambda p: odd.in_decoding_order(p)),
}
_EDITS: dict[str, list[tuple[int, int | None]]] = {
    "late": [(12, None), (48, 0)],
    "cut": [(20, 13)],
    "end": [(20, 40)],
    "two": [(10, 0), (10, 30)],
    "repeated": [(12, 0), (12, 0)],
    "back": [(10, 30), (10, 0)],
    "gap": [(10, 0), (10, None), (10, 24)],
    "long": [(100, 0)],
}
EDITED: Table = {
    **{f"edit_{name}.mp4": edited(e, {"bf": "0", "g": "10"}) for name, e in _EDITS.items()},
    **{f"edit_{name}.mov": edited(e, B_FRAMES) for name, e in _EDITS.items()},
}
TIMES: Table = {
    **each("mp4 mov mkv flv avi nut", "vfr", made("libx264", GOP, frames=20, pts=VARIABLE)),
    **each("webm", "vfr", made("libvpx-vp9", GOP, frames=20, pts=VARIABLE)),
    **each("wmv", "vfr", made("wmv2", GOP, frames=20, pts=VARIABLE)),
    **{
        f"negative_{b}.{suffix}": made(
            "libx264", {"bf": b, "g": "10"}, frames=30, pts=list(range(-7, 23)),
            container={"avoid_negative_ts": "disabled"},
        )
        for b in "02" for suffix in ("mp4", "mov", "ts", "avi")
    },
    **{
        f"{name}.mp4": made("libx264", B_FRAMES, frames=40, container=options)
        for name, options in {
            "negative_offsets": {"movflags": "negative_cts_offsets"},
            "no_edits": {"use_editlist": "0"},
            "fragments": {"movflags": "frag_keyframe+empty_moov"},
            "fragment_each": {"movflags": "frag_every_frame+empty_moov"},
            "dash": {"movflags": "dash"},
            **{
                f"within_groups_{n}": {"movflags": f"dash+{flags}", "frag_duration": "200000"}
                for n, flags in enumerate(
                    ("delay_moov+frag_keyframe", "empty_moov", "delay_moov+separate_moof")
                )
            },
            "hybrid": {"movflags": "frag_keyframe"},
            "far": {"output_ts_offset": "500000"},
        }.items()
    },
    "late_b_frames.mp4": lambda p: odd.late_b_frames(p, "cmaf+global_sidx"),
    "late_b_frames.mov": lambda p: odd.late_b_frames(p, "frag_keyframe+negative_cts_offsets"),
    "live.mkv": made("libx264", B_FRAMES, frames=40, container={"live": "1"}),
    "live.webm": made("libvpx", GOP, frames=40, container={"live": "1"}),
}  # fmt: skip
TURNED: Table = {
    **{
        f"turned_{degrees}.{suffix}": turned(degrees)
        for degrees in (90, 180, 270, 45) for suffix in ("mp4", "mov", "mkv")
    },
    **each("mp4 mkv", "turned_hevc", turned(90, "libx265", X265)),
    **each("mp4 mkv", "turned_10bit", turned(90, "libx265", X265, pix_fmt="yuv420p10le")),
    **each("mp4 mkv", "turned_odd", turned(90, pix_fmt="yuv444p", size=(63, 95))),
    **each("mp4 mkv", "turned_interlaced", turned(90, options={**INTERLACED, "bf": "0"})),
    **each("mp4 mkv", "turned_square", turned(90, size=(64, 64))),
}  # fmt: skip
_FIELDS = {"flags": "+ildct+ilme", "g": "6"}
INTERLACING: Table = {
    **each("mkv mp4 mov ts mpg avi mxf", "mpeg2", made("mpeg2video", {**_FIELDS, "bf": "2"})),
    **each("mkv mp4 mov avi ts", "mpeg4", made("mpeg4", {**_FIELDS, "bf": "1"})),
    **each(
        "mkv mp4 mov ts avi", "bottom_first", made("libx264", {**_FIELDS, "x264-params": "bff=1"})
    ),
    **each("mkv mp4 ts", "422", made("libx264", INTERLACED, pix_fmt="yuv422p")),
    **each("mkv mp4 ts", "flag_only", made("libx264", {"x264-params": "fake-interlaced=1"})),
    "prores.mov": made("prores_ks", {"flags": "+ildct"}, pix_fmt="yuv422p10le"),
    "dv.mov": made("dvvideo", frames=4, size=(576, 720)),
}
_FORMATS: dict[tuple[str, str], str] = {
    ("ffv1", "mkv"): "gray gray10le gray16le yuv410p yuv411p yuv440p yuv422p10le yuv444p12le yuva420p "
    "yuva444p16le bgr0 bgra gbrp10le ya8 rgb48le yuv420p9le",
    ("png", "mov"): "rgb24 rgba gray ya8 monob rgb48be rgba64be gray16be",
    ("qtrle", "mov"): "rgb24 argb gray rgb555be",
    ("rawvideo", "mov"): "gray bgr8 rgb24 uyvy422 yuyv422 argb rgb555be monob",
    ("rawvideo", "avi"): "gray bgr24 rgb555le nv12 uyvy422 monow",
    ("prores_ks", "mov"): "yuv422p10le yuva444p10le",
    ("libvpx-vp9", "webm"): "yuva420p yuv444p yuv440p gbrp",
    ("libx264", "mp4"): "gray yuv422p10le yuv444p yuvj420p nv12 yuv420p10le gray10le yuvj444p",
    ("libx265", "mp4"): "gray gray10le yuv444p12le yuv420p12le gbrp yuv422p yuvj420p",
    ("mjpeg", "avi"): "yuvj420p yuvj444p yuvj422p",
    ("gif", "gif"): "rgb8 bgr8 gray",
    ("utvideo", "avi"): "gbrp gbrap yuv420p",
    ("cfhd", "mov"): "yuv422p10le gbrap12le",
    ("libsvtav1", "mkv"): "yuv420p10le",
}  # fmt: skip
_OPTIONS = {"libx265": X265, "libsvtav1": SVT}
PIXELS: Table = {
    **{
        f"{codec}_{pix_fmt}.{suffix}": made(
            codec, _OPTIONS.get(codec, {"strict": "-2"}), frames=10, pix_fmt=pix_fmt
        )
        for (codec, suffix), formats in _FORMATS.items() for pix_fmt in formats.split()
    },
    **{
        f"palette_{codec}.{suffix}": with_palette(codec)
        for codec, suffixes in {
            "msrle": "avi mov", "smc": "mov", "png": "avi mov", "zmbv": "avi",
            "rawvideo": "avi mov nut", "gif": "gif", "bmp": "mov", "targa": "avi mov", "tiff": "mov",
        }.items() for suffix in suffixes.split()
    },
}  # fmt: skip
_COLOURS = {
    "709": "colormatrix=bt709:colorprim=bt709:transfer=bt709",
    "2020": "colormatrix=bt2020nc:transfer=smpte2084:colorprim=bt2020",
    "fcc": "colormatrix=fcc",
    "240": "colormatrix=smpte240m",
    "full": "fullrange=on:colormatrix=bt709",
    "siting": "chromaloc=2",
    "hlg": "transfer=arib-std-b67:colormatrix=bt2020nc",
}
COLOURS: Table = {
    **{
        f"colours_{name}.{suffix}": made("libx264", {"x264-params": params})
        for name, params in _COLOURS.items() for suffix in ("mp4", "mkv")
    },
    "vp9_full.mp4": made("libvpx-vp9", {"color_range": "2", "colorspace": "bt709"}),
    "hevc_full.mp4": made("libx265", {"x265-params": "log-level=none:range=full:colormatrix=bt709"}),
}  # fmt: skip
SHAPES: Table = {
    **{
        f"{codec}_{height}x{width}.mkv": made(codec, options, frames=4, size=(height, width))
        for codec, options in {"libx264": {}, "libx265": X265, "libvpx": {}, "libvpx-vp9": {}}.items()
        for height, width in ((66, 98), (70, 102), (34, 50), (18, 34), (50, 126), (134, 240))
    },
    **each("mkv mp4 avi", "sizes_h264", of_two_sizes("libx264", {"bf": "0", "g": "4"}, "ts")),
    **each("mkv mp4 avi", "sizes_mpeg2", of_two_sizes("mpeg2video", {"bf": "0", "g": "4"}, "ts")),
    **each("mkv mp4", "sizes_vp9", of_two_sizes("libvpx-vp9", {"g": "4"}, "webm")),
    **each("mkv avi", "sizes_mjpeg", of_two_sizes("mjpeg", {}, "mkv", "yuvj420p")),
    **each("mkv mp4", "sizes_hevc",
           of_two_sizes("libx265", {"x265-params": "log-level=none:bframes=0:keyint=4"}, "ts")),
    **each("mp4 mkv ts", "crop_h264", lambda p: filtered(
        encode(p.with_name("w.mp4")), p, "h264_metadata=crop_left=6:crop_top=8:crop_right=2")),
    **each("mp4 mkv", "crop_hevc", lambda p: filtered(
        encode(p.with_name("w.mp4"), "libx265", X265), p, "hevc_metadata=crop_left=18:crop_top=8")),
}  # fmt: skip
EXACT: Table = {
    f"{table}_{name}": make
    for table, makers in {
        "hidden": HIDDEN, "middle": MIDDLE, "joined": JOINED, "order": ORDER, "edited": EDITED,
        "times": TIMES, "turned": TURNED, "interlacing": INTERLACING, "pixels": PIXELS,
        "colours": COLOURS, "shapes": SHAPES,
    }.items()
    for name, make in makers.items()
}  # fmt: skip
