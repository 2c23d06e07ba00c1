"""Remote videos of which only parts are fetched: the same facts and pixels as those of the file itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import ExifTags, Image

from latentcache.core.machine import anonymous_file
from latentcache.core.records import Clip
from latentcache.decoders import source as sources
from latentcache.decoders.identity import identify_url
from latentcache.decoders.pool import DecodePool
from latentcache.decoders.process import Buffers, Worker
from latentcache.storage import retry, source_cache
from tests.tools.http_files import Server, serve
from tests.tools.long_videos import RATE, write_long
from tests.tools.matroska_videos import tracks_at_the_end
from tests.tools.videos import SHARED_VIDEOS, needs_shared_videos

pytest.importorskip("aiohttp", reason="fsspec reads http with it")
pytestmark = pytest.mark.slow

MAX_PROBE_BYTES = 1 << 20
SECONDS = 100
SIZE = (72, 128)
HEADS = {"head": {"movflags": "faststart"}, "tail": {}}
#: Matroska files by codec, and options of the encoder. Of one, pictures are lost here and there.
MATROSKA = {
    "h264": ("libx264", {"preset": "ultrafast", "bf": "2"}),
    "lossy": ("libx264", {"preset": "ultrafast"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}),
}
LOSSY = frozenset({3, 4, 17, 30})
#: The first of them with its tracks at the end, as mkvpropedit writes it.
MOVED = "moved"


@pytest.fixture(autouse=True)
def folder_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of sources of this test; each Worker stands for a decoding process."""
    folder = tmp_path / "sources"
    monkeypatch.setattr(source_cache, "default_folder", lambda: folder)
    return folder


@pytest.fixture(scope="module", name="corpus")
def corpus_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for name, options in HEADS.items():
        write_long(
            folder / f"{name}.mp4", SECONDS, size=SIZE, container=options, preset="ultrafast"
        )
    for name, (codec, options) in MATROSKA.items():
        without = LOSSY if name == "lossy" else frozenset[int]()
        path = folder / f"{name}.mkv"
        write_long(path, SECONDS, size=SIZE, codec=codec, without=without, **options)
    tracks_at_the_end(shutil.copy(folder / "h264.mkv", folder / f"{MOVED}.mkv"))
    return folder


@pytest.fixture(name="server")
def server_fixture(corpus: Path) -> Iterator[Server]:
    with serve(corpus) as server:
        server.has_tags = True
        yield server


def make_worker(*, frames: int = 0, told: list[Any] | None = None, **settings: Any) -> Worker:
    fd = anonymous_file("pixels")
    os.ftruncate(fd, max(1, frames * SIZE[0] * SIZE[1] * 3))
    told = [] if told is None else told
    settings = {"options": {}, "max_pixels": None, "source_cache_bytes": 1 << 30, **settings}
    return Worker(Buffers([fd]), settings, told.append)


def probe(url: str, **settings: Any) -> dict[str, Any]:
    """Probe a source, with the times of all frames unless it is by time."""
    request = {"op": "probe", "url": url, "kind": "video", "identity_only": False}
    request["times"] = not settings.get("by_time")
    return make_worker(**settings).answer(request)


def clip(url: str, identity: str, start: int, frames: int, fps: float | None) -> dict[str, Any]:
    return {
        "op": "decode", "url": url, "kind": "video", "identity": identity, "start": start,
        "frames": frames, "fps": fps, "height": SIZE[0], "width": SIZE[1], "buffer": 0,
        "without_decord": False, "interpolation": "bicubic",
    }  # fmt: skip


def decode(worker: Worker, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    answer = worker.answer(request)
    pixels = worker._buffers.view(0, (request["frames"], *SIZE, 3)).copy()
    return answer, pixels


def without(answer: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in names}


@pytest.mark.parametrize("name", HEADS)
def test_probing_reads_the_header_and_a_few_pictures(
    server: Server, corpus: Path, name: str
) -> None:
    path = corpus / f"{name}.mp4"
    assert path.stat().st_size > 4 * MAX_PROBE_BYTES
    local = probe(str(path))
    assert local["frames"] == SECONDS * RATE
    assert probe(f"{server.url}/{path.name}") == local
    assert server.num_bytes <= MAX_PROBE_BYTES


@pytest.mark.parametrize("name", [*MATROSKA, MOVED])
def test_probing_matroska_reads_header_cues_and_the_last_pictures(
    server: Server, corpus: Path, name: str
) -> None:
    path = corpus / f"{name}.mkv"
    local, remote = probe(str(path)), probe(f"{server.url}/{path.name}", by_time=True)
    assert server.num_bytes <= MAX_PROBE_BYTES < path.stat().st_size / 2
    names = ("times_s", "frames", "fps") if name == "lossy" else ("times_s",)
    assert "times_s" not in remote
    assert without(remote, *names) == without(local, *names)
    assert remote["frames"] == SECONDS * RATE
    assert local["frames"] == SECONDS * RATE - len(LOSSY) * (name == "lossy")


def test_matroska_of_which_frames_are_counted_is_read_whole(server: Server, corpus: Path) -> None:
    path, url = corpus / "lossy.mkv", f"{server.url}/lossy.mkv"
    local = probe(str(path))
    assert probe(url) == local
    assert server.num_bytes >= path.stat().st_size
    frames = 25
    request = clip(url, local["identity"], 1000, frames, None)
    remote, pixels = decode(make_worker(frames=frames, by_ranges=True), request)
    _, expected = decode(make_worker(frames=frames), {**request, "url": str(path)})
    assert remote["frame_numbers"] == [*range(1000, 1025)]
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    "start_s", [48.0, *(pytest.param(s, marks=pytest.mark.long) for s in (0.0, 5.1, 94.9))]
)
@pytest.mark.parametrize("name", [*MATROSKA, MOVED])
def test_a_clip_of_matroska_reads_about_its_own_bytes(
    server: Server, corpus: Path, name: str, start_s: float
) -> None:
    path, clip_s, fps = corpus / f"{name}.mkv", 5.0, 16.0
    url, frames, start = f"{server.url}/{path.name}", round(clip_s * fps), round(start_s * fps)
    identity = probe(url, by_time=True)["identity"]
    local, pixels = decode(
        make_worker(frames=frames), clip(str(path), identity, start, frames, fps)
    )
    assert "reason" not in local, local
    server.num_bytes = 0
    remote, ranged = decode(
        make_worker(frames=frames, by_ranges=True), clip(url, identity, start, frames, fps)
    )
    own = ("decoder", "decode_s", "fetch_s", "frame_numbers")
    rates = [answer["picture"].pop("source_fps") for answer in (remote, local)]
    assert without(remote, *own) == without(local, *own)
    assert name == "lossy" or rates[0] == rates[1]
    assert rates[0] == pytest.approx(RATE)
    np.testing.assert_array_equal(ranged, pixels)
    assert server.num_bytes <= 1.5 * path.stat().st_size * clip_s / SECONDS


@pytest.mark.parametrize("fault", ["no cues", "cut"])
def test_matroska_that_is_not_as_usual_is_read_whole(
    tmp_path: Path, corpus: Path, fault: str
) -> None:
    path = tmp_path / "v.mkv"
    if fault == "no cues":
        write_long(path, 60, size=SIZE, preset="ultrafast", container={"live": "1"})
    else:
        data = (corpus / "h264.mkv").read_bytes()
        path.write_bytes(data[: int(len(data) * 0.8)])
    frames, fps = 80, 16.0
    with serve(tmp_path) as server:
        server.has_tags = True
        url = f"{server.url}/v.mkv"
        local, remote = probe(str(path)), probe(url, by_time=True)
        for answer in (local, remote):
            for name in ("message", "times_s"):
                answer.pop(name, None)
        assert remote == local
        for start in (40, 400, 780):
            answers = []
            for where in (str(path), url):
                worker = make_worker(frames=frames, by_ranges=True)
                request = clip(where, remote["identity"], start, frames, fps)
                answer, pixels = decode(worker, request)
                answers.append((answer.get("reason"), "reason" in answer or pixels.tobytes()))
            assert answers[0] == answers[1], start


def test_probing_an_image_reads_its_header(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=98)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={ExifTags.Base.Orientation: 6})
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with serve(tmp_path) as server:
        server.has_tags = True
        for name in ("a.jpg", "a.tif", "a.png"):
            request = {"op": "probe", "kind": "image", "identity_only": False, "times": False}
            local = make_worker().answer({**request, "url": str(tmp_path / name)})
            server.num_bytes = 0
            remote = make_worker().answer({**request, "url": f"{server.url}/{name}"})
            assert remote == local
            assert name == "a.png" or server.num_bytes < (tmp_path / name).stat().st_size / 2
        assert local["height"] == 900


def test_a_box_of_any_length_is_judged_by_the_whole_file(tmp_path: Path, corpus: Path) -> None:
    """A damaged length leads to where no offset of the system does."""
    data = bytearray((corpus / "tail.mp4").read_bytes())
    at = data.index(b"free") - 4  # FFmpeg leaves room for a length of 64 bits
    data[at : at + 16] = b"\0\0\0\1mdat" + b"\xff" * 8
    (tmp_path / "v.mp4").write_bytes(data)
    with serve(tmp_path) as server:
        server.has_tags = True
        local, remote = probe(str(tmp_path / "v.mp4")), probe(f"{server.url}/v.mp4")
    assert local["reason"] == remote["reason"] == "unreadable"


def test_damage_within_a_clip_is_judged_by_the_whole_file(tmp_path: Path, corpus: Path) -> None:
    """Damage elsewhere is not seen, for nobody reads it."""
    data = bytearray((corpus / "h264.mkv").read_bytes())
    at = len(data) // 2
    data[at : at + 4096] = bytes(4096)
    (tmp_path / "v.mkv").write_bytes(data)
    frames = 80
    with serve(tmp_path) as server:
        server.has_tags = True
        url = f"{server.url}/v.mkv"
        identity = probe(url, by_time=True)["identity"]
        whole = make_worker(frames=frames).answer(
            clip(str(tmp_path / "v.mkv"), identity, 800, frames, 16.0)
        )
        reasons = [
            make_worker(frames=frames, by_ranges=True)
            .answer(clip(url, identity, start, frames, 16.0))
            .get("reason")
            for start in (0, 780)
        ]
    assert reasons == [None, whole["reason"]]


@needs_shared_videos
@pytest.mark.long
@pytest.mark.parametrize("cut", [1.0, 0.9, 0.5])
def test_probing_real_files_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: float
) -> None:
    """Those that ranges do not tell of, too: they are fetched whole."""
    monkeypatch.setattr(sources, "_SMALL_BYTES", {"video": 0, "image": 0})
    with serve(tmp_path) as server:
        server.has_tags = True
        for original in sorted(
            [*SHARED_VIDEOS.iterdir(), *SHARED_VIDEOS.with_name("cases").iterdir()]
        ):
            data = original.read_bytes()
            path = tmp_path / original.name
            path.write_bytes(data[: int(len(data) * cut)])
            url = f"{server.url}/{path.name}"
            local, remote, by_time = probe(str(path)), probe(url), probe(url, by_time=True)
            for answer in (local, remote, by_time):
                answer.pop("message", None)  # which may name the file
            assert remote == local, path.name
            inexact = ("frames", "fps") if path.suffix in (".mkv", ".webm") else ()
            assert without(by_time, *inexact) == without(local, "times_s", *inexact), path.name


@pytest.mark.parametrize(("fps", "start_s"), [(16.0, 0.0), (None, 49.3), (16.0, 94.9)])
def test_a_clip_reads_about_its_own_bytes(
    server: Server, corpus: Path, fps: float | None, start_s: float
) -> None:
    """What probing has fetched is still there; the pixels are those of the file itself."""
    path, clip_s = corpus / "tail.mp4", 5.0
    url, rate = f"{server.url}/tail.mp4", fps or RATE
    start, frames = round(start_s * rate), round(clip_s * rate)
    identity = probe(url)["identity"]
    local, pixels = decode(
        make_worker(frames=frames), clip(str(path), identity, start, frames, fps)
    )
    assert "reason" not in local, local
    server.num_bytes = 0
    remote, ranged = decode(
        make_worker(frames=frames, by_ranges=True), clip(url, identity, start, frames, fps)
    )
    names = ("decoder", "decode_s", "fetch_s")
    assert without(remote, *names) == without(local, *names)
    np.testing.assert_array_equal(ranged, pixels)
    assert server.num_bytes <= 1.5 * path.stat().st_size * clip_s / SECONDS
    assert remote["fetch_s"] > 0


def write_dv(path: Path) -> Path:
    """Write PAL DV, whose pictures say that they are interlaced, and whose header does not."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("dvvideo", rate=25)
        stream.height, stream.width, stream.pix_fmt = 576, 720, "yuv420p"
        for value in range(16):
            picture = np.full((576, 720, 3), 8 * value, dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def test_pictures_say_the_same_of_a_part(tmp_path: Path) -> None:
    path = write_dv(tmp_path / "dv.mov")
    with serve(tmp_path) as server:
        server.has_tags = True
        url, identity = f"{server.url}/dv.mov", identify_url(str(path))
        here = make_worker(frames=3).answer(clip(str(path), identity, 0, 3, None))
        there = make_worker(frames=3, by_ranges=True).answer(clip(url, identity, 0, 3, None))
        assert server.num_bytes < path.stat().st_size
    assert here["picture"]["interlaced"] is True
    assert there["picture"] == here["picture"]


def test_processes_share_what_was_fetched(server: Server, corpus: Path) -> None:
    path, url = corpus / "tail.mp4", f"{server.url}/tail.mp4"
    identity = identify_url(str(path))
    first, second = (make_worker(frames=10), make_worker(frames=10))
    expected = decode(make_worker(frames=10), clip(str(path), identity, 7, 10, None))
    for worker in (first, second):
        answer, pixels = decode(worker, clip(url, identity, 7, 10, None))
        assert answer["decoder"] == expected[0]["decoder"]
        np.testing.assert_array_equal(pixels, expected[1])
    assert server.num_bytes == path.stat().st_size


def test_a_source_replaced_between_clips_is_another(tmp_path: Path) -> None:
    path = write_long(tmp_path / "v.mp4", 40, size=SIZE, preset="ultrafast")
    with serve(tmp_path) as server:
        server.has_tags = True
        url = f"{server.url}/v.mp4"
        identity = probe(url)["identity"]
        worker = make_worker(frames=25, by_ranges=True)
        assert "decoder" in worker.answer(clip(url, identity, 0, 25, None))
        write_long(path, 40, size=SIZE, noise=32, preset="ultrafast")
        assert worker.answer(clip(url, identity, 700, 25, None))["reason"] == "source_changed"


@pytest.mark.parametrize("fault", [503, 403])
def test_a_server_that_fails_amid_a_clip_says_nothing_of_it(
    server: Server, corpus: Path, fault: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        retry, "FIRST_WAIT_S", 60.0
    )  # longer than the budget: nothing is tried again
    url = f"{server.url}/tail.mp4"
    identity = probe(url)["identity"]
    worker = make_worker(frames=25, by_ranges=True)
    assert worker.answer(clip(url, identity, 0, 25, None))["frame_numbers"][0] == 0
    server.fault = fault
    answer = worker.answer(clip(url, identity, 1200, 25, None))
    assert answer.get("lacks") == "source"
    server.fault = None
    assert worker.answer(clip(url, identity, 1200, 25, None))["frame_numbers"][0] == 1200


def test_the_clock_of_decoding_stands_still_while_blocks_are_fetched(
    server: Server, corpus: Path
) -> None:
    url, told = f"{server.url}/tail.mp4", []
    identity = probe(url)["identity"]
    make_worker(frames=25, told=told, by_ranges=True).answer(clip(url, identity, 1200, 25, None))
    states = [state["reading"] for state in told]
    assert states.count(True) > 2
    assert states[-1] is False


def make_pool(**settings: Any) -> DecodePool:
    settings = {"num_processes": 1, "num_buffers": 2, "timeout_s": 60.0, **settings}
    return DecodePool(source_cache_bytes=1 << 30, by_ranges=True, **settings)


def test_a_pool_fetches_ahead_and_leaves_nothing_behind(
    server: Server, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten clips of two files, each byte once; what is there goes with the last pool that decodes."""
    monkeypatch.undo()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    clips = [
        Clip(
            key=f"{number}", source=name, url=f"{server.url}/{name}.mp4", kind="video",
            identity=identify_url(str(corpus / f"{name}.mp4")), start=number * 250, frames=50, fps=None,
            height=SIZE[0], width=SIZE[1],
        )
        for name in HEADS for number in range(5)
    ]  # fmt: skip
    with make_pool() as prober:
        for name in HEADS:
            prober.probe(f"{server.url}/{name}.mp4", "video").result()
    folder = source_cache.default_folder()
    assert folder.parent == tmp_path
    assert list(folder.glob("*.data*")), "what probing has fetched is of use to decoding"
    server.num_bytes = 0
    with make_pool() as pool:
        fetch_s = []
        for done in [pool.decode(clip) for clip in clips]:
            decoded = done.result()
            fetch_s.append(decoded.fetch_s)
            decoded.release()
    assert sum(fetch_s) > 0
    total = sum((corpus / f"{name}.mp4").stat().st_size for name in HEADS)
    assert server.num_bytes <= 1.5 * total * len(clips) / SECONDS
    assert not list(folder.glob("*.data*"))


def test_a_storage_without_tags_is_read_as_a_whole_by_each(server: Server, corpus: Path) -> None:
    """It cannot say whether a file was replaced between two ranges. Nobody fetches ahead for another."""
    server.has_tags = False
    path, url = corpus / "tail.mp4", f"{server.url}/tail.mp4"
    request = clip(url, identify_url(str(path)), 100, 10, None)
    assert make_worker().answer({**request, "op": "fetch"}) == {"fetch_s": 0.0}
    assert server.num_bytes == 0
    worker = make_worker(frames=10, by_ranges=True)
    assert worker.answer(request)["fetch_s"] > 0
    worker._close()
    assert server.num_bytes >= path.stat().st_size
