"""Bad and odd input, one maker a kind, and what must become of it.

`python -m tests.tools.bad_videos --seed 1 --minutes 5` damages videos of many kinds at random, decodes them
through both decoders in real decoding processes, and counts what comes out.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from latentcache.decoders.frames import Frame
from tests.tools.videos import moving_pattern

FRAMES = 12
SIZE = (64, 96)
#: More pixels a frame than this are refused where these files are read.
MAX_PIXELS = 512 * 512


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A file that `make` writes.

    reasons: of its clips of five frames, or of the one row of a source that has none; None is ok. Where
    it is up to the decoder's version, each clip has one of them. frames: where it can be probed.
    """

    name: str
    make: Callable[[Path], object]
    reasons: tuple[str | None, ...]
    frames: int | None = None
    kind: str = "video"
    is_exact: bool = True

    @property
    def is_good(self) -> bool:
        """Whether every clip is stored."""
        return self.reasons == (None,)


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Frame:
    """One frame, uint8 [H, W, 3]."""
    return moving_pattern(1, *size, seed=seed)[0]


def encode(
    path: Path,
    codec: str = "libx264",
    options: Mapping[str, str] | None = None,
    *,
    frames: int = FRAMES,
    size: tuple[int, int] = SIZE,
    pix_fmt: str = "yuv420p",
    container: Mapping[str, str] | None = None,
    transfer: int | None = None,
    pts: list[int] | None = None,
    seed: int = 0,
) -> Path:
    """Write a pattern that moves behind noise that does not. pts: in 1/24 s."""
    pixels = moving_pattern(frames, *size, seed=seed).astype(np.int16)
    noise = np.random.default_rng(seed).integers(-20, 20, pixels.shape[1:])
    with av.open(str(path), "w", options=dict(container or {})) as out:
        stream = out.add_stream(codec, rate=24, options=dict(options or {}))
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 24)
        for index, values in enumerate((pixels + noise).clip(0, 255).astype(np.uint8)):
            frame = av.VideoFrame.from_ndarray(values, format="rgb24")
            if pts is not None:
                frame.time_base, frame.pts = Fraction(1, 24), pts[index]
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def remux(source: Path, target: Path, change: Callable[[int, av.Packet], av.Packet | None]) -> None:
    """Copy a video's packets, each changed, or left out where `change` returns None."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for index, packet in enumerate(p for p in read.demux(video=0) if p.size):
            if (changed := change(index, packet)) is not None:
                changed.stream = stream
                write.mux(changed)


def renamed(make: Callable[[Path], object], suffix: str) -> Callable[[Path], None]:
    """Make a file of one kind and give it another's name."""

    def make_and_rename(path: Path) -> None:
        inner = path.with_name(path.name + suffix)
        make(inner)
        inner.rename(path)

    return make_and_rename


def cut(make: Callable[[Path], object], tenths: int) -> Callable[[Path], None]:
    """Make a file and keep its first tenths."""

    def make_and_cut(path: Path) -> None:
        make(path)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * tenths // 10])

    return make_and_cut


def patched(find: bytes, offset: int, value: bytes) -> Callable[[Path], None]:
    """Make an MP4 and write `value` at an offset from every `find` in it."""

    def make_and_patch(path: Path) -> None:
        data = bytearray(encode(path).read_bytes())
        at, count = -1, 0
        while (at := data.find(find, at + 1)) >= 0:
            data[at + offset : at + offset + len(value)] = value
            count += 1
        assert count, find
        path.write_bytes(data)

    return make_and_patch


def turned(*matrix: int) -> Callable[[Path], None]:
    """Make an MP4 whose track is shown by a display matrix: a, b, c and d of `tkhd`."""
    return lambda path: turn(encode(path), *matrix)


def turn(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Give the track of an MP4 another display matrix."""
    data = bytearray(path.read_bytes())
    matrix = (a, b, 0, c, d, 0, 0, 0, 0x4000)
    struct.pack_into(">9i", data, data.find(b"tkhd") + 44, *(0x10000 * value for value in matrix))
    path.write_bytes(data)


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        samples = np.zeros((1, 8000), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def write_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def write_gif(path: Path) -> None:
    pictures = [Image.fromarray(picture(seed)) for seed in range(FRAMES)]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=40)


def write_webp(path: Path) -> None:
    pictures = [Image.fromarray(picture(seed)) for seed in range(3)]
    pictures[0].save(path, format="WEBP", save_all=True, append_images=pictures[1:], lossless=True)


def write_bomb(path: Path) -> None:
    Image.new("L", (8000, 8000)).save(path, format="PNG")


def write_palette(path: Path) -> None:
    image = Image.fromarray(picture()).quantize(16)
    image.info["transparency"] = bytes(range(0, 256, 16))
    image.save(path, format="PNG", transparency=bytes(range(0, 256, 16)))


def write_exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture()).save(path, exif=exif)


def write_duplicates(path: Path) -> None:
    """Pairs of frames with one time: the second of each pair is shown for no time at all."""
    whole = encode(path.with_name("whole.mkv"), options={"bf": "0"})

    def pair(index: int, packet: av.Packet) -> av.Packet:
        packet.pts = packet.dts = index // 2 * 80
        return packet

    remux(whole, path, pair)
    whole.unlink()


def write_all_key(path: Path) -> None:
    """Every packet claims to be a key frame, and one of twelve is."""
    whole = encode(path.with_name(f"whole_{path.name}"), CODECS_OF_LIARS[path.stem], {"g": "99"})

    def claim(_: int, packet: av.Packet) -> av.Packet:
        packet.is_keyframe = True
        return packet

    remux(whole, path, claim)
    whole.unlink()


def write_delayed(path: Path) -> None:
    encode(path, pts=[1000 + i for i in range(FRAMES)])


def write_edit_list(path: Path) -> None:
    """An edit list that starts at the sixth frame: the ones before are decoded and not shown."""
    data = bytearray(encode(path, options={"bf": "0"}).read_bytes())
    at = data.find(b"elst")
    duration, time = struct.unpack_from(">Ii", data, at + 12)
    scale = struct.unpack_from(">I", data, data.find(b"mdhd") + 16)[0]
    struct.pack_into(
        ">Ii", data, at + 12, duration * (FRAMES - 5) // FRAMES, time + scale * 5 // 24
    )
    path.write_bytes(data)


def write_without_key_frames(path: Path) -> None:
    """An MP4 without `stss`, which says that every frame is a key frame."""
    data = encode(path, options={"g": "4", "bf": "0"}).read_bytes()
    path.write_bytes(data.replace(b"stss", b"free"))


def write_playlist(path: Path) -> None:
    other = encode(path.with_name("part.ts"))
    other.rename(other.with_name(".part.ts"))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n.part.ts\n#EXT-X-ENDLIST\n")


def text(content: str | bytes) -> Callable[[Path], object]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


def image(mode: str = "RGB", **options: object) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(picture()).convert(mode).save(path, **options)


def array_image(values: np.ndarray) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(values).save(path)


CODECS_OF_LIARS = {"all_key_h264": "libx264", "all_key_mpeg4": "mpeg4"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1:keyint=6:bframes=0"}
FRONT = {"movflags": "faststart"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=6:min-keyint=6:scenecut=0:bframes=2"}
OK = (None,)
SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
HUGE = b"\xff\xff\xff\xff"

#: Every kind of which one file goes into the corpus of a run.
KINDS = [
    # What is no video
    Kind(name="page.mp4", make=text("<html>404</html>"), reasons=("unreadable",)),
    Kind(name="empty.mp4", make=text(""), reasons=("unreadable",)),
    Kind(name="noise.mkv", make=text(bytes(range(256)) * 64), reasons=("unreadable",)),
    Kind(name="drawing.png", make=text(SVG), reasons=("unreadable",), kind="image"),
    Kind(name="playlist.mp4", make=write_playlist, reasons=("unreadable",)),
    Kind(name="sound.mp4", make=write_audio, reasons=("no_video",)),
    Kind(name="gone.mp4", make=lambda p: p.symlink_to("nowhere"), reasons=("missing",)),
    Kind(name="raw.mpg", make=renamed(encode, ".h264"), reasons=("no_timestamps",)),
    # Names that say something else
    Kind(name="is_mp4.mkv", make=renamed(encode, ".mp4"), reasons=OK, frames=FRAMES),
    Kind(name="is_video.jpg", make=renamed(encode, ".mp4"), reasons=("unreadable",), kind="image"),
    Kind(name="is_png.mp4", make=renamed(image(), ".png"), reasons=("too_short",), frames=1),
    Kind(name="is_gif.mp4", make=renamed(write_gif, ".gif"), reasons=OK, frames=FRAMES),
    # Sizes and lengths
    Kind(name="one_frame.mp4", make=lambda p: encode(p, frames=1), reasons=("too_short",), frames=1),
    Kind(name="odd.mkv", make=lambda p: encode(p, size=(63, 95), codec="ffv1", pix_fmt="yuv444p"),
         reasons=OK, frames=FRAMES),
    Kind(name="odd.webm", make=lambda p: encode(p, "libvpx-vp9", size=(63, 95)), reasons=OK,
         frames=FRAMES),
    Kind(name="one_pixel.mkv", make=lambda p: encode(p, size=(1, 1), codec="ffv1", pix_fmt="yuv444p"),
         reasons=OK, frames=FRAMES),
    Kind(name="large.mp4", make=lambda p: encode(p, size=(520, 520), frames=1),
         reasons=("too_large",)),
    # Colours
    Kind(name="ten_bit.mp4", make=lambda p: encode(p, "libx265", {"x265-params": "log-level=none"},
         pix_fmt="yuv420p10le"), reasons=OK, frames=FRAMES),
    Kind(name="pq.mkv", make=lambda p: encode(p, transfer=16), reasons=OK, frames=FRAMES),
    Kind(name="hlg.mkv", make=lambda p: encode(p, transfer=18), reasons=OK, frames=FRAMES),
    # Times
    Kind(name="variable.mkv", make=lambda p: encode(p, pts=[i * i for i in range(FRAMES)]),
         reasons=OK, frames=FRAMES),
    Kind(name="delayed.mkv", make=write_delayed, reasons=OK, frames=FRAMES),
    Kind(name="duplicate_times.mkv", make=write_duplicates, reasons=OK, frames=FRAMES),
    Kind(name="edit_list.mp4", make=write_edit_list, reasons=OK, frames=FRAMES - 5),
    Kind(name="b_frames.avi", make=encode, reasons=OK, frames=FRAMES),
    Kind(name="open_gop.mp4", make=lambda p: encode(p, options=OPEN_GOP), reasons=OK, frames=FRAMES),
    Kind(name="open_gop.ts", make=lambda p: encode(p, options=OPEN_GOP), reasons=OK, frames=FRAMES),
    Kind(name="no_key_frames.mp4", make=write_without_key_frames, reasons=OK, frames=FRAMES),
    Kind(name="all_key_h264.mp4", make=write_all_key, reasons=OK, frames=FRAMES),
    Kind(name="all_key_mpeg4.mp4", make=write_all_key, reasons=OK, frames=FRAMES),
    Kind(name="intra_refresh.mp4", make=lambda p: encode(p, options=INTRA_REFRESH), reasons=OK,
         frames=FRAMES),
    Kind(name="program.mpg", make=lambda p: encode(p, "mpeg2video", {"bf": "2"}), reasons=OK,
         frames=FRAMES),
    Kind(name="av1.mkv", make=lambda p: encode(p, "libsvtav1", {"preset": "12"}), reasons=OK,
         frames=FRAMES),
    # Turned
    Kind(name="turned_90.mp4", make=turned(0, 1, -1, 0), reasons=OK, frames=FRAMES),
    Kind(name="turned_180.mp4", make=turned(-1, 0, 0, -1), reasons=OK, frames=FRAMES),
    Kind(name="turned_270.mp4", make=turned(0, -1, 1, 0), reasons=OK, frames=FRAMES),
    Kind(name="mirrored.mp4", make=turned(-1, 0, 0, 1), reasons=OK, frames=FRAMES),
    Kind(name="mirrored_90.mp4", make=turned(0, 1, 1, 0), reasons=OK, frames=FRAMES),
    # Headers that lie
    Kind(name="many_times.mp4", make=patched(b"stts", 12, HUGE), reasons=OK, frames=FRAMES),
    Kind(name="many_sizes.mp4", make=patched(b"stsz", 12, b"\x7f\xff\xff\xff"),
         reasons=("unreadable", "corrupt"), is_exact=False),
    Kind(name="wide.mp4", make=patched(b"avc1", 28, HUGE), reasons=OK, frames=FRAMES),
    Kind(name="long.mp4", make=patched(b"mdhd", 20, HUGE), reasons=OK, frames=FRAMES),
    Kind(name="no_timescale.mp4", make=patched(b"mdhd", 16, b"\0\0\0\0"),
         reasons=("too_short", "corrupt", None), is_exact=False),
    Kind(name="late.mp4", make=patched(b"stts", 16, HUGE),
         reasons=("too_short", "corrupt", None), is_exact=False),
    # Damage
    Kind(name="cut_front.mp4", make=cut(lambda p: encode(p, frames=48, container=FRONT), 6),
         reasons=(None, "truncated"), frames=48),
    Kind(name="cut_back.mp4", make=cut(encode, 6), reasons=("unreadable",)),
    Kind(name="cut.mkv", make=cut(lambda p: encode(p, frames=48), 6),
         reasons=(None, "truncated")),
    Kind(name="cut.webm", make=cut(lambda p: encode(p, "libvpx-vp9", frames=48), 6),
         reasons=(None, "truncated")),
    Kind(name="cut.ts", make=cut(lambda p: encode(p, frames=48), 6),
         reasons=(None, "truncated", "corrupt"), is_exact=False),
    # Images
    Kind(name="bomb.png", make=write_bomb, reasons=("too_large",), kind="image"),
    Kind(name="cmyk.jpg", make=image("CMYK"), reasons=OK, frames=1, kind="image"),
    Kind(name="grey16.png", make=array_image(picture()[..., 0].astype(np.uint16) * 257), reasons=OK,
         frames=1, kind="image"),
    Kind(name="float.tiff", make=array_image(picture()[..., 0].astype(np.float32)),
         reasons=("unreadable",), kind="image"),
    Kind(name="palette.png", make=write_palette, reasons=OK, frames=1, kind="image"),
    Kind(name="turned.jpg", make=write_exif, reasons=OK, frames=1, kind="image"),
    Kind(name="cut.jpg", make=cut(image(), 5), reasons=("corrupt",), kind="image"),
    Kind(name="animated.webp", make=write_webp, reasons=OK, frames=1, kind="image"),
    Kind(name="tiny.png", make=array_image(picture(size=(1, 1))), reasons=OK, frames=1, kind="image"),
]  # fmt: skip

#: Names of good videos that a file system, a URL or FFmpeg could take for something else.
NAMES = [
    "with space.mp4", "new\nline.mp4", "💡.mp4", "quote'\".mp4", "100%.mp4", "%03d.mp4", "a::b.mp4",
    "a#b?c.mp4", "[ab].mp4", "é" * 125 + ".mp4", "file:x.mp4", "concat:a|b.mp4", "back\\slash.mp4",
    "-i.mp4", "~.mp4", "%d.gif",
]  # fmt: skip

if __name__ == "__main__":
    from tests.tools.video_fuzz import main

    main()
