"""Gaps of time in transport streams: pauses of a recording are shown, and losses are never clips."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from latentcache.decoders.index import read_index
from tests.tools.bad_videos import encode, remux
from tests.tools.every_format import assert_as_ffmpeg_shows
from tests.tools.odd_videos import B_FRAMES, NO_SCENES

pytestmark = pytest.mark.slow

#: In 1/24 s: one picture is shown for longer than the others.
PAUSE = [*range(25), *range(31, 56)]
X265 = {"x265-params": "log-level=none:keyint=10"}
#: The order of pictures has few bits: numbers begin again within a group of pictures.
FEW_BITS = {"bf": "0", "g": "250", **NO_SCENES}
STREAMS = {
    "h264.ts": ("libx264", {**B_FRAMES, **NO_SCENES}),
    "h264.m2ts": ("libx264", {"bf": "0", "g": "10", **NO_SCENES}),
    "pyramid.ts": ("libx264", {"bf": "3", "g": "20", "b-pyramid": "normal", **NO_SCENES}),
    "interlaced.ts": ("libx264", {"flags": "+ildct+ilme", "g": "20", **NO_SCENES}),
    "hevc.ts": ("libx265", X265),
    "mpeg2.ts": ("mpeg2video", B_FRAMES),
    "mpeg1.m2ts": ("mpeg1video", B_FRAMES),
}
OFTEN = {"h264.ts", "mpeg2.ts"}
NAMES = [pytest.param(n, marks=() if n in OFTEN else pytest.mark.long) for n in STREAMS]


def make(path: Path, pts: list[int] | None = None) -> Path:
    codec, options = STREAMS[path.name]
    return encode(path, codec, options, frames=len(PAUSE), pts=pts, size=(64, 96))


@pytest.mark.parametrize("name", NAMES)
def test_a_pause_is_no_loss(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, PAUSE)
    assert read_index(str(path)).holes.tolist() == []
    assert_as_ffmpeg_shows(path)


@pytest.mark.parametrize("name", NAMES)
def test_whichever_picture_is_lost_there_is_a_hole(tmp_path: Path, name: str) -> None:
    (tmp_path / "whole").mkdir()
    whole = make(tmp_path / "whole" / name)
    path = tmp_path / name
    for lost in range(11, 32):

        def leave_out(n: int, packet: av.Packet, lost: int = lost) -> av.Packet | None:
            return None if n == lost else packet

        remux(whole, path, leave_out)
        assert len(read_index(str(path)).holes) > 0, lost


@pytest.mark.parametrize("name", NAMES)
def test_of_a_pause_and_a_loss_one_is_a_hole(tmp_path: Path, name: str) -> None:
    (tmp_path / "whole").mkdir()
    whole = make(tmp_path / "whole" / name, PAUSE)
    path = tmp_path / name
    remux(whole, path, lambda n, packet: None if n == 35 else packet)
    holes = read_index(str(path)).holes
    assert 0 < len(holes) <= 2
    assert 24 not in holes


def test_a_long_pause_might_have_lost_as_many_pictures_as_numbers_go_round(tmp_path: Path) -> None:
    pts = [*range(25), *range(25 + 4096, 50 + 4096)]
    path = encode(tmp_path / "v.ts", "libx264", FEW_BITS, frames=50, pts=pts)
    assert read_index(str(path)).holes.tolist() == [24]
