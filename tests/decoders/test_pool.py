"""Decoding through real processes: equal to PyAV, and unharmed by files that hang or crash it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from PIL import Image, ImageOps

from latentcache.core.records import Clip
from latentcache.decoders.frames import Frame
from latentcache.decoders.identity import identify_url
from latentcache.decoders.pool import DecodedClip, DecodePool
from latentcache.decoders.rgb import to_rgb
from latentcache.errors import ClipError, RunStoppedError
from tests.tools.videos import (
    SHARED_VIDEOS,
    moving_pattern,
    needs_shared_videos,
    read_with_pyav,
    write_video,
)

pytestmark = pytest.mark.slow

VIDEOS = sorted(p.name for p in SHARED_VIDEOS.glob("*")) if SHARED_VIDEOS.is_dir() else []


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(num_processes=2, num_buffers=3, timeout_s=60) as pool:
        yield pool


def make_clip(path: Path, shape: tuple[int, int, int], *, start: int = 0, fps: float | None = None,
              kind: str = "video", identity: str | None = None) -> Clip:  # fmt: skip
    frames, height, width = shape
    return Clip(
        key="k", source=path.name, url=str(path), kind="image" if kind == "image" else "video",
        identity=identity or identify_url(str(path)), start=start, frames=frames, fps=fps,
        height=height, width=width,
    )  # fmt: skip


def pixels_of(decoded: DecodedClip) -> Frame:
    pixels = decoded.pixels.copy()
    decoded.release()
    return pixels


@needs_shared_videos
@pytest.mark.parametrize("name", VIDEOS)
def test_real_videos_are_ok_and_equal_pyav_or_have_a_reason(pool: DecodePool, name: str) -> None:
    path = SHARED_VIDEOS / name
    info = pool.probe(str(path), "video").result()
    frames = min(info["frames"], 33)
    clip = make_clip(path, (frames, info["height"], info["width"]))
    if name == "corrupted.mp4":
        with pytest.raises(ClipError, match="Invalid data") as caught:
            pool.decode(clip).result()
        assert caught.value.reason == "corrupt"
        return
    decoded = pool.decode(clip).result()
    decoder = "pyav" if name in ("av1.mkv", "h264_10bit.mp4") else "decord"
    assert decoded.decoder == decoder
    np.testing.assert_array_equal(pixels_of(decoded), read_with_pyav(path, frames))


@needs_shared_videos
@pytest.mark.parametrize(
    "name",
    [
        "av1.mkv",
        "pancake_vfr.mkv",
        pytest.param("ivvae_720p.mp4", marks=pytest.mark.long),
        pytest.param("screen_vfr_vp9.webm", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("fps", [None, 7.0])
def test_clips_from_the_middle_equal_the_same_frames_of_a_full_decode(
    pool: DecodePool, name: str, fps: float | None
) -> None:
    path = SHARED_VIDEOS / name
    info = pool.probe(str(path), "video").result()
    clip = make_clip(path, (9, info["height"], info["width"]), start=14, fps=fps)
    decoded = pool.decode(clip).result()
    rate = info["fps"] if fps is None else fps
    assert decoded.start_s == pytest.approx(14 / rate, abs=0.05)
    assert decoded.end_s == pytest.approx(23 / rate, abs=0.5 / rate + 0.05)
    got, everything = pixels_of(decoded), read_with_pyav(path, 120)
    first = round(decoded.start_s * info["fps"])
    np.testing.assert_array_equal(got[0], everything[first])
    if fps is None:
        np.testing.assert_array_equal(got, everything[14:23])


@needs_shared_videos
def test_rotation_metadata_turns_the_picture(pool: DecodePool) -> None:
    info = pool.probe(str(SHARED_VIDEOS / "rotate_90.mov"), "video").result()
    assert (info["height"], info["width"]) == (568, 320)


def test_side_data_that_pyav_has_no_name_for_does_no_harm(pool: DecodePool, tmp_path: Path) -> None:
    """FFmpeg 8 gives frames of JPEG their EXIF, and those of spatial video their view."""
    picture = Image.fromarray(
        np.repeat(np.repeat(np.arange(8, dtype=np.uint8) * 30, 16)[None], 64, 0)
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.convert("RGB").save(tmp_path / "turned.jpg", exif=exif, quality=95)
    info = pool.probe(str(tmp_path / "turned.jpg"), "video").result()
    assert (info["height"], info["width"]) == (128, 64)
    with av.open(str(tmp_path / "turned.jpg")) as container:
        frame = next(container.decode(video=0))
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "turned.jpg")))
    assert np.abs(to_rgb(frame).astype(int) - shown).mean() < 3


@pytest.mark.parametrize("without_decord", [False, True])
def test_both_decoders_seek_to_the_same_frames(tmp_path: Path, without_decord: bool) -> None:
    from latentcache.decoders.source import Source

    path = write_video(tmp_path / "v.mp4", moving_pattern(80, 64, 96), gop=10)
    expected = read_with_pyav(path)
    source = Source(str(path), "video")
    reader = source.reader(without_decord)
    assert reader.name == ("pyav" if without_decord else "decord")
    for indices in ([0, 1, 2], [41, 42, 43], [5, 30, 79], [12], [60, 61, 20, 21]):
        wanted = np.unique(np.array(indices))
        got = list(reader.frames(wanted))
        np.testing.assert_array_equal(np.stack(got), expected[wanted])
    source.close()


def test_variable_frame_rate_is_sampled_by_time(pool: DecodePool, tmp_path: Path) -> None:
    pts = [0, 40, 80, 500, 540, 1000, 1040, 1500, 1540, 2000]
    pixels = np.stack([np.full((64, 64, 3), 20 * i, np.uint8) for i in range(10)])
    path = write_video(tmp_path / "vfr.mkv", pixels, pts=pts)
    got = pixels_of(pool.decode(make_clip(path, (4, 64, 64), fps=2.0)).result())
    reference = read_with_pyav(path)
    np.testing.assert_array_equal(got, reference[[0, 3, 5, 7]])


def test_upsampling_repeats_the_nearest_frame(pool: DecodePool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", moving_pattern(6, 64, 64), fps=4)
    got = pixels_of(pool.decode(make_clip(path, (9, 64, 64), fps=8.0)).result())
    assert (got[0] == got[1]).all()
    assert not (got[0] == got[-1]).all()


def test_an_image_is_one_frame_turned_as_exif_says(pool: DecodePool, tmp_path: Path) -> None:
    pixels = moving_pattern(1, 48, 80)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right to show
    Image.fromarray(pixels).save(tmp_path / "i.png", exif=exif)
    info = pool.probe(str(tmp_path / "i.png"), "image").result()
    assert (info["frames"], info["height"], info["width"]) == (1, 80, 48)
    clip = make_clip(tmp_path / "i.png", (1, 80, 48), kind="image")
    np.testing.assert_array_equal(pixels_of(pool.decode(clip).result())[0], np.rot90(pixels, 3))


def failure(pool: DecodePool, path: Path, kind: str = "video") -> ClipError:
    with pytest.raises(ClipError) as caught:
        pool.probe(str(path), kind).result()
    return caught.value


def test_unusable_files_have_a_reason(pool: DecodePool, tmp_path: Path) -> None:
    html = tmp_path / "page.mp4"
    html.write_text("<html><body>404</body></html>")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert failure(pool, html).reason == "unreadable"
    assert failure(pool, empty).reason == "unreadable"
    assert failure(pool, folder).reason == "unreadable"
    assert failure(pool, tmp_path / "gone.mp4").reason == "missing"
    assert failure(pool, picture, "image").reason in ("unreadable", "corrupt")


def test_a_truncated_video_is_told(pool: DecodePool, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "v.mkv", moving_pattern(60, 64, 96, seed=3))
    data = whole.read_bytes()
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ClipError) as caught:
        pool.decode(make_clip(cut, (60, 64, 96))).result()
    assert caught.value.reason in ("truncated", "corrupt")


def test_a_source_that_is_not_the_planned_one_is_refused(pool: DecodePool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", moving_pattern(9, 64, 64))
    with pytest.raises(ClipError, match="not the file that was planned") as caught:
        pool.decode(make_clip(path, (9, 64, 64), identity="12-ab")).result()
    assert caught.value.reason == "source_changed"


@pytest.fixture
def sleeper() -> Iterator[DecodePool]:
    with DecodePool(
        num_processes=1, num_buffers=2, timeout_s=1.5, program="tests.tools.sleeper"
    ) as pool:
        yield pool


def write(tmp_path: Path, name: str) -> Path:
    return write_video(tmp_path / name, moving_pattern(5, 32, 32))


def test_a_decoder_that_hangs_is_killed_at_its_limit_and_costs_that_clip_only(
    sleeper: DecodePool, tmp_path: Path
) -> None:
    hanging = sleeper.decode(make_clip(write(tmp_path, "hang.mp4"), (5, 32, 32)))
    fine = sleeper.decode(make_clip(write(tmp_path, "fine.mp4"), (5, 32, 32)))
    with pytest.raises(ClipError, match=r"no answer from the decoder after 1\.5 s") as caught:
        hanging.result()
    assert caught.value.reason == "decode_timeout"
    assert pixels_of(fine.result()).shape == (5, 32, 32, 3)


def test_a_decoder_that_crashes_costs_that_clip_only(sleeper: DecodePool, tmp_path: Path) -> None:
    crashing = sleeper.decode(make_clip(write(tmp_path, "segfault.mp4"), (5, 32, 32)))
    fine = sleeper.decode(make_clip(write(tmp_path, "fine.mp4"), (5, 32, 32)))
    with pytest.raises(ClipError, match="killed by SIGSEGV") as caught:
        crashing.result()
    assert caught.value.reason == "decoder_crashed"
    assert pixels_of(fine.result()).shape == (5, 32, 32, 3)


def test_a_process_that_somebody_killed_is_asked_again(sleeper: DecodePool, tmp_path: Path) -> None:
    path = write(tmp_path, "once.mp4")
    got = pixels_of(sleeper.decode(make_clip(path, (5, 32, 32))).result())
    np.testing.assert_array_equal(got, read_with_pyav(path))


def test_where_decord_hangs_pyav_decodes(sleeper: DecodePool, tmp_path: Path) -> None:
    path = write(tmp_path, "decord.mp4")
    decoded = sleeper.decode(make_clip(path, (5, 32, 32))).result()
    assert decoded.decoder == "pyav"
    decoded.release()


def test_a_broken_installation_is_no_fault_of_a_clip(tmp_path: Path) -> None:
    path = write(tmp_path, "fine.mp4")
    with (
        DecodePool(
            num_processes=1, num_buffers=2, timeout_s=5, program="tests.no_such_module"
        ) as pool,
        pytest.raises(
            RunStoppedError, match=r"cannot start: it ended with exit status 1: .*no_such_module"
        ),
    ):
        pool.decode(make_clip(path, (5, 32, 32))).result()


def test_an_import_that_fails_is_no_fault_of_a_clip(sleeper: DecodePool, tmp_path: Path) -> None:
    path = write(tmp_path, "importless.mp4")
    with pytest.raises(RunStoppedError, match=r"installation is broken: .*'flash_attn'"):
        sleeper.decode(make_clip(path, (5, 32, 32))).result()


def test_an_import_without_memory_is_told_as_that(sleeper: DecodePool, tmp_path: Path) -> None:
    path = write(tmp_path, "mapless.mp4")
    with pytest.raises(ClipError) as failed:
        sleeper.decode(make_clip(path, (5, 32, 32))).result()
    assert failed.value.reason == "out_of_memory"


def test_a_missing_package_of_a_file_system_stops_the_run(tmp_path: Path) -> None:
    if importlib.util.find_spec("adlfs"):
        pytest.skip("the package for az:// is installed")
    with (
        DecodePool(num_processes=1, num_buffers=1, timeout_s=60) as pool,
        pytest.raises(RunStoppedError, match=r"installation is broken: .*pip install adlfs"),
    ):
        pool.probe("az://container/a.mp4", "video").result()


def test_buffers_bound_what_is_decoded_ahead(tmp_path: Path) -> None:
    path = write(tmp_path, "fine.mp4")
    with DecodePool(num_processes=2, num_buffers=2, timeout_s=30) as pool:
        futures = [pool.decode(make_clip(path, (5, 32, 32))) for _ in range(5)]
        futures[1].result()
        with pytest.raises(TimeoutError):
            futures[2].result(timeout=0.5)
        for future in futures:
            future.result().release()


def test_closing_stops_the_processes_and_cancels_what_waits(tmp_path: Path) -> None:
    path = write(tmp_path, "hang.mp4")
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    pool = DecodePool(num_processes=1, num_buffers=1, timeout_s=999, program="tests.tools.sleeper")
    futures = [pool.decode(make_clip(path, (5, 32, 32))) for _ in range(3)]
    while not {p.pid for p in psutil.Process().children(recursive=True)} - before:
        time.sleep(0.05)
    pool.close()
    assert all(future.done() for future in futures)
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


@pytest.mark.slow
def test_a_pool_that_is_closed_again_closes_no_file_of_others(tmp_path: Path) -> None:
    pool = DecodePool(num_processes=1, num_buffers=2, timeout_s=30)
    pool.close()
    files = [(tmp_path / f"{number}").open("w") for number in range(8)]
    pool.close()
    for file in files:
        file.write("still open")
        file.close()


def test_what_is_asked_of_a_closed_pool_is_cancelled(tmp_path: Path) -> None:
    """A shard's thread that comes too late would wait for ever, and the run that stops with it."""
    path = write(tmp_path, "fine.mp4")
    pool = DecodePool(num_processes=1, num_buffers=1, timeout_s=30)
    clip = make_clip(path, (5, 32, 32))
    pool.close()
    assert pool.decode(clip).cancelled()
    assert pool.probe(str(path), "video").cancelled()


def test_growing_clips_get_larger_buffers(pool: DecodePool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", moving_pattern(20, 64, 96))
    expected = read_with_pyav(path)
    for frames in (2, 20, 7):
        got = pixels_of(pool.decode(make_clip(path, (frames, 64, 96))).result())
        np.testing.assert_array_equal(got, expected[:frames])


@pytest.mark.parametrize("none", ["num_processes", "num_buffers"])
def test_a_pool_that_could_never_answer_is_refused(none: str) -> None:
    with pytest.raises(ValueError, match="would never answer"):
        DecodePool(**{"num_processes": 1, "num_buffers": 1, none: 0}, timeout_s=1.0)
