"""Bad input: every bad clip has a reason, every good one its own pixels, and nothing else is lost."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

import latentcache
from jobs import precompute
from latentcache.core.records import REASONS
from latentcache.decoders import decord
from latentcache.decoders.frames import Frame, fit_frame
from latentcache.decoders.index import read_index
from latentcache.decoders.pool import DecodePool
from latentcache.decoders.source import Source
from latentcache.errors import ClipError, SourceError
from tests.decoders.test_pool import make_clip, pixels_of
from tests.tools import bad_videos, video_fuzz
from tests.tools.bad_videos import KINDS, NAMES, Kind, encode, write_socket
from tests.tools.caches import make_config, run_job
from tests.tools.corpora import write_csv
from tests.tools.video_fuzz import Fuzz
from tests.tools.videos import moving_pattern, read_with_pyav, write_video

CLIP_FRAMES = 5
TURNS = {
    "turned_90.mp4": lambda pixels: np.rot90(pixels, 3, axes=(1, 2)),
    "turned_180.mp4": lambda pixels: np.rot90(pixels, 2, axes=(1, 2)),
    "turned_270.mp4": lambda pixels: np.rot90(pixels, 1, axes=(1, 2)),
    "mirrored.mp4": lambda pixels: pixels[:, :, ::-1],
    "mirrored_90.mp4": lambda pixels: pixels.swapaxes(1, 2),
}
GOOD = [kind for kind in KINDS if kind.is_good]


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(
        num_processes=2,
        num_buffers=3,
        timeout_s=60,
        max_pixels=bad_videos.MAX_PIXELS,
        memory_bytes=4 << 30,
    ) as pool:
        yield pool


#: Its header's width makes pixels that are not square, as FFmpeg reads it.
STRETCHED = "wide.mp4"


def reference(kind: Kind, path: Path) -> Frame:
    """What the file shows, as PyAV decodes it from its beginning to its end, at its own size."""
    if kind.name not in TURNS:
        return read_with_pyav(path)
    plain = path.with_name("plain.mp4")
    plain.write_bytes(path.read_bytes())
    bad_videos.turn(plain, 1, 0, 0, 1)
    return np.ascontiguousarray(TURNS[kind.name](read_with_pyav(plain)))


def outcomes(pool: DecodePool, path: Path, kind: str, shape: tuple[int, int] | None = None) -> list:
    """Probe and decode clip by clip: reasons (str), or pixels."""
    try:
        info = pool.probe(str(path), kind).result()
    except ClipError as error:
        return [error.reason]
    frames = 1 if kind == "image" else CLIP_FRAMES
    size = shape or (info["height"], info["width"])
    clips = [
        make_clip(path, (frames, *size), start=start, kind=kind)
        for start in range(0, info["frames"] - frames + 1, frames)
    ]
    got: list = []
    for future in [
        pool.decode(clip) for clip in clips[-1:] + clips[:-1]
    ]:  # the last one first: seek
        try:
            got.append(pixels_of(future.result()))
        except ClipError as error:
            got.append(error.reason)
    return [*got[1:], *got[:1]] or ["too_short"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_has_its_outcome(pool: DecodePool, tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / kind.name
    kind.make(path)
    if kind.frames is not None:
        assert pool.probe(str(path), kind.kind).result()["frames"] == kind.frames
    got = outcomes(pool, path, kind.kind)
    reasons = {one if isinstance(one, str) else None for one in got}
    assert reasons <= set(kind.reasons)
    assert reasons == set(kind.reasons) or not kind.is_exact
    if kind.is_good and kind.kind == "video":
        expected = reference(kind, path)
        assert len(expected) == kind.frames
        pixels = np.concatenate(got)
        if kind.name == STRETCHED:  # shown wider than it is stored; tests/decoders/test_geometry.py
            assert pixels.shape[2] > expected.shape[2]
            return
        np.testing.assert_array_equal(pixels, expected[: len(got) * CLIP_FRAMES])


CUT = {
    "front.mp4": lambda p: encode(p, frames=40, container=bad_videos.FRONT),
    "back.mp4": lambda p: encode(p, frames=40),
    "v.mkv": lambda p: encode(p, frames=40),
    "v.webm": lambda p: encode(p, "libvpx-vp9", frames=40),
    "v.ts": lambda p: encode(p, frames=40),
    "v.avi": lambda p: encode(p, "mpeg4", {"bf": "2", "g": "6"}, frames=40),
}


@pytest.mark.parametrize("name", CUT)
def test_a_cut_file_gives_its_own_frames_or_reasons(
    pool: DecodePool, tmp_path: Path, name: str
) -> None:
    CUT[name](tmp_path / name)
    whole = outcomes(pool, tmp_path / name, "video")
    data = (tmp_path / name).read_bytes()
    num_ok = []
    for tenths in range(1, 10):
        path = tmp_path / f"{tenths}_{name}"
        path.write_bytes(data[: len(data) * tenths // 10])
        got = outcomes(pool, path, "video")
        ok = [i for i, one in enumerate(got) if not isinstance(one, str)]
        for i in ok:
            np.testing.assert_array_equal(got[i], whole[i])
        bad = {one for one in got if isinstance(one, str)}
        assert bad <= {"truncated", "corrupt", "unreadable", "no_video", "too_short"}
        assert bad or name.endswith(".ts")  # whose end nothing tells
        num_ok.append(len(ok))
    assert num_ok == sorted(num_ok)
    assert num_ok[-1] >= (0 if name == "back.mp4" else len(whole) // 2)


@pytest.mark.parametrize("name", ["front.mp4", "v.mkv"])
def test_a_cut_file_has_no_hole_before_its_end(tmp_path: Path, name: str) -> None:
    """Frames are stored in another order than they are shown in, so a cut can lose one in between."""
    whole = read_index(str(CUT[name](tmp_path / name)))
    data, path = (tmp_path / name).read_bytes(), tmp_path / f"cut_{name}"
    lengths = set()
    for size in range(len(data) // 4, len(data), len(data) // 80):
        path.write_bytes(data[:size])
        with contextlib.suppress(ClipError):
            index = read_index(str(path))
            lengths.add(len(index.pts))
            np.testing.assert_array_equal(index.pts, whole.pts[: len(index.pts)])
            assert len(index.pts) <= index.num_declared <= len(whole.pts) + 1
    assert len(lengths) > 10


def damage(whole: Path, target: Path, draw: random.Random) -> Path:
    """Copy a video with the second half of a frame, no key frame, overwritten."""
    with av.open(str(whole)) as container:
        packets = [
            (p.pos, p.size) for p in container.demux(video=0) if p.size and not p.is_keyframe
        ]
    data = bytearray(whole.read_bytes())
    pos, size = draw.choice(packets)
    data[pos + size // 2 : pos + size] = draw.randbytes(size - size // 2)
    target.write_bytes(data)
    return target


def test_damage_that_the_decoder_conceals_is_told(pool: DecodePool, tmp_path: Path) -> None:
    """FFmpeg fills damaged parts with their neighbours, and goes on from there as if nothing was."""
    whole = encode(tmp_path / "v.mp4", frames=40, options={"g": "10"})
    expected = outcomes(pool, whole, "video")
    draw = random.Random(3)
    num_told = num_missed = 0
    for index in range(24):  # x264 does not repeat itself bit for bit, so that some draws are hard
        got = outcomes(pool, damage(whole, tmp_path / f"{index}.mp4", draw), "video")
        for one, right in zip(got, expected, strict=True):
            assert one == "corrupt" if isinstance(one, str) else one.shape == right.shape
            num_told += isinstance(one, str)
            num_missed += not isinstance(one, str) and not np.array_equal(one, right)
    # Bits can become another valid stream, which no decoder can tell.
    assert num_told > num_missed


def test_decord_and_pyav_tell_the_same_damage(tmp_path: Path) -> None:
    whole = encode(tmp_path / "v.mp4", frames=40, options={"g": "10"})
    draw = random.Random(1)
    told = []
    for index in range(6):
        path = damage(whole, tmp_path / f"{index}.mp4", draw)
        for without_decord in (False, True):
            source = Source(str(path), "video")
            reader = source.reader(without_decord)
            assert reader.name == ("pyav" if without_decord else "decord")
            try:
                list(reader.frames(np.arange(40)))
            except (ClipError, *decord.Error):
                told.append((index, reader.name))
            source.close()
    assert len(told) > 6
    assert [i for i, name in told if name == "decord"] == [i for i, name in told if name == "pyav"]


def test_what_is_no_file_is_never_opened(pool: DecodePool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    write_socket(tmp_path / "socket.mp4")
    what = {
        "pipe.mp4": ("unreadable", "a named pipe"),
        "folder.mp4": ("unreadable", "a folder"),
        "loop.mp4": ("unreadable", "Too many levels of symbolic links"),
        "socket.mp4": ("unreadable", "a socket"),
        "/dev/zero": ("unreadable", "a character device"),
        "nul\0.mp4": ("unreadable", "null byte"),
        "x" * 300 + ".mp4": ("unreadable", "File name too long"),
        "gone.mp4": ("missing", "no such file"),
    }
    for name, (reason, message) in what.items():
        for identity_only in (False, True):
            with pytest.raises(ClipError, match=message) as caught:
                pool.probe(str(tmp_path / name), "video", identity_only=identity_only).result()
            assert caught.value.reason == reason, name


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(pool: DecodePool, tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4")
    path.chmod(0)
    with pytest.raises(SourceError, match="Permission denied"):
        pool.probe(str(path), "video").result()


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_the_name_of_its_file(pool: DecodePool, tmp_path: Path, name: str) -> None:
    if name.endswith(".gif"):
        bad_videos.write_gif(tmp_path / name)
    else:
        encode(tmp_path / "v.mp4").rename(tmp_path / name)
    got = outcomes(pool, tmp_path / name, "video")
    (tmp_path / name).rename(tmp_path / f"plain{Path(name).suffix}")
    expected = read_with_pyav(tmp_path / f"plain{Path(name).suffix}")
    np.testing.assert_array_equal(np.concatenate(got), expected[:10])


def test_a_frame_that_is_too_large_is_refused_where_the_table_is_trusted(
    pool: DecodePool, tmp_path: Path
) -> None:
    for name, kind in (("large.mp4", "video"), ("bomb.png", "image")):
        next(k for k in KINDS if k.name == name).make(tmp_path / name)
        with pytest.raises(ClipError, match=r"corpus\.max_pixels allows 262144 pixels") as caught:
            pool.decode(make_clip(tmp_path / name, (1, 64, 96), kind=kind)).result()
        assert caught.value.reason == "too_large"


def test_a_clip_that_needs_too_much_memory_fails_alone(tmp_path: Path) -> None:
    bad_videos.write_bomb(tmp_path / "bomb.png")
    write_video(tmp_path / "v.mp4", moving_pattern(5, 64, 96))
    with DecodePool(num_processes=1, num_buffers=2, timeout_s=60, memory_bytes=300 << 20) as pool:
        bomb = pool.decode(make_clip(tmp_path / "bomb.png", (1, 64, 96), kind="image"))
        fine = pool.decode(make_clip(tmp_path / "v.mp4", (5, 64, 96)))
        with pytest.raises(ClipError, match=r"run\.decode_memory_bytes") as caught:
            bomb.result()
        assert caught.value.reason == "out_of_memory"
        np.testing.assert_array_equal(pixels_of(fine.result()), read_with_pyav(tmp_path / "v.mp4"))


def test_grey_of_sixteen_bits_keeps_its_shades(pool: DecodePool, tmp_path: Path) -> None:
    kind = next(k for k in KINDS if k.name == "grey16.png")
    kind.make(tmp_path / kind.name)
    grey = bad_videos.picture()[..., 0]
    (got,) = outcomes(pool, tmp_path / kind.name, "image")
    np.testing.assert_array_equal(got[0], np.repeat(grey[..., None], 3, axis=2))


def test_random_damage_ends_in_frames_or_reasons(pool: DecodePool, tmp_path: Path) -> None:
    fuzz = Fuzz(tmp_path, 1, pool, ["front.mp4", "v.mkv", "v.ts", "v.avi", "vp9.webm", "v.mpg"])
    for _ in range(60):
        fuzz.step()
    outcomes = {outcome for _, outcome in fuzz.counts}
    assert f"ok: {video_fuzz.WHOLE}" in outcomes
    reasons = {outcome.partition(": ")[2] for outcome in outcomes if not outcome.startswith("ok")}
    assert "corrupt" in reasons
    assert not reasons & {"decoder_crashed", "decode_timeout"}
    # What was cut off is gone, and leaves no trace in what is not.
    for outcome in (video_fuzz.CONCEALED, video_fuzz.SCATTERED):
        assert ("cut_off", f"ok: {outcome}") not in fuzz.counts


# Whole runs

CAPTIONS = {
    "nul": "a\0b",
    "control": "bell \x07 escape \x1b[31m",
    "lines": "one\r\ntwo\u2028three",
    "right_to_left": "\u202e\u05e9\u05dc 💡",
    "megabyte": "word " * 200_000 + "end",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "corpus"
    folder.mkdir()
    for kind in KINDS:
        kind.make(folder / kind.name)
    for name, caption in CAPTIONS.items():
        encode(folder / f"{name}.mp4", seed=1)
        (folder / f"{name}.txt").write_text(caption, newline="")
    for name in NAMES:
        if name.endswith(".mp4"):
            encode(folder / "v.mp4", seed=2).rename(folder / name)
    return folder


def run(folder: Path, corpus: Path, status: int) -> latentcache.Cache:
    sections = {"corpus": {"max_pixels": bad_videos.MAX_PIXELS}, "run": {"max_failed_fraction": 1}}
    run_job(
        "precompute", make_config(folder, corpus, str(folder / "cache"), **sections), status=status
    )
    return latentcache.open_cache(str(folder / "cache"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> latentcache.Cache:
    return run(tmp_path_factory.mktemp("all"), corpus, status=3)


def test_a_run_over_all_of_it_tells_every_reason(cache: latentcache.Cache) -> None:
    rows = cache.table().to_pylist()
    reasons: dict[str, set[str | None]] = {}
    for row in rows:
        reasons.setdefault(row["source"], set()).add(row["reason"])
        assert (row["status"] == "ok") == (row["reason"] is None)
        assert row["reason"] is None or (row["message"] and row["reason"] in REASONS)
    for kind in KINDS:
        got = reasons.pop(kind.name)
        assert got <= set(kind.reasons), kind.name
        assert got == set(kind.reasons) or not kind.is_exact, kind.name
    plain = {f"{name}.mp4" for name in CAPTIONS} | {n for n in NAMES if n.endswith(".mp4")}
    assert reasons == {name: {None} for name in plain}


@pytest.mark.long
def test_the_good_ones_are_those_of_a_run_over_them_alone(
    cache: latentcache.Cache, corpus: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "corpus"
    alone.mkdir()
    for kind in GOOD:
        (alone / kind.name).symlink_to(corpus / kind.name)
    expected = run(tmp_path, alone, status=0)
    keys = expected.table()["key"].to_pylist()
    assert len(keys) > len(GOOD)
    for key in keys:
        got, want = cache.stored(key), expected.stored(key)
        assert got.equal(want), key


def test_captions_come_back_as_they_were(cache: latentcache.Cache) -> None:
    for name, caption in CAPTIONS.items():
        assert cache.sample(f"{name}.mp4#0")["caption"] == caption.strip()


def test_a_run_goes_on_where_one_clip_hangs_and_one_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("a.mp4", "hang.mp4", "segfault.mp4", "z.mp4"):
        write_video(corpus / name, moving_pattern(5, 64, 96))
    monkeypatch.setitem(DecodePool.__init__.__kwdefaults__, "program", "tests.tools.sleeper")
    limits = {"decode_timeout_s": 3, "max_failed_fraction": 1}
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"), run=limits)
    monkeypatch.setattr("sys.argv", ["precompute", str(config)])
    assert precompute.main() == 3
    table = latentcache.open_cache(str(tmp_path / "cache")).table()
    assert dict(zip(table["source"].to_pylist(), table["reason"].to_pylist(), strict=True)) == {
        "a.mp4": None,
        "hang.mp4": "decode_timeout",
        "segfault.mp4": "decoder_crashed",
        "z.mp4": None,
    }


@pytest.mark.long
def test_sources_that_are_alike_are_all_there(tmp_path: Path) -> None:
    corpus = tmp_path / "videos"
    corpus.mkdir()
    write_video(corpus / "a.mp4", moving_pattern(5, 64, 96))
    (corpus / "same.mp4").write_bytes((corpus / "a.mp4").read_bytes())
    rows = [{"video": "videos/a.mp4"}, {"video": "videos/a.mp4"}, {"video": "videos/same.mp4"}]
    rows.append({"video": "videos/../videos/a.mp4"})
    table = write_csv(tmp_path / "t.csv", rows)
    run_job("precompute", make_config(tmp_path, table, str(tmp_path / "cache")))
    cache = latentcache.open_cache(str(tmp_path / "cache"))
    keys = ["videos/a.mp4#0", "videos/a.mp4@2#0", "videos/same.mp4#0", "videos/../videos/a.mp4#0"]
    assert sorted(cache.table()["key"].to_pylist()) == sorted(keys)
    first = cache.stored(keys[0])
    assert all(cache.stored(key).equal(first) for key in keys)


def test_fitting_takes_any_size_of_frame() -> None:
    out = np.empty((64, 96, 3), np.uint8)
    for size in ((1, 1), (1, 300), (300, 1), (63, 95)):
        fit_frame(np.full((*size, 3), 7, np.uint8), out, "bicubic")
        assert (out == 7).all()
