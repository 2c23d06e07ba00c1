"""Of joined recordings each has its own sound: that of its file, while its own pictures are shown."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latentcache.core.records import Clip
from latentcache.decoders.identity import identify_url
from latentcache.decoders.index import read_index
from latentcache.decoders.packets import PacketTable
from latentcache.decoders.pictures import Shows
from latentcache.decoders.pool import DecodePool
from latentcache.decoders.sound import SoundReader
from latentcache.decoders.sound_parts import Follower, parts_of
from latentcache.errors import ClipError
from tests.tools.videos import moving_pattern, write_sound, write_video

RATE, FPS = 48_000, 24
#: By suffix and codec how many recordings are joined: of Matroska FFmpeg reads two.
KINDS = [(".ts", "mp2", 3), (".ts", "aac", 3), (".mkv", "flac", 2), (".mkv", "aac", 2)]


def chirp(number: int, seconds: float) -> np.ndarray:
    """A tone whose pitch tells when, and in which recording, float32 [1, n]."""
    t = np.arange(round(seconds * RATE)) / RATE
    return 0.4 * np.sin(2 * np.pi * ((400 + 900 * number) * t + 60 * t * t))[None].astype(
        np.float32
    )


def recording(
    path: Path, number: int, frames: int, codec: str, sound_s: float | None = None, **options: float
) -> Path:
    seconds = frames / FPS if sound_s is None else sound_s
    pixels = moving_pattern(frames, 32, 32, number)
    return write_sound(
        path, chirp(number, seconds), rate=RATE, codec=codec, pixels=pixels, fps=FPS, **options
    )


def join(path: Path, parts: Sequence[Path]) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


class Film:
    """A file's sound by time since its first frame."""

    def __init__(self, path: Path) -> None:
        self.index = read_index(str(path))
        self._reader = SoundReader(str(path), RATE, 1, self.index.packets)

    def heard(self, start_s: float, end_s: float) -> np.ndarray:
        first_s = float(self.index.times_s[0])
        return self._reader.span(first_s + start_s, first_s + end_s, 1 << 30)[0][:, 0]


def off_s(found: np.ndarray, expected: np.ndarray) -> float:
    """How much later the same is heard; more than a second where it is something else."""
    spectrum = np.fft.rfft(found, 2 * len(found)) * np.fft.rfft(expected, 2 * len(found)).conj()
    scores = np.fft.irfft(spectrum)
    best = int(scores.argmax())
    if scores[best] < 0.9 * np.linalg.norm(found) * np.linalg.norm(expected):
        return np.inf
    return (best - len(scores) * (best > len(found))) / RATE


@pytest.mark.parametrize(("suffix", "codec", "num_parts"), KINDS)
def test_each_recording_sounds_as_its_own_file(
    tmp_path: Path, suffix: str, codec: str, num_parts: int
) -> None:
    counts = (48, 60, 54)[:num_parts]
    parts = [
        recording(tmp_path / f"{number}{suffix}", number, frames, codec)
        for number, frames in enumerate(counts)
    ]
    film = Film(join(tmp_path / f"all{suffix}", parts))
    assert len(film.index.packets.joins) == num_parts - 1
    begin_s = 0.0
    for part, frames in zip(parts, counts, strict=True):
        alone, end_s = Film(part), frames / FPS
        for low, high in ((0.0, 0.5), (0.7, 1.5), (end_s - 0.5, end_s)):
            found = film.heard(begin_s + low, begin_s + high)
            assert abs(off_s(found, alone.heard(low, high))) < 0.002, (part.name, low)
        begin_s += end_s


def test_no_bit_depends_on_where_reading_began(tmp_path: Path) -> None:
    parts = [recording(tmp_path / f"{number}.ts", number, 48, "mp2") for number in range(3)]
    path = join(tmp_path / "all.ts", parts)
    in_order = Film(path)
    spans = [(0.5, 1.5), (1.5, 2.5), (2.5, 3.5), (3.5, 4.5), (4.5, 5.5)]
    expected = [in_order.heard(*span) for span in spans]
    for span, sound in zip(spans[::-1], expected[::-1], strict=True):
        np.testing.assert_array_equal(in_order.heard(*span), sound)
        np.testing.assert_array_equal(Film(path).heard(*span), sound)


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_sound_that_outlasts_its_pictures_hides_nothing_of_the_next(
    tmp_path: Path, suffix: str
) -> None:
    codec = "mp2" if suffix == ".ts" else "flac"
    first = recording(tmp_path / f"0{suffix}", 0, 48, codec, sound_s=3.0)
    second = recording(tmp_path / f"1{suffix}", 1, 48, codec)
    film, alone = Film(join(tmp_path / f"all{suffix}", [first, second])), Film(second)
    for low, high in ((0.1, 0.6), (0.6, 1.6)):
        assert abs(off_s(film.heard(2 + low, 2 + high), alone.heard(low, high))) < 0.002
    assert abs(off_s(film.heard(1.0, 1.9), Film(first).heard(1.0, 1.9))) < 0.002


def test_sound_that_begins_late_or_ends_early_stays_in_its_recording(tmp_path: Path) -> None:
    first = recording(tmp_path / "0.ts", 0, 72, "mp2", sound_s=1.5)
    second = recording(tmp_path / "1.ts", 1, 72, "mp2", sound_s=2.0, start_s=1.0)
    film = Film(join(tmp_path / "all.ts", [first, second]))
    assert abs(off_s(film.heard(0.2, 1.2), Film(first).heard(0.2, 1.2))) < 0.002
    assert not film.heard(1.7, 3.8).any()
    assert abs(off_s(film.heard(4.2, 5.2), Film(second).heard(1.2, 2.2))) < 0.002


def test_a_recording_without_sound_is_silent_between_others(tmp_path: Path) -> None:
    first = recording(tmp_path / "0.ts", 0, 48, "mp2")
    mute = write_video(tmp_path / "mute.ts", moving_pattern(48, 32, 32, 5), fps=FPS)
    last = recording(tmp_path / "1.ts", 1, 48, "mp2")
    film = Film(join(tmp_path / "all.ts", [first, mute, last]))
    assert len(film.index.packets.joins) == 2
    assert not film.heard(2.2, 3.8).any()
    for low, high in ((0.1, 0.6), (1.0, 1.9)):
        assert abs(off_s(film.heard(4 + low, 4 + high), Film(last).heard(low, high))) < 0.002
    film = Film(join(tmp_path / "end.ts", [first, last, mute]))
    with pytest.raises(ClipError, match="is heard from") as caught:
        film.heard(4.5, 5.5)
    assert caught.value.reason == "no_sound"


@pytest.mark.slow
def test_a_clip_of_the_second_recording_has_the_sound_of_its_pictures(tmp_path: Path) -> None:
    parts = [recording(tmp_path / f"{number}.ts", number, 48, "mp2") for number in range(2)]
    path = join(tmp_path / "all.ts", parts)
    clip = Clip(
        key="k", source="all", url=str(path), kind="video", identity=identify_url(str(path)),
        start=60, frames=24, fps=None, height=32, width=32,
    )  # fmt: skip
    with DecodePool(num_processes=1, num_buffers=1, timeout_s=60) as pool:
        sound = pool.sound(clip, rate=RATE, channels=1, max_samples=RATE).result()
        assert abs(off_s(sound.samples[:, 0], Film(parts[1]).heard(0.5, 1.5))) < 0.002
        sound.release()


def video_at(*times_s: float) -> PacketTable:
    """Packets of a second each; where times go back, recordings are joined."""
    table = PacketTable(
        pts=[], dts=[], size=[1] * len(times_s), pos=[], ends=[], is_key=[], is_discarded=[],
        shows=[Shows.PICTURE] * len(times_s), duration=[],
    )  # fmt: skip
    shift = 0
    for row, time_s in enumerate(times_s):
        if row and time_s < times_s[row - 1]:
            shift = table.joins[row] = table.dts[-1] + 1000 - round(1000 * time_s)
        table.dts.append(round(1000 * time_s) + shift)
    table.pts = table.dts
    return table


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("v0 a0 v1 a1 v0 a0 v1 a1", [0, 1, 2, 3]),
        ("v0 a0 v1 a1 a0 v0 a1 v1", [0, 1, 2, 3]),  # the sound of the second comes first
        ("v0 a0 v1 v0 a1 v1 a0 a1", [0, 1, 2, 3]),  # the sound of the first comes last
        ("v0 v1 v2 a1 v0 v1 a0 a1", [1, 3, 4]),  # it ends early
        ("v0 a0 v1 a1 v2 v1 a1 v2 a2", [0, 1, 3, 4]),  # its clock restarts late
        ("v0 v1 v0 a0 v1 a1", [2, 3]),  # the first has none
        ("v0 v1 v2 v3 a0 v0 a1 v1", [4, 5]),
        ("v0 v1 a0 v2 a1 v3 a2 a3 v0 a0", [0, 1, 2, 3, 4]),  # all of it comes late
        ("v0 a0 v1 a1 v0 v1 v0 a0 v1 a1", [0, 1, 4, 5]),  # the one between has none
    ],
)
def test_sound_follows_its_pictures_however_they_are_interleaved(
    order: str, expected: list[int]
) -> None:
    base = Fraction(1, 1000)
    entries = [(entry[0], 1000 * int(entry[1:])) for entry in order.split()]
    table = video_at(*(dts / 1000 for kind, dts in entries if kind == "v"))
    follower = Follower(parts_of(table, base))
    found = []
    for kind, dts in entries:
        packet = SimpleNamespace(size=1, pts=dts, dts=dts, duration=1000, time_base=base)
        if kind == "v":
            follower.see(packet)
        else:
            follower.place(packet)
            found.append(packet.pts / 1000)
    assert found == expected
