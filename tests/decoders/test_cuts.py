"""Cut files whose header does not say how long they were: what is whole is right, the rest has a reason."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentcache.decoders import pyav
from latentcache.decoders.source import Source
from latentcache.errors import ClipError
from tests.tools.bad_videos import encode
from tests.tools.every_format import shown
from tests.tools.odd_videos import B_FRAMES, GOP
from tests.tools.ranged_bytes import ranged_video

pytestmark = pytest.mark.slow

SMALL, PAL = (144, 176), (576, 720)
#: Name: codec, its options, size, how many frames, and where it is cut, in hundredths.
CUT: dict[str, tuple[str, dict[str, str], tuple[int, int], int, tuple[int, ...]]] = {
    "v.dv": ("dvvideo", {}, PAL, 8, (40, 69, 95)),
    "v.rm": ("rv20", GOP, SMALL, 48, (50, 60, 80, 90)),
    "v.mxf": ("mpeg2video", B_FRAMES, SMALL, 48, (30, 45, 50, 60, 70, 90)),
    "v.nut": ("mpeg4", B_FRAMES, SMALL, 48, (30, 45, 50, 60, 70, 90)),
    "v.wmv": ("wmv2", GOP, SMALL, 48, (30, 60, 90)),
    "v.asf": ("msmpeg4", GOP, SMALL, 48, (30, 60, 90)),
    "v.gxf": ("mpeg2video", GOP, PAL, 24, (60, 90)),
    "v.ogv": ("libvpx", GOP, SMALL, 48, (30, 60, 90)),
    "v.ivf": ("libvpx", GOP, SMALL, 48, (30, 60, 90)),
    "v.ts": ("libx264", B_FRAMES, SMALL, 48, (30, 45, 50, 60, 70, 90)),
    "hevc.ts": ("libx265", {"x265-params": "log-level=none"}, SMALL, 48, (30, 50, 60, 90)),
    "v.flv": ("libx264", B_FRAMES, SMALL, 48, (30, 60, 90)),
}
OFTEN = {"v.rm", "hevc.ts"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in OFTEN else pytest.mark.long) for n in CUT]
)
def test_what_is_whole_of_a_cut_file_is_right(tmp_path: Path, name: str) -> None:
    codec, options, size, frames, cuts = CUT[name]
    whole = encode(tmp_path / name, codec, options, frames=frames, size=size)
    expected, data = shown(whole), whole.read_bytes()
    since_first = np.array(expected.times_s) - expected.times_s[0]
    path = tmp_path / f"cut_{name}"
    num_ok = []
    for hundredths in cuts:
        path.write_bytes(data[: len(data) * hundredths // 100])
        with contextlib.closing(Source(str(path), "video")) as source:
            num_ok.append(_check(source.reader(), since_first, expected.frames))
    assert num_ok[-1] >= frames // 2, num_ok
    assert num_ok == sorted(num_ok)


def test_frames_of_one_time_in_a_file_that_is_longer_by_its_header_are_damaged(
    tmp_path: Path,
) -> None:
    """Their rate would be infinite. The muxer rounds times to milliseconds."""
    path, base = tmp_path / "v.mkv", Fraction(1, 10**9)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24, options=dict(B_FRAMES))
        stream.height, stream.width = SMALL
        stream.codec_context.time_base = base
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((*SMALL, 3), index, np.uint8))
            frame.pts, frame.time_base = index, base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    at = data.index(b"\x18\x53\x80\x67") + 4  # the segment, of which the length follows
    data[at + 2 : at + 8] = b"\xff" * 6
    path.write_bytes(data)
    with pytest.raises(ClipError, match="all frames have the same time") as caught:
        pyav.probe(str(path))
    assert caught.value.reason == "corrupt"


def test_samples_without_a_byte_are_no_frames_of_an_mp4_that_are_lost(tmp_path: Path) -> None:
    """They show nothing, whether the file is here or is read by ranges."""
    path = encode(tmp_path / "v.mp4", options={"bf": "0", "g": "12"}, frames=24)
    data = bytearray(path.read_bytes())
    sizes = data.index(b"stsz") + 16  # of which the last two are those of the last chunk
    data[sizes + 4 * 22 : sizes + 4 * 24] = bytes(8)
    path.write_bytes(data)
    here, by_ranges = pyav.probe(str(path)), pyav.probe(ranged_video(path))
    assert (here.frames, here.duration_s) == (by_ranges.frames, by_ranges.duration_s)
    assert here.frames == len(here.times_s) == 22


def _check(reader: Any, since_first: np.ndarray, expected: list[np.ndarray]) -> int:
    """Compare frames, each by itself and in sequence; returns how many are right in sequence."""
    times_s = reader.times_s - reader.times_s[0]
    places = [int(np.abs(since_first - time_s).argmin()) for time_s in times_s]
    for index, place in enumerate(places):
        with contextlib.suppress(ClipError):
            (got,) = reader.frames(np.array([index]))
            np.testing.assert_array_equal(got, expected[place], err_msg=f"frame {index}")
    count = next((n for n, place in enumerate(places) if n != place), len(places))
    if count < len(places):  # some are lost before the last ones: no clip goes across
        with pytest.raises(ClipError):
            list(reader.frames(np.arange(count + 1)))
    num_ok = 0
    with contextlib.suppress(ClipError):
        for num_ok, _ in enumerate(reader.frames(np.arange(count)), 1):  # noqa: B007
            continue
    return num_ok
