"""Files whose packets are not their frames, whose times are odd, and the like: makers by kind."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import av
from av.stream import Disposition
from av.video.frame import PictureType

from tests.tools.bad_videos import encode
from tests.tools.videos import moving_pattern

Make = Callable[[Path], object]
GOP = {"g": "12"}
NO_SCENES = {"sc_threshold": "0"}
B_FRAMES = {"bf": "2", "g": "10"}
INTERLACED = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
#: An access unit delimiter of HEVC: a packet that gives no picture.
DELIMITER = b"\0\0\0\3\x46\x01\x50"


def packets_of(path: Path) -> Iterator[av.Packet]:
    with av.open(str(path)) as read:
        yield from (packet for packet in read.demux(video=0) if packet.size)


def packet(data: bytes, like: av.Packet, pts: int | None, dts: int | None) -> av.Packet:
    """A packet of other bytes and times in the time base of another one."""
    made = av.Packet(data)
    made.pts, made.dts, made.time_base = pts, dts, like.time_base
    made.duration, made.is_keyframe = like.duration, like.is_keyframe
    return made


def mux(
    whole: Path, target: Path, change: Callable[[int, av.Packet], Iterable[av.Packet]],
    container: str | None = None,
) -> Path:  # fmt: skip
    """Write what becomes of each packet of `whole` into a file of another kind."""
    with av.open(str(whole)) as read, av.open(str(target), "w", format=container) as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for index, one in enumerate(p for p in read.demux(video=0) if p.size):
            for made in change(index, one):
                made.stream = stream
                write.mux(made)
    whole.unlink()
    return target


def hidden_vp8(path: Path, container: str | None = None) -> None:
    """VP8 of whose frames every fourth is decoded and not shown, as alternate references are."""
    whole = encode(path.with_name("w.mkv"), "libvpx", GOP, frames=36)

    def change(index: int, one: av.Packet) -> Iterator[av.Packet]:
        data = bytearray(one)
        if index % 4 == 2:
            data[0] &= ~(1 << 4)
        yield packet(bytes(data), one, one.pts, one.dts)

    mux(whole, path, change, container)


def not_coded(path: Path, container: str | None = None) -> None:
    """MPEG-4 with pictures that are not coded after every third one: they repeat it."""
    whole = encode(path.with_name("w.mkv"), "mpeg4", GOP, frames=36)
    number = 0

    def change(index: int, one: av.Packet) -> Iterator[av.Packet]:
        nonlocal number
        step = one.duration or 42
        yield packet(bytes(one), one, number * step, number * step)
        number += 1
        if index % 3 == 2:
            # P picture, no seconds, marker, five bits of time (24 a second), marker, not coded
            bits = "01" + "0" + "1" + "00001" + "1" + "0"
            vop = b"\0\0\1\xb6" + int(bits.ljust(16, "1"), 2).to_bytes(2, "big")
            blank = packet(vop, one, number * step, number * step)
            blank.is_keyframe = False
            yield blank
            number += 1

    mux(whole, path, change, container)


def with_gaps(path: Path, codec: str, options: dict[str, str]) -> None:
    """An AVI whose muxer writes an empty chunk for every frame that was dropped."""
    kept = [i for i in range(60) if i % 7 not in (3, 4)]
    encode(path, codec, options, frames=len(kept), pts=kept)


def with_delimiters(path: Path) -> None:
    """HEVC with a packet without a picture after every fifth one."""
    options = {"x265-params": "log-level=none:bframes=0:keyint=12"}
    whole = encode(path.with_name("w.mp4"), "libx265", options, frames=30)

    def change(index: int, one: av.Packet) -> Iterator[av.Packet]:
        number = 1000 * (index + index // 5)
        yield packet(bytes(one), one, number, number)
        if index % 5 == 4:
            blank = packet(DELIMITER, one, number + 1000, number + 1000)
            blank.is_keyframe = False
            yield blank

    mux(whole, path, change)


def refield(source: Path, path: Path, container: str | None = None, together: bool = False) -> None:
    """Copy field-coded video; together: both fields of a picture in one packet."""
    copy = path.with_name("copy.mp4")
    copy.write_bytes(source.read_bytes())
    first: list[av.Packet] = []

    def change(index: int, one: av.Packet) -> Iterator[av.Packet]:
        if not together:
            yield one
        elif index % 2 == 0:
            first[:] = [one]
        else:
            both = packet(bytes(first[0]) + bytes(one), first[0], first[0].pts, first[0].dts)
            both.duration = 2 * (one.duration or 0)
            yield both

    mux(copy, path, change, container)


def joined(path: Path, codec: str, options: dict[str, str], seeds: tuple[int, ...]) -> None:
    """Recordings one after the other, each with times from its own beginning."""
    parts = []
    for seed in seeds:
        part = path.with_name(f"part{seed}{path.suffix}")
        encode(part, codec, options, frames=20 + 3 * seed, seed=seed)
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))


def variable(frames: int) -> list[int]:
    """Times of which some follow the one before at once, and others after up to 40 frames."""
    draw = random.Random(frames)
    steps = [draw.randrange(2, 40) if draw.random() < 0.3 else 1 for _ in range(frames - 1)]
    return [0, *itertools.accumulate(steps)]


def in_decoding_order(path: Path, codec: str = "libx264", container: str | None = None) -> None:
    """Times that follow the order of decoding, of a stream that is shown in another."""
    options = {"bf": "2", "g": "10", **({} if codec == "mpeg4" else NO_SCENES)}
    whole = encode(path.with_name("w.mkv"), codec, options, frames=40)

    def change(index: int, one: av.Packet) -> list[av.Packet]:
        return [packet(bytes(one), one, 40 * index, 40 * index)]

    mux(whole, path, change, container)


def without_composition_times(path: Path) -> None:
    """An MP4 without `ctts`, as some cameras and programs write it."""
    data = encode(path, options={"bf": "2", "g": "10"}, frames=40).read_bytes()
    assert b"ctts" in data
    path.write_bytes(data.replace(b"ctts", b"free").replace(b"edts", b"free"))


def with_cover(path: Path, audio: str) -> None:
    """Sound with a picture of its cover."""
    cover = encode(path.with_name("cover.jpg"), "mjpeg", frames=1, pix_fmt="yuvj420p")
    with av.open(str(path), "w") as out:
        sound = out.add_stream(audio, rate=44100)
        with av.open(str(cover)) as read:
            picture = out.add_stream_from_template(read.streams.video[0])
            picture.disposition = Disposition.attached_pic
            (shot,) = [p for p in read.demux(video=0) if p.size]
            shot.stream = picture
            shot.pts = shot.dts = 0
            out.start_encoding()
            out.mux(shot)
        for start in range(0, 44100, 1152):
            frame = av.AudioFrame(format=sound.format.name, layout="stereo", samples=1152)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.rate, frame.pts = 44100, start
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    cover.unlink()


def long_vui(path: Path) -> None:
    """H.264 whose description of the display is longer than its parameter set: it plays."""
    data = bytearray(encode(path, options=GOP, frames=24).read_bytes())
    at = data.index(b"avcC")
    end = at + 12 + int.from_bytes(data[at + 10 : at + 12])
    data[end - 1] = 0
    path.write_bytes(data)


def without_last_bytes(path: Path) -> None:
    """MS-MPEG-4 whose key frames lack what comes after the picture: it plays."""
    whole = encode(path.with_name("w.mkv"), "msmpeg4", {"g": "5"}, frames=20)
    mux(
        whole,
        path,
        lambda _, one: [packet(bytes(one)[:-2], one, one.pts, one.dts) if one.is_keyframe else one],
    )


def late_b_frames(path: Path, movflags: str) -> None:
    """Fragments with negative composition offsets: FFmpeg shifts all times when it meets the first ones."""
    with av.open(str(path), "w", options={"movflags": movflags}) as out:
        stream = out.add_stream("libx264", rate=24, options={**B_FRAMES, "g": "5"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for number, picture in enumerate(moving_pattern(59, 64, 96)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if 0 < number < 15:
                frame.pict_type = PictureType.P
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
