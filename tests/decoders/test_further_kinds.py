"""Further variants of odd files: each frame is FFmpeg's, read alone and in sequence."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentcache.decoders import pyav
from latentcache.decoders.frames import Frame
from latentcache.decoders.index import read_index
from latentcache.decoders.source import Source
from latentcache.errors import ClipError
from tests.tools import further_videos as kinds
from tests.tools.bad_videos import encode
from tests.tools.every_format import assert_as_ffmpeg_shows, shown
from tests.tools.videos import moving_pattern, read_with_pyav

#: One or two of a kind, of those that were wrong once; the long run has all.
SHORT = (
    "edited_edit_cut.mp4", "edited_edit_repeated.mp4", "edited_edit_end.mov", "order_mpeg2.ts",
    "pixels_rawvideo_gray.mov", "pixels_palette_rawvideo.mov", "shapes_crop_h264.ts",
    "shapes_crop_h264.mp4", "shapes_crop_hevc.mkv", "hidden_packed.avi", "hidden_vp9_split.mkv",
    "middle_hevc_cra.mp4", "times_dash.mp4", "turned_turned_90.mkv", "interlacing_422.ts",
)  # fmt: skip
#: What a build of FFmpeg raises for what it cannot write.
CANNOT = (av.FFmpegError, av.codec.codec.UnknownCodecError, ValueError)


def check(path: Path, name: str) -> None:
    try:
        kinds.EXACT[name](path)
    except CANNOT as error:
        pytest.skip(f"this build of FFmpeg cannot write it: {error}")
    assert shown(path).frames
    assert_as_ffmpeg_shows(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_frames_and_times_are_ffmpegs(tmp_path: Path, name: str) -> None:
    check(tmp_path / name, name)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(kinds.EXACT) - set(SHORT)))
def test_frames_and_times_are_ffmpegs_in_all(tmp_path: Path, name: str) -> None:
    check(tmp_path / name, name)


@pytest.mark.parametrize(
    "name", sorted(n for n in kinds.EXACT if "within_groups" in n or "late_b" in n)
)
def test_fragments_whose_times_decord_takes_otherwise_are_not_for_it(
    tmp_path: Path, name: str
) -> None:
    kinds.EXACT[name](tmp_path / name)
    assert assert_as_ffmpeg_shows(tmp_path / name) == "pyav"


@pytest.mark.slow
def test_what_an_edit_list_leaves_out_is_not_cut_off(tmp_path: Path) -> None:
    kinds.EDITED["edit_cut.mp4"](tmp_path / "v.mp4")
    index = read_index(str(tmp_path / "v.mp4"))
    assert index.num_declared == len(index.pts) == 20
    whole = encode(tmp_path / "f.mp4", frames=48, container={"movflags": "frag_keyframe"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    index = read_index(str(whole))
    assert index.num_declared > len(index.pts)  # a fragment that begins tells how many it has


def frames_of(path: Path) -> Frame:
    info = pyav.probe(str(path))
    with contextlib.closing(Source(str(path), "video")) as source:
        frames = np.stack(list(source.reader().frames(np.arange(info.frames))))
    assert frames.shape[1:3] == (info.height, info.width)
    return frames


@pytest.mark.parametrize("suffix", ["mp4", "mov", "m4v"])
def test_a_clean_aperture_is_what_is_shown(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"v.{suffix}")
    whole = read_with_pyav(path)
    kinds.with_aperture(path, 80, 48, 4, -2)
    np.testing.assert_array_equal(frames_of(path), whole[:, 6:54, 12:92])


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_matroskas_crop_is_what_is_shown(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"v.{suffix}", "libvpx" if suffix == "webm" else "libx264")
    whole = read_with_pyav(path)
    kinds.with_pixel_crop(path, top=6, bottom=10, left=12, right=4)
    np.testing.assert_array_equal(frames_of(path), whole[:, 6:54, 12:92])


@pytest.mark.parametrize(
    ("aperture", "shape"),
    [
        ((81, 47), (46, 80)),  # samples of chroma stay whole
        ((96, 64), (64, 96)),
        ((97, 64), (64, 96)),  # larger than the picture
        ((80, 48, 9), (64, 96)),  # beyond its edge
        ((0, 0), (64, 96)),
        ((-1, 48), (64, 96)),
    ],
)
def test_an_aperture_is_taken_as_ffmpeg_takes_it(
    tmp_path: Path, aperture: tuple[int, ...], shape: tuple[int, int]
) -> None:
    path = encode(tmp_path / "v.mp4", frames=2)
    kinds.with_aperture(path, *aperture)
    assert frames_of(path).shape[1:3] == shape


def test_a_crop_comes_before_a_turn_and_keeps_interlaced_pixels(tmp_path: Path) -> None:
    kinds.turned(90, options={**kinds.INTERLACED, "bf": "0"})(tmp_path / "v.mp4")
    whole = read_with_pyav(tmp_path / "v.mp4")
    with av.open(str(tmp_path / "v.mp4")) as container:
        turns = round(next(container.decode(video=0)).rotation / 90)
    kinds.with_aperture(tmp_path / "v.mp4", 80, 64, 8)
    stored = np.rot90(whole, -turns, axes=(1, 2))[:, :, 16:]
    np.testing.assert_array_equal(
        frames_of(tmp_path / "v.mp4"), np.rot90(stored, turns, axes=(1, 2))
    )


@pytest.mark.parametrize(
    ("suffix", "matrix"), [("mp4", "YCgCo"), ("mkv", "bt2020c"), ("ts", "ICtCp")]
)
def test_colours_that_ffmpeg_does_not_convert_are_never_guessed(
    tmp_path: Path, suffix: str, matrix: str
) -> None:
    path = encode(
        tmp_path / f"v.{suffix}", options={"x264-params": f"colormatrix={matrix}"}, frames=3
    )
    with pytest.raises(
        ClipError, match=r"does not convert .* format yuv420p, matrix \d+"
    ) as caught:
        pyav.probe(str(path))
    assert caught.value.reason == "unreadable"
    assert not read_index(str(path)).suits_decord


def test_deep_interlaced_pixels_are_near_ffmpegs_filter(tmp_path: Path) -> None:
    """The filter moves chroma by its siting; `sws_scale`, which progressive video goes by, does not."""
    path = encode(tmp_path / "v.mkv", options=kinds.INTERLACED, frames=4, pix_fmt="yuv420p10le")
    expected = np.stack(shown(path).frames).astype(int)
    with av.open(str(path)) as container:
        by_fields = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    distance = np.abs(frames_of(path) - expected).mean()
    assert 2 * distance < np.abs(by_fields - expected).mean()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["mp4", "mov", "ts"])
def test_of_two_videos_in_a_file_each_decoder_takes_ffmpegs(tmp_path: Path, suffix: str) -> None:
    """decord's FFmpeg took the other one."""
    path = tmp_path / f"v.{suffix}"
    frames = [moving_pattern(24, 96, 128, seed=seed) for seed in (1, 2)]
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("libx264", rate=24) for _ in frames]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for pictures in zip(*frames, strict=True):
            for stream, picture in zip(streams, pictures, strict=True):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        for stream in streams:
            out.mux(stream.encode(None))
    assert_as_ffmpeg_shows(path)


@pytest.mark.slow
def test_behind_a_damaged_packet_no_frame_is_another_one(tmp_path: Path) -> None:
    """Pictures that a decoder held back come out at the end of what is whole; one between them is lost."""
    path = tmp_path / "v.ts"
    parts = []
    for number, size in enumerate([(96, 128), (64, 96)]):
        part = tmp_path / f"{number}.ts"
        options = {"mpegts_copyts": "1"}
        with av.open(str(part), "w", options=options) as out:
            stream = out.add_stream("libx264", rate=24, options={"x264-params": "keyint=8"})
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            for n, picture in enumerate(moving_pattern(20, *size)):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = 20 * number + n, Fraction(1, 24)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    expected = shown(path).frames
    num_right = 0
    with contextlib.closing(Source(str(path), "video")) as source:
        reader = source.reader(without_decord=True)
        every = range(len(reader.times_s))
        for indices in (np.arange(len(every)), *(np.array([index]) for index in every)):
            with contextlib.suppress(ClipError):
                for index, frame in zip(indices, reader.frames(indices), strict=True):
                    np.testing.assert_array_equal(frame, expected[index])
                    num_right += 1
    assert num_right > 20
