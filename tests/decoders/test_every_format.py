"""Each frame read by itself is FFmpeg's, in every container and codec that this build can write."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from latentcache.errors import ClipError
from tests.tools.every_format import (
    assert_as_ffmpeg_shows,
    containers,
    encoders,
    is_whole,
    shown,
    write,
)

FRAMES = 20
OPTIONS = {name: {"bf": "2"} for name in ("libx264", "mpeg2video", "mpeg4")}
COMMON = [
    *((container, "libx264") for container in ("mp4", "mov", "matroska", "mpegts", "flv", "avi")),
    *((container, "mpeg4") for container in ("mp4", "matroska", "avi", "asf", "nut")),
    *((container, "mpeg2video") for container in ("mpeg", "vob", "mpegts", "mxf", "asf")),
    *((container, "mjpeg") for container in ("mov", "avi", "asf", "matroska")),
    *((container, "libvpx-vp9") for container in ("webm", "ivf", "mp4")),
    *(("mov", codec) for codec in ("prores_ks", "qtrle", "png")),
    *(("avi", codec) for codec in ("ffv1", "huffyuv", "msvideo1", "zmbv", "wmv2")),
    *(("matroska", codec) for codec in ("libx265", "libsvtav1")),
    ("gif", "gif"),
    ("flv", "flv"),
    ("ogg", "vp8"),
]
#: Reasons for which a file that FFmpeg reads may be refused, each true of some of these.
REFUSED = frozenset({"no_timestamps"})
#: WTV does not keep the quantiser of these: FFmpeg says so, and shows pictures of one that it guesses.
GUESSED = {("wtv", "asv1"), ("wtv", "asv2")}


def check(path: Path, container: str, codec: str) -> str | None:
    """Write a file and compare it; return what is wrong. A file that FFmpeg does not read is not."""
    if not write(path, container, codec, FRAMES, OPTIONS.get(codec, {})):
        return None
    try:
        expected = shown(path)
    except (av.FFmpegError, AttributeError, ValueError):
        return None
    if expected.is_damaged or len(expected.frames) < 2:
        return None
    try:
        assert_as_ffmpeg_shows(path)
    except (AssertionError, RuntimeError) as error:
        return f"{container} {codec}: {error}"
    except ClipError as error:
        is_whole_file = (container, codec) not in GUESSED and is_whole(path)
        is_true = error.reason in REFUSED or (error.reason == "corrupt" and not is_whole_file)
        return None if is_true else f"{container} {codec}: {error}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize(("container", "codec"), COMMON)
def test_frames_read_alone_are_those_in_sequence(
    tmp_path: Path, container: str, codec: str
) -> None:
    if codec not in encoders():
        pytest.skip(f"this build of FFmpeg has no {codec}")
    assert check(tmp_path / f"v.{container}", container, codec) is None


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("container", containers())
def test_frames_read_alone_are_those_in_sequence_in_all(tmp_path: Path, container: str) -> None:
    wrong = [check(tmp_path / "v.bin", container, codec) for codec in encoders()]
    assert not list(filter(None, wrong))
