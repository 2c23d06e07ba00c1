"""Where things are in a damaged Matroska file: what is not known is read whole, and nothing else fails."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path
from typing import IO, cast

import pytest

from latentcache.decoders import matroska
from latentcache.decoders.ebml import elements
from latentcache.decoders.matroska import Layout, _block
from latentcache.decoders.ranged import NeedsWholeError
from tests.tools import video_fuzz
from tests.tools.bad_videos import encode
from tests.tools.ranged_bytes import ranged

NUM_FILES = 3000
SIMPLE_BLOCK, GROUP = 0xA3, 0xA0


def damaged(whole: bytes, draw: random.Random) -> bytes:
    """Damage one place at either end, where the cues are, mostly with what a size can hold."""
    data = bytearray(whole)
    for _ in range(draw.choice((1, 3))):
        at, length = draw.randrange(min(len(data), 1500)), draw.choice((1, 2, 8))
        at = at if draw.random() < 0.5 else len(data) - 1 - at
        data[at : at + length] = draw.choice(
            (b"\xff" * length, bytes(length), b"\x80" * length, draw.randbytes(length))
        )
    return bytes(video_fuzz.cut_off(data, draw) if draw.random() < 0.1 else data)


@pytest.mark.parametrize("name", ["v.mkv", "v.webm"])
def test_a_damaged_file_is_read_whole_or_has_blocks(tmp_path: Path, name: str) -> None:
    codec = "libx264" if name == "v.mkv" else "libvpx"
    whole = encode(tmp_path / name, codec, {"g": "5"}, frames=20).read_bytes()
    draw = random.Random(name)
    num_known = 0
    for _ in range(NUM_FILES):
        with contextlib.suppress(NeedsWholeError):
            layout = Layout(cast("IO[bytes]", ranged(damaged(whole, draw)).open()))
            assert layout.last_blocks(0, 5)
            layout.span(0, 0, 1000)
            num_known += 1
    assert NUM_FILES // 10 < num_known < NUM_FILES


def test_an_element_whose_size_is_cut_off_ends_the_file() -> None:
    whole = b"\xec\x81\0"
    cut = b"\xec\x01\0\0"  # a size of eight bytes, of which there are three
    found = list(elements(io.BytesIO(whole + cut), 0, len(whole + cut)))
    assert found == [(0xEC, 2, 3)]


@pytest.mark.parametrize("kind", [SIMPLE_BLOCK, GROUP])
def test_a_block_without_a_byte_is_no_picture(kind: int) -> None:
    data = bytes([kind, 0x80])
    assert _block(data, (kind, 2, 2), track=1, time=0) is None


def test_a_track_that_is_not_found_needs_the_whole_file(tmp_path: Path) -> None:
    data = encode(tmp_path / "v.mkv", frames=10).read_bytes()
    with pytest.raises(NeedsWholeError):
        Layout(cast("IO[bytes]", ranged(data).open())).last_blocks(1, 5)


def test_cues_that_are_most_of_a_file_are_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(tmp_path / "v.mkv", frames=10).read_bytes()
    Layout(cast("IO[bytes]", ranged(data).open()))
    monkeypatch.setattr(matroska, "_MAX_CUES_BYTES", 10)
    with pytest.raises(NeedsWholeError):
        Layout(cast("IO[bytes]", ranged(data).open()))
