"""H.264 can say of a single picture how it is turned: what FFmpeg does, whichever decoder is asked."""

from __future__ import annotations

import contextlib
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from latentcache.core.records import Clip
from latentcache.decoders import pyav
from latentcache.decoders.frames import Frame
from latentcache.decoders.identity import identify_url
from latentcache.decoders.keyframes import starts_afresh
from latentcache.decoders.pool import DecodePool
from latentcache.decoders.source import Source
from latentcache.errors import ClipError
from tests.tools.bad_videos import encode
from tests.tools.videos import read_with_pyav

SIZE, FRAMES = (64, 96), 24


def oriented(path: Path, how: str, codec: str = "libx264") -> Path:
    """A video whose first picture says that it is turned or flipped."""
    plain = encode(path.with_name(f"plain{path.suffix}"), codec, frames=FRAMES, size=SIZE)
    with av.open(str(plain)) as read, av.open(str(path), "w") as out:
        given = read.streams.video[0]
        stream = out.add_stream_from_template(given)
        change = BitStreamFilterContext(
            f"h264_metadata=display_orientation=insert:{how}", given, stream
        )
        for packet in read.demux(given):
            for changed in change.filter(packet if packet.size else None):
                changed.stream = stream
                out.mux(changed)
    return path


def read(path: Path, frames: range, without_decord: bool = False) -> Frame:
    with contextlib.closing(Source(str(path), "video")) as source:
        return np.stack(list(source.reader(without_decord).frames(np.array(frames))))


@pytest.mark.parametrize("how", ["rotate=90", "rotate=180", "flip=horizontal"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_clip_in_which_the_turn_changes_is_refused_and_others_are_not(
    tmp_path: Path, how: str, suffix: str
) -> None:
    path = oriented(tmp_path / f"v{suffix}", how)
    info = pyav.probe(str(path))
    assert (info.height, info.width) == SIZE
    for without_decord in (False, True):
        with pytest.raises(ClipError, match="frame 1 is not turned and mirrored as") as caught:
            read(path, range(4), without_decord)
        assert caught.value.reason == "size_changed"
        expected = read_with_pyav(tmp_path / f"plain{suffix}")[3:9]
        np.testing.assert_array_equal(read(path, range(3, 9), without_decord), expected)


@pytest.mark.slow
def test_the_row_of_such_a_clip_has_a_reason(tmp_path: Path) -> None:
    path = oriented(tmp_path / "v.mp4", "rotate=90")
    with DecodePool(num_processes=1, num_buffers=1, timeout_s=60) as pool:
        info = pool.probe(str(path), "video").result()
        for start, reason in ((0, "size_changed"), (8, None)):
            clip = Clip(
                key="k", source="v", url=str(path), kind="video", identity=identify_url(str(path)),
                start=start, frames=8, fps=None, height=info["height"], width=info["width"],
            )  # fmt: skip
            if reason is None:
                pool.decode(clip).result().release()
            else:
                with pytest.raises(ClipError) as caught:
                    pool.decode(clip).result()
                assert caught.value.reason == reason


def test_key_frames_that_say_how_they_are_turned_are_not_for_decord() -> None:
    def unit(*data: int) -> bytes:
        return len(data).to_bytes(4) + bytes(data)

    text, orientation = [5, 3, 1, 2, 3], [47, 2, 0x48, 0]
    idr, long_text = unit(0x65, 0, 0), [5, 255, 2, *[9] * 257]
    assert starts_afresh("h264", unit(6, *text, 0x80) + idr)
    assert starts_afresh("h264", unit(6, *long_text, 0x80) + idr)
    assert not starts_afresh("h264", unit(6, *text, *orientation, 0x80) + idr)
    assert not starts_afresh("h264", unit(6, *long_text, *orientation, 0x80) + idr)
    assert not starts_afresh("h264", unit(6, 5, 4, 0, 0, 3, 1, 2, *orientation, 0x80) + idr)
    hevc_idr = unit(19 << 1, 1, 0)
    assert starts_afresh("hevc", unit(39 << 1, 1, *text, 0x80) + hevc_idr)
    assert not starts_afresh("hevc", unit(39 << 1, 1, *text, *orientation, 0x80) + hevc_idr)
