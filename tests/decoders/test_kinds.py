"""Frames and times of files whose packets tell another story: each is what FFmpeg shows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentcache.decoders import decord, pyav
from latentcache.decoders.index import read_index
from latentcache.decoders.source import Source
from latentcache.errors import ClipError
from tests.tools import odd_videos as kinds
from tests.tools.bad_videos import OPEN_GOP, encode, remux
from tests.tools.every_format import assert_as_ffmpeg_shows, shown
from tests.tools.odd_videos import B_FRAMES, GOP, INTERLACED
from tests.tools.videos import SHARED, needs_shared_videos

CASES = SHARED / "cases"
X265 = {"x265-params": "log-level=none"}
Make = Callable[[Path], object]

#: Packets that are no frame, by name; their number is less than that of the packets.
FEWER: dict[str, Make] = {
    "hidden.webm": kinds.hidden_vp8,
    "hidden.mkv": kinds.hidden_vp8,
    "hidden.ivf": kinds.hidden_vp8,
    "not_coded.avi": kinds.not_coded,
    "not_coded.mkv": kinds.not_coded,
    "not_coded.mp4": kinds.not_coded,
    "not_coded.mov": kinds.not_coded,
    "no_picture.mkv": kinds.with_delimiters,
    "no_picture.mp4": kinds.with_delimiters,
    "no_picture.mov": kinds.with_delimiters,
}
EMPTY: dict[str, Make] = {
    "mpeg4.avi": lambda p: kinds.with_gaps(p, "mpeg4", GOP),
    "b_frames.avi": lambda p: kinds.with_gaps(p, "mpeg4", B_FRAMES),
    "h264.avi": lambda p: kinds.with_gaps(p, "libx264", GOP),
    "msmpeg4.avi": lambda p: kinds.with_gaps(p, "msmpeg4", GOP),
}
#: After a seek into these FFmpeg gives packets times that they do not have in sequence.
SEEKS: dict[str, Make] = {
    "mpeg2.mpg": lambda p: encode(p, "mpeg2video", B_FRAMES, frames=60),
    "mpeg2.vob": lambda p: encode(p, "mpeg2video", B_FRAMES, frames=60),
    "mpeg1.mpg": lambda p: encode(p, "mpeg1video", B_FRAMES, frames=60),
    "long_gop.mpg": lambda p: encode(p, "mpeg2video", {"bf": "2", "g": "30"}, frames=60),
    "mpeg2.ts": lambda p: encode(p, "mpeg2video", B_FRAMES, frames=60),
    "h264.ts": lambda p: encode(p, "libx264", OPEN_GOP, frames=60),
    "mjpeg.asf": lambda p: encode(p, "mjpeg", frames=30, pix_fmt="yuvj420p"),
}
#: Program streams have times for some pictures of H.264 only.
FEW_TIMES: dict[str, Make] = {
    "h264.mpg": lambda p: encode(p, "libx264", B_FRAMES, frames=40),
    "h264.vob": lambda p: encode(p, "libx264", GOP, frames=40),
    "open_gop.mpg": lambda p: encode(p, "libx264", OPEN_GOP, frames=40),
}
IN_DECODING_ORDER: dict[str, Make] = {
    "h264.flv": kinds.in_decoding_order,
    "h264.mkv": kinds.in_decoding_order,
    "h264.mp4": kinds.in_decoding_order,
    "mpeg4.mov": lambda p: kinds.in_decoding_order(p, "mpeg4"),
    "mpeg4.wmv": lambda p: kinds.in_decoding_order(p, "mpeg4", "asf"),
    "no_ctts.mp4": kinds.without_composition_times,
}
PLAYS: dict[str, Make] = {
    "long_vui.mp4": kinds.long_vui,
    "long_vui.mov": kinds.long_vui,
    "last_bytes.mkv": kinds.without_last_bytes,
    "last_bytes.avi": kinds.without_last_bytes,
}
#: Recordings of screens and phones: a frame is shown until the next one comes.
VARIABLE: dict[str, Make] = {
    "h264.ts": lambda p: encode(p, "libx264", B_FRAMES, frames=40, pts=kinds.variable(40)),
    "mpeg2.ts": lambda p: encode(p, "mpeg2video", GOP, frames=40, pts=kinds.variable(40)),
    "hevc.ts": lambda p: encode(p, "libx265", X265, frames=40, pts=kinds.variable(40)),
    "h264.m2ts": lambda p: encode(p, "libx264", GOP, frames=40, pts=kinds.variable(40)),
    "mpeg2.mpg": lambda p: encode(p, "mpeg2video", GOP, frames=40, pts=kinds.variable(40)),
}
JOINED: dict[str, Make] = {
    "h264.ts": lambda p: kinds.joined(p, "libx264", GOP, (0, 1)),
    "mpeg2.ts": lambda p: kinds.joined(p, "mpeg2video", B_FRAMES, (0, 1, 2)),
    "hevc.ts": lambda p: kinds.joined(p, "libx265", X265, (0, 1)),
    "same.ts": lambda p: kinds.joined(p, "libx264", B_FRAMES, (0, 0, 0)),
    "mpeg2.mpg": lambda p: kinds.joined(p, "mpeg2video", B_FRAMES, (0, 1)),
    "h264.mkv": lambda p: kinds.joined(p, "libx264", B_FRAMES, (0, 1)),
    "vp9.webm": lambda p: kinds.joined(p, "libvpx-vp9", GOP, (0, 1, 2)),
    "mpeg4.mkv": lambda p: kinds.joined(p, "mpeg4", B_FRAMES, (0, 0)),
}
WHOLE = {
    **FEWER, **EMPTY, **SEEKS, **FEW_TIMES, **{f"order_{k}": v for k, v in IN_DECODING_ORDER.items()},
    **PLAYS, **{f"variable_{k}": v for k, v in VARIABLE.items()},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_frames_and_times_are_those_that_ffmpeg_shows(tmp_path: Path, name: str) -> None:
    WHOLE[name](tmp_path / name)
    assert_as_ffmpeg_shows(tmp_path / name)
    if name in FEWER:
        index = read_index(str(tmp_path / name))
        assert len(index.packets) > len(shown(tmp_path / name).frames)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_frames_that_a_steady_stream_lacks_are_lost(tmp_path: Path, codec: str) -> None:
    whole = encode(tmp_path / "whole.ts", codec, {"g": "6", "bf": "0"}, frames=60)
    path = tmp_path / "lost.ts"
    remux(whole, path, lambda n, packet: None if n in (21, 22) else packet)
    assert read_index(str(path)).holes.tolist() == [20]
    with contextlib.closing(Source(str(path), "video")) as source:
        reader = source.reader()
        assert len(list(reader.frames(np.arange(21)))) == 21
        assert len(list(reader.frames(np.arange(24, 58)))) == 34  # from a key frame on
        with pytest.raises(ClipError, match=r"frames are lost between \d\.\d+ s and \d\.\d+ s"):
            list(reader.frames(np.arange(18, 24)))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINED)
def test_joined_recordings_go_on_where_times_restart(tmp_path: Path, name: str) -> None:
    JOINED[name](tmp_path / name)
    expected = shown(tmp_path / name)
    steps = np.arange(len(expected.frames)) / 24
    # a program stream's muxer puts the last frames of each part late by one
    tolerance_s = 1 / 24 + 1e-3 if name.endswith(".mpg") else 1e-3
    assert_as_ffmpeg_shows(tmp_path / name, (expected.times_s[0] + steps).tolist(), tolerance_s)


@pytest.mark.slow
@pytest.mark.skipif(not CASES.is_dir(), reason=f"no inputs at {CASES}")
@pytest.mark.parametrize(
    "name", ["f.mkv", "f.ts", "f.mov", "f.flv", "pair.mp4", "pair.mkv", "pair.ts"]
)
def test_fields_are_halves_of_frames(tmp_path: Path, name: str) -> None:
    source = CASES / "paff50.mp4"
    kinds.refield(source, tmp_path / name, together=name.startswith("pair"))
    assert_as_ffmpeg_shows(tmp_path / name)
    assert pyav.probe(str(tmp_path / name)).frames == len(shown(source).frames)


@pytest.mark.slow
@pytest.mark.skipif(not CASES.is_dir(), reason=f"no inputs at {CASES}")
@pytest.mark.parametrize(
    "name", sorted(p.name for p in CASES.glob("*.*") if p.suffix not in (".md", ".ts"))
)
def test_every_case_is_right(name: str) -> None:
    if name == "audio_with_cover.mp4":
        with pytest.raises(ClipError, match="but a cover picture") as caught:
            pyav.probe(str(CASES / name))
        assert caught.value.reason == "no_video"
    else:
        assert_as_ffmpeg_shows(CASES / name)


@pytest.mark.slow
@pytest.mark.skipif(not CASES.is_dir(), reason=f"no inputs at {CASES}")
def test_transport_streams_among_the_cases_are_right() -> None:
    joined = CASES / "concat_same.ts"
    info = pyav.probe(str(joined))
    assert (info.frames, round(info.duration_s, 3)) == (96, 4.0)
    start_s = shown(joined).times_s[0]
    assert_as_ffmpeg_shows(joined, [start_s + i / 24 for i in range(96)])
    assert_as_ffmpeg_shows(CASES / "mpeg_ps_seek_same_bits.ts")
    one, other = shown(CASES / "mpeg_ps_seek.mpg"), shown(CASES / "mpeg_ps_seek_same_bits.ts")
    np.testing.assert_array_equal(one.frames, other.frames)


@pytest.mark.parametrize("audio", ["aac.mp4", "libmp3lame.mp3", "flac.flac"])
def test_sound_with_a_cover_is_no_video(tmp_path: Path, audio: str) -> None:
    kinds.with_cover(tmp_path / audio, Path(audio).stem)
    with pytest.raises(ClipError, match="but a cover picture") as caught:
        pyav.probe(str(tmp_path / audio))
    assert caught.value.reason == "no_video"


def test_frames_before_time_zero_of_a_matroska_file_have_a_fix_that_gives_them_times(
    tmp_path: Path,
) -> None:
    path = encode(
        tmp_path / "v.mkv", options=GOP, frames=30, pts=list(range(-15, 15)),
        container={"avoid_negative_ts": "disabled"},
    )  # fmt: skip
    with pytest.raises(ClipError, match=r"\d+ of 30 frames .* Encode it again: ffmpeg -i FILE"):
        pyav.probe(str(path))
    encode(tmp_path / "v.h264", options=GOP)
    with pytest.raises(ClipError, match=r"12 of 12 frames .* Put the stream into a container"):
        pyav.probe(str(tmp_path / "v.h264"))


CUT_AVI: dict[str, tuple[str, dict[str, str]]] = {
    "one_key_frame.avi": ("mpeg4", {"g": "300"}),
    "b_frames.avi": ("mpeg4", {"g": "300", "bf": "2"}),
    "h264.avi": ("libx264", {"g": "300"}),
    "mjpeg.avi": ("mjpeg", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CUT_AVI)
def test_a_cut_avi_gives_what_is_whole(tmp_path: Path, name: str) -> None:
    codec, options = CUT_AVI[name]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(tmp_path / name, codec, options, frames=60, pix_fmt=pix_fmt)
    whole = shown(path)
    data, packets = path.read_bytes(), list(kinds.packets_of(path))
    for last in (20, 33, 51):
        path.write_bytes(data[: packets[last].pos + packets[last].size // 2])
        index = read_index(str(path))
        assert abs(index.num_declared - 60) <= 1
        assert last - 4 <= len(index.pts) <= last + 1
        with contextlib.closing(Source(str(path), "video")) as source:
            got = list(source.reader().frames(np.arange(len(index.pts))))
        np.testing.assert_array_equal(got, whole.frames[: len(index.pts)])


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_cut_avi_of_few_frames_has_their_times(tmp_path: Path, codec: str) -> None:
    """All its pictures are looked at, among them some behind those that are settled."""
    path = encode(tmp_path / "v.avi", codec, {"bf": "2", "g": "30"}, frames=40)
    whole = shown(path)
    data, packets = path.read_bytes(), list(kinds.packets_of(path))
    path.write_bytes(data[: packets[10].pos + packets[10].size // 2])
    times_s = pyav.probe(str(path)).times_s
    assert len(times_s) >= 6
    np.testing.assert_allclose(times_s, whole.times_s[: len(times_s)])
    with contextlib.closing(Source(str(path), "video")) as source:
        got = list(source.reader().frames(np.arange(len(times_s))))
    np.testing.assert_array_equal(got, whole.frames[: len(times_s)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["i.mp4", "i.mkv", "i.mov", "i.ts", "i.avi"])
def test_interlaced_video_has_the_same_pixels_in_every_container(tmp_path: Path, name: str) -> None:
    encode(tmp_path / name, options={**INTERLACED, "bf": "0"}, frames=20, size=(64, 128))
    decoder = assert_as_ffmpeg_shows(tmp_path / name)
    assert decoder == ("decord" if name in ("i.mp4", "i.mkv", "i.mov") else "pyav")
    encode(tmp_path / "same.ts", options={**INTERLACED, "bf": "0"}, frames=20, size=(64, 128))
    np.testing.assert_array_equal(shown(tmp_path / name).frames, shown(tmp_path / "same.ts").frames)


@pytest.mark.parametrize("width", range(2, 132, 2))
def test_decord_is_asked_only_for_shapes_that_it_gets_right(tmp_path: Path, width: int) -> None:
    path = encode(tmp_path / "v.mp4", options={"bf": "0"}, frames=2, size=(64, width))
    with contextlib.closing(Source(str(path), "video")) as source:
        name = source.reader().name
        (frame,) = source.reader().frames(np.array([1]))  # decord's raises where it is wrong
        assert frame.shape == (64, width, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentcache.decoders.for_decord._confuses_decord", lambda _: False)
        asked = decord.Reader(str(path), read_index(str(path)))
    with contextlib.closing(asked):
        try:
            (frame,) = asked.frames(np.array([1]))
            is_wrong = frame.shape != (64, width, 3)
        except RuntimeError:
            is_wrong = True
    assert (name == "pyav") == is_wrong


@needs_shared_videos
@pytest.mark.long
@pytest.mark.parametrize("path", sorted((SHARED / "videos").glob("*")), ids=lambda path: path.name)
def test_every_frame_of_every_real_video_is_ffmpegs(path: Path) -> None:
    if path.name == "corrupted.mp4":
        pytest.skip("it is damaged: tests of bad input say where")
    assert_as_ffmpeg_shows(path)
