"""Pictures as they are shown: pixels that are not square, sizes that change, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentcache.core.records import PictureFacts
from latentcache.decoders.facts import VideoFacts, display_size
from latentcache.decoders.frames import Frame, cover_and_crop, fit_frame
from latentcache.decoders.look import Look
from latentcache.decoders.pool import DecodePool
from latentcache.errors import ClipError
from tests.decoders.test_pool import make_clip, pixels_of
from tests.tools import bad_videos
from tests.tools.bad_videos import encode
from tests.tools.videos import read_with_pyav

SIZE = (64, 96)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(num_processes=1, num_buffers=2, timeout_s=60) as pool:
        yield pool


def with_aspect(path: Path, aspect: Fraction, size: tuple[int, int] = SIZE, **options: Any) -> Path:
    """Write a video whose pixels have this width over height."""
    plain = encode(path.with_name(f"plain{path.suffix}"), size=size, **options)
    with av.open(str(plain)) as read, av.open(str(path), "w") as out:
        given = read.streams.video[0]
        stream = out.add_stream_from_template(given)
        stream.codec_context.sample_aspect_ratio = aspect
        for packet in read.demux(given):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    return path


def fitted(frames: Frame, size: tuple[int, int], aspect: float) -> Frame:
    out = np.empty((len(frames), *size, 3), np.uint8)
    for frame, into in zip(frames, out, strict=True):
        fit_frame(frame, into, "bicubic", aspect)
    return out


@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(32, 27), Fraction(8, 9), Fraction(1)])
def test_what_is_shown_covers_the_bucket_without_distortion(aspect: Fraction) -> None:
    (height, width), (top, left) = cover_and_crop((480, 720), (480, 832), float(aspect))
    shown = 720 * aspect / 480
    assert abs(width / height - shown) < 2 / height
    assert height == 480 or width == 832
    assert min(height - 480, width - 832) == 0
    assert (top, left) == ((height - 480) // 2, (width - 832) // 2)


def test_square_pixels_change_nothing() -> None:
    for source in ((480, 720), (1080, 1920), (719, 1281), (63, 95)):
        assert cover_and_crop(source, (480, 832)) == cover_and_crop(source, (480, 832), 1.0)
        assert display_size(source, 1.0) == source


@pytest.mark.parametrize(
    ("aspect", "shown"), [(4 / 3, (1080, 1920)), (0.75, (1440, 1440)), (1.0, (1080, 1440))]
)
def test_the_size_as_shown_loses_nothing(aspect: float, shown: tuple[int, int]) -> None:
    assert display_size((1080, 1440), aspect) == shown


def test_a_turned_picture_has_turned_pixels() -> None:
    facts = VideoFacts(height=64, width=96, pixel_aspect=2.0)
    assert facts.shown_aspect((64, 96)) == 2.0
    assert facts.shown_aspect((96, 64)) == 0.5
    square = VideoFacts(height=64, width=64, pixel_aspect=2.0, is_swapped=True)
    assert square.shown_aspect((64, 64)) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_video_is_resized_as_it_is_shown(pool: DecodePool, tmp_path: Path, suffix: str) -> None:
    if suffix == "mp4":
        path = with_aspect(tmp_path / "v.mp4", Fraction(4, 3))
    else:  # the stream says it, not the container
        path = encode(tmp_path / f"v.{suffix}", options={"x264-params": "sar=4/3"})
    info = pool.probe(str(path), "video").result()
    assert (info["height"], info["width"]) == (64, 128)
    decoded = pool.decode(make_clip(path, (5, 64, 64))).result()
    assert (decoded.source_height, decoded.source_width) == SIZE
    assert decoded.decoder == ("pyav" if suffix == "ts" else "decord")
    facts = decoded.picture
    expected = fitted(read_with_pyav(path, 5), (64, 64), 4 / 3)
    np.testing.assert_array_equal(pixels_of(decoded), expected)
    assert asdict(facts) == {
        "source_fps": pytest.approx(24.0, rel=0.01), "display_height": 64, "display_width": 128,
        "interlaced": False, "transfer": "SDR", "resized_height": 64, "resized_width": 128,
        "crop_top": 0, "crop_left": 32,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 96), (96, 96)], ids=["oblong", "square"])
def test_turned_and_not_square(pool: DecodePool, tmp_path: Path, size: tuple[int, int]) -> None:
    path = with_aspect(tmp_path / "v.mp4", Fraction(2), size)
    bad_videos.turn(path, 0, 1, -1, 0)
    info = pool.probe(str(path), "video").result()
    assert (info["height"], info["width"]) == (2 * size[1], size[0])
    decoded = pool.decode(make_clip(path, (1, 64, 64))).result()
    picture = decoded.picture
    decoded.release()
    assert (picture.display_height, picture.display_width) == (2 * size[1], size[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "transfer", "known"),
    [
        ({}, 16, {"transfer": "PQ", "interlaced": False}),
        ({}, 18, {"transfer": "HLG", "interlaced": False}),
        ({}, 1, {"transfer": "SDR", "interlaced": False}),
        ({"flags": "+ildct+ilme"}, None, {"transfer": "SDR", "interlaced": True}),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_what_is_known_of_the_pictures(
    pool: DecodePool,
    tmp_path: Path,
    suffix: str,
    options: dict[str, str],
    transfer: int | None,
    known: dict[str, Any],
) -> None:
    path = encode(tmp_path / f"v.{suffix}", "libx264", options, transfer=transfer)
    decoded = pool.decode(make_clip(path, (5, *SIZE))).result()
    assert {name: getattr(decoded.picture, name) for name in known} == known
    assert isinstance(decoded.picture, PictureFacts)
    decoded.release()


HEVC_TRANSFER = "transfer=14:colorprim=bt2020:colormatrix=bt2020nc"
#: Parameters of x265, and what is known. Its headers say nothing of fields, nor of an alternative transfer.
OF_HEVC = {
    "fields": ("interlace=tff", {"transfer": "SDR", "interlaced": True}),
    "progressive": ("pic-struct=1", {"transfer": "SDR", "interlaced": False}),
    "alternative": (f"atc-sei=18:{HEVC_TRANSFER}", {"transfer": "HLG", "interlaced": False}),
    "plain": (HEVC_TRANSFER, {"transfer": "SDR", "interlaced": False}),
}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
@pytest.mark.parametrize("name", OF_HEVC)
def test_what_hevc_says_in_its_pictures_is_known(
    pool: DecodePool, tmp_path: Path, name: str, pix_fmt: str, suffix: str
) -> None:
    params, known = OF_HEVC[name]
    options = {"x265-params": f"log-level=none:bframes=0:{params}"}
    path = encode(tmp_path / f"v.{suffix}", "libx265", options, frames=8, pix_fmt=pix_fmt)
    decoded = pool.decode(make_clip(path, (2, *SIZE))).result()
    assert {name: getattr(decoded.picture, name) for name in known} == known
    decoded.release()


def test_a_header_counts_where_pictures_say_nothing() -> None:
    facts = VideoFacts(interlaced=True, transfer="PQ", are_told=False)
    assert Look().completed(facts) == VideoFacts(interlaced=True, transfer="PQ")
    seen = Look(is_interlaced=True, transfer="HLG").completed(VideoFacts())
    assert (seen.interlaced, seen.transfer) == (True, "HLG")


def joined(path: Path) -> Path:
    """Write two sizes, one after the other, into one stream."""
    parts = [
        encode(path.with_name(f"{n}.ts"), size=size, options={"bf": "0", "g": "6"})
        for n, size in enumerate([SIZE, (96, 128)])
    ]
    with av.open(str(parts[0])) as first, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(first.streams.video[0])
        shift = 0
        for part in parts:
            with av.open(str(part)) as read:
                start = None
                for packet in read.demux(video=0):
                    if not packet.size:
                        continue
                    start = packet.dts if start is None else start
                    packet.pts, packet.dts = packet.pts - start + shift, packet.dts - start + shift
                    last = packet.dts + packet.duration
                    packet.stream = stream
                    out.mux(packet)
                shift = last
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["ts", "mkv", "mp4"])
def test_a_clip_whose_size_changes_is_a_row_with_its_reason(
    pool: DecodePool, tmp_path: Path, suffix: str
) -> None:
    path = joined(tmp_path / f"v.{suffix}")
    outcomes = []
    for start in (0, 6, 9, 12, 18):
        try:
            decoded = pool.decode(make_clip(path, (6, *SIZE), start=start)).result()
        except ClipError as error:
            outcomes.append(error.reason)
        else:
            outcomes.append((decoded.source_height, decoded.source_width))
            decoded.release()
    assert outcomes == [SIZE, SIZE, "size_changed", (96, 128), (96, 128)]
