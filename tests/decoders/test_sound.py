"""The sound of a clip is a slice of its source's whole sound, decoded and resampled once."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest

from latentcache.decoders.sound import SoundReader
from latentcache.errors import ClipError
from tests.tools.videos import SHARED_VIDEOS, needs_shared_videos, write_sound

RATE, SECONDS = 16_000, 2.0


def whole(path: Path, rate: int) -> tuple[float, np.ndarray]:
    """When the sound begins, and all of it [n, channels] as PyAV resamples it: the reference."""
    with av.open(str(path)) as container:
        stream = container.streams.best("audio")
        frames = list(container.decode(stream))
        resampler = av.AudioResampler(format="fltp", layout=frames[0].layout.name, rate=rate)
        found = [out for frame in [*frames, None] for out in resampler.resample(frame) if out]
    return frames[0].time, np.concatenate([frame.to_ndarray() for frame in found], axis=1).T


def stereo(seconds: float = SECONDS, rate: int = 44_100) -> np.ndarray:
    """Two different tones that get louder, float32 [2, n]."""
    t = np.arange(round(seconds * rate)) / rate
    return (np.stack([np.sin(900 * t), np.sin(2500 * t)]) * (0.1 + 0.2 * t)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "flac"), ("a.mp4", "aac"), ("a.wav", "pcm_f32le")]
)
def test_spans_are_slices_of_the_whole_sound(tmp_path: Path, name: str, codec: str) -> None:
    path = write_sound(tmp_path / name, stereo(), rate=44_100, codec=codec)
    begin, expected = whole(path, RATE)
    reader = SoundReader(str(path), RATE, 2)
    for start, end in ((0.0, 0.5), (0.5, 1.25), (0.25, 0.75), (1.5, 1.9), (0.0, 2.0)):
        first, count = round((start - begin) * RATE), round((end - start) * RATE)
        found, lost = reader.span(start, end, 10**9)
        assert (len(found), lost) == (count, 0)
        np.testing.assert_array_equal(found, expected[first : first + count])
    reader.close()


def test_one_channel_is_the_mean_and_two_of_one_are_the_same(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "two.wav", stereo(rate=RATE), rate=RATE, codec="pcm_f32le")
    two, _ = SoundReader(str(path), RATE, 2).span(0, 1, 10**9)
    one, _ = SoundReader(str(path), RATE, 1).span(0, 1, 10**9)
    np.testing.assert_array_equal(two.T, stereo(rate=RATE)[:, :RATE])  # nothing to resample
    np.testing.assert_array_equal(one[:, 0], two.mean(axis=1, dtype=np.float32))
    path = write_sound(tmp_path / "one.wav", stereo()[:1], rate=44_100, codec="pcm_f32le")
    both, _ = SoundReader(str(path), RATE, 2).span(0, 1, 10**9)
    assert both[:, 0].any()
    np.testing.assert_array_equal(both[:, 0], both[:, 1])


def test_more_than_two_channels_are_mixed_to_two(tmp_path: Path) -> None:
    six = np.concatenate([stereo()] * 3)
    path = write_sound(tmp_path / "six.wav", six, rate=44_100, codec="pcm_f32le", layout="5.1")
    found, _ = SoundReader(str(path), RATE, 2).span(0, 1, 10**9)
    assert found.shape == (RATE, 2)
    assert found.any(axis=0).all()


def test_what_is_longer_than_the_room_is_cut_off_and_counted(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", stereo(), rate=44_100, codec="pcm_f32le")
    reader = SoundReader(str(path), RATE, 2)
    found, lost = reader.span(0.5, 1.5, 10_000)
    assert (len(found), lost) == (10_000, RATE - 10_000)
    np.testing.assert_array_equal(found, reader.span(0.5, 1.5, RATE)[0][:10_000])


def test_outside_the_sound_there_is_silence_and_a_span_without_any_is_refused(
    tmp_path: Path,
) -> None:
    path = write_sound(
        tmp_path / "late.mkv", stereo(1.0), rate=44_100, codec="pcm_f32le", start_s=0.5
    )
    begin, expected = whole(path, RATE)
    assert begin == pytest.approx(0.5, abs=0.01)
    reader = SoundReader(str(path), RATE, 2)
    found, _ = reader.span(0.0, 2.0, 10**9)
    silent = round(begin * RATE)
    assert not found[:silent].any()
    np.testing.assert_array_equal(found[silent : silent + len(expected)], expected)
    assert not found[silent + len(expected) :].any()
    for start, end in ((1.75, 2.0), (0.0, 0.25)):
        with pytest.raises(ClipError, match="is heard from") as caught:
            reader.span(start, end, 10**9)
        assert caught.value.reason == "no_sound"


def test_a_gap_in_the_sound_is_silence_of_its_length(tmp_path: Path) -> None:
    path = write_sound(
        tmp_path / "gap.mkv", stereo(), rate=RATE * 2, codec="pcm_f32le", gap=(1.0, 0.5)
    )
    found, _ = SoundReader(str(path), RATE * 2, 2).span(0.0, 2.0, 10**9)
    sound = stereo().T
    low, high = RATE * 2, RATE * 3
    quiet = np.flatnonzero(~found.any(axis=1))
    assert abs(len(quiet) - (high - low)) <= 2 * 1024  # packets are not cut
    assert np.array_equal(found[:low], sound[:low])


def test_a_gap_of_hours_costs_no_memory(tmp_path: Path) -> None:
    hours_s = 3 * 3600.0
    path = write_sound(
        tmp_path / "gap.mkv", stereo(), rate=44_100, codec="pcm_f32le", gap=(1.0, hours_s)
    )
    tracemalloc.start()
    try:
        reader = SoundReader(str(path), 44_100, 2)
        after, _ = reader.span(hours_s + 1.25, hours_s + 1.75, 10**9)
        within, _ = reader.span(hours_s / 2, hours_s / 2 + 0.5, 10**9)
        before, _ = reader.span(0.25, 0.75, 10**9)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 24
    assert not within.any()
    sound = stereo().T
    np.testing.assert_array_equal(before, sound[11_025:33_075])
    np.testing.assert_allclose(
        np.abs(after).max(axis=0), np.abs(sound[55_125:77_175]).max(axis=0), 0.01
    )


def test_files_without_sound_say_so(tmp_path: Path) -> None:
    from tests.tools.videos import moving_pattern, write_video

    path = write_video(tmp_path / "mute.mp4", moving_pattern(3, 32, 32))
    with pytest.raises(ClipError, match="the file has no sound") as caught:
        SoundReader(str(path), RATE, 1).span(0, 0.1, 10**9)
    assert caught.value.reason == "no_sound"
    (tmp_path / "text.mp4").write_text("no video" * 100)
    with pytest.raises(ClipError):
        SoundReader(str(tmp_path / "text.mp4"), RATE, 1).span(0, 0.1, 10**9)


@needs_shared_videos
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (24_000, 2), (48_000, 2)])
def test_real_sound_is_that_of_pyav(rate: int, channels: int) -> None:
    path = SHARED_VIDEOS / "nasa_audio.mp4"
    begin, expected = whole(path, rate)
    reader = SoundReader(str(path), rate, channels)
    found, _ = reader.span(begin + 1, begin + 3, 10**9)
    wanted = expected[rate : 3 * rate]
    wanted = wanted.mean(axis=1, dtype=np.float32, keepdims=True) if channels == 1 else wanted
    np.testing.assert_array_equal(found, np.broadcast_to(wanted, found.shape))
