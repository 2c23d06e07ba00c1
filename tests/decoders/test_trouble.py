"""What a decoding process takes, and what it lacks: never a reason against a clip that is good."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from PIL import Image

from latentcache.decoders import streams
from latentcache.decoders.packets import read_packets
from latentcache.decoders.pool import DecodePool
from latentcache.decoders.trouble import ProcessTroubleError
from latentcache.errors import ClipError, MachineError
from tests.decoders.test_pool import make_clip, pixels_of
from tests.tools.bad_videos import encode, write_bomb
from tests.tools.videos import read_with_pyav

pytestmark = pytest.mark.slow

NUM_SOURCES = 50
FRAMES = 24
#: Made so that decord is not asked: ten bits, which it gets wrong, or a codec that it does not know.
CODECS = {
    "ten_bit.mp4": ("libx264", {"preset": "ultrafast"}, "yuv420p10le"),
    "dav1d.mkv": ("libsvtav1", {"preset": "12"}, "yuv420p"),
    "interlaced.ts": ("libx264", {"flags": "+ildct+ilme", "preset": "ultrafast"}, "yuv420p"),
}


def peak_bytes(process: psutil.Process) -> int:
    """The most memory that a process has had, from its status file."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name != "dav1d.mkv" else [])
        for name in CODECS
    ],
)
def test_a_decoding_process_takes_no_more_for_fifty_sources_than_for_two(
    tmp_path: Path, name: str
) -> None:
    codec, options, pix_fmt = CODECS[name]
    size = (180, 320)
    whole = encode(tmp_path / name, codec, options, frames=FRAMES, size=size, pix_fmt=pix_fmt)
    expected = read_with_pyav(whole)
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    threads, peaks = [], []
    with DecodePool(num_processes=1, num_buffers=1, timeout_s=60) as pool:
        for index in range(NUM_SOURCES):
            path = tmp_path / f"{index}_{name}"
            path.symlink_to(whole)
            decoded = pool.decode(make_clip(path, (FRAMES, *size))).result()
            assert decoded.decoder == "pyav"
            np.testing.assert_array_equal(pixels_of(decoded), expected)
            (process,) = (
                p for p in psutil.Process().children(recursive=True) if p.pid not in before
            )
            threads.append(process.num_threads())
            peaks.append(peak_bytes(process))
    assert set(threads) == {threads[0]}
    assert peaks[-1] - peaks[1] < expected.nbytes  # a clip's frames are not kept, not even once


@pytest.fixture
def starver() -> Iterator[DecodePool]:
    with DecodePool(
        num_processes=1, num_buffers=2, timeout_s=60, program="tests.tools.sleeper"
    ) as pool:
        yield pool


def test_a_clip_whose_process_lacked_something_is_decoded_by_a_fresh_one(
    starver: DecodePool, tmp_path: Path
) -> None:
    path = encode(tmp_path / "starved.mp4")
    got = pixels_of(starver.decode(make_clip(path, (5, 64, 96))).result())
    np.testing.assert_array_equal(got, read_with_pyav(path)[:5])


def test_what_the_machine_lacks_is_no_fault_of_a_clip(starver: DecodePool, tmp_path: Path) -> None:
    path = encode(tmp_path / "starving.mp4")
    fine = encode(tmp_path / "fine.mp4")
    with pytest.raises(MachineError, match=r"temporarily unavailable.*run\.decode_processes"):
        starver.decode(make_clip(path, (5, 64, 96))).result()
    pixels_of(starver.decode(make_clip(fine, (5, 64, 96))).result())


@pytest.mark.parametrize("name", ["bomb.png", "bomb.avif", "bomb.webp"])
def test_a_clip_that_needs_too_much_memory_fails_in_a_fresh_process_too(
    tmp_path: Path, name: str
) -> None:
    if name == "bomb.png":
        write_bomb(tmp_path / name)
    else:  # whose libraries say that it is damaged, or a variant that they do not know
        options = {"speed": 10} if name == "bomb.avif" else {"method": 0}
        Image.new("RGB", (8000, 6000)).save(tmp_path / name, **options)
    with (
        DecodePool(num_processes=1, num_buffers=1, timeout_s=60, memory_bytes=300 << 20) as pool,
        pytest.raises(ClipError, match=r"run\.decode_memory_bytes") as caught,
    ):
        pool.probe(str(tmp_path / name), "image").result()
    assert caught.value.reason == "out_of_memory"


def damaged_header(path: Path) -> Path:
    """An MP4 whose table of times claims to have a billion rows."""
    data = bytearray(encode(path).read_bytes())
    at = data.index(b"stts") + 8
    data[at : at + 4] = (1 << 30).to_bytes(4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("memory_bytes", "reason"), [(4 << 30, "unreadable"), (200 << 20, "out_of_memory")]
)
def test_a_header_that_asks_for_any_amount_of_memory_is_damaged_if_there_is_enough(
    tmp_path: Path, memory_bytes: int, reason: str
) -> None:
    path = damaged_header(tmp_path / "v.mp4")
    with (
        DecodePool(num_processes=1, num_buffers=1, timeout_s=60, memory_bytes=memory_bytes) as pool,
        pytest.raises(ClipError) as caught,
    ):
        pool.probe(str(path), "video").result()
    assert caught.value.reason == reason


class StarvingContainer:
    """A container of which only the first packets can be read for want of memory."""

    def __init__(self, container: Any) -> None:
        self._container = container

    def demux(self, stream: Any) -> Iterator[Any]:
        """Yield three packets."""
        yield from itertools.islice(self._container.demux(stream), 3)
        raise av.error.MemoryError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)


@pytest.mark.parametrize("has_room", [True, False])
def test_a_lack_of_memory_while_packets_are_read_does_not_cut_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_room: bool
) -> None:
    monkeypatch.setattr(streams, "has_room", lambda _: has_room)
    container, stream = streams.open_video(str(encode(tmp_path / "v.mp4")))
    with container:
        if has_room:  # what asks for too much is damage, behind which nothing is known
            table = read_packets(StarvingContainer(container), stream)
            assert len(table) == 3
            assert table.ends_within
        else:
            with pytest.raises(ProcessTroubleError, match=r"run\.decode_memory_bytes"):
                read_packets(StarvingContainer(container), stream)
