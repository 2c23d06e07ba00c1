"""Decoding processes that are killed, starve or wait for a network: never a reason against a clip."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentcache.decoders import asking
from latentcache.decoders import pool as decode_pool
from latentcache.decoders.identity import identify_url
from latentcache.decoders.pool import DecodePool
from latentcache.errors import ClipError, MachineError, SourceError
from latentcache.storage import retry
from tests.decoders.test_pool import make_clip, pixels_of
from tests.tools.http_files import Server, serve
from tests.tools.mounts import disk
from tests.tools.sick import sick
from tests.tools.videos import moving_pattern, write_video

pytest.importorskip("aiohttp", reason="fsspec reads http with it")
pytestmark = pytest.mark.slow

SHAPE = (5, 64, 96)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(asking, "TROUBLE_TRIES", 2)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    return write_video(folder / "v.mp4", moving_pattern(*SHAPE))


@pytest.fixture
def server(video: Path) -> Iterator[Server]:
    with serve(video.parent) as server:
        yield server


def make_pool(*, timeout_s: float = 60.0, **limits: Any) -> DecodePool:
    limits = {"program": "tests.tools.sick", "schemes": ["sick"], **limits}
    return DecodePool(num_processes=1, num_buffers=2, timeout_s=timeout_s, **limits)


def clip_at(url: str, video: Path) -> Any:
    return make_clip(Path(url), SHAPE, identity=identify_url(str(video))).__class__(
        **{**vars(make_clip(video, SHAPE)), "url": url}
    )


@pytest.mark.long
def test_a_slow_download_is_no_slow_decoder(server: Server, video: Path) -> None:
    """Fetching takes longer than decoding may, and a source that gives nothing is no clip's failure."""
    server.pause_s = 2.0
    with make_pool(timeout_s=1.5, stall_s=60) as pool:
        decoded = pool.decode(clip_at(f"{server.url}/v.mp4", video)).result()
        assert decoded.decode_s < server.pause_s
        pixels_of(decoded)
    with (
        make_pool(stall_s=0.5) as pool,
        pytest.raises(SourceError, match=r"gave no byte for 0\.5 s"),
    ):
        pool.decode(clip_at(f"{server.url}/v.mp4", video)).result()


@pytest.mark.parametrize(
    ("number", "name", "error"),
    [
        (signal.SIGKILL, "killed by SIGKILL", MachineError),
        (signal.SIGSEGV, "killed by SIGSEGV", ClipError),
        (36, "killed by signal 36", MachineError),
    ],
)
def test_a_process_that_is_killed_says_nothing_and_one_that_crashes_does(
    video: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str, error: type[Exception]
) -> None:
    monkeypatch.setenv("LATENTCACHE_TEST_KILL", str(int(number)))
    monkeypatch.setattr(decode_pool, "DECODE_ATTEMPTS", asking.DECODE_ATTEMPTS[-1:])
    with make_pool() as pool, pytest.raises(error, match=name):
        pool.decode(make_clip(video, SHAPE)).result()


def test_a_disk_without_room_for_what_is_fetched_stops(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = os.sysconf("SC_PAGESIZE")
    video.write_bytes(video.read_bytes() + b"\0" * page)
    with disk(tmp_path / "full", 2 * page):
        (tmp_path / "full" / "something").write_bytes(b"x" * page)
        monkeypatch.setenv("TMPDIR", str(tmp_path / "full"))
        with make_pool() as pool:
            clip = clip_at(f"sick://{video}", video)
            with pytest.raises(MachineError, match=r"No space left on device.*TMPDIR"):
                pool.decode(clip).result()
            (tmp_path / "full" / "something").unlink()
            pixels_of(pool.decode(clip).result())


@pytest.mark.long
def test_a_clip_on_which_decoders_hang_is_blamed_only_if_it_can_be_read(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what the file is, a disk that does not answer makes decoders wait."""
    hanging = video.rename(video.with_name("hang.mp4"))
    with make_pool(timeout_s=1.5) as pool:
        with sick(video.parent, "read", errno.EIO), pytest.raises(SourceError, match="sick://"):
            pool.decode(clip_at(f"sick://{hanging}", hanging)).result()
        with pytest.raises(ClipError) as caught:
            pool.decode(make_clip(hanging, SHAPE)).result()
        assert caught.value.reason == "decode_timeout"


@pytest.mark.parametrize("what", ["probe", "decode"])
def test_a_mount_that_does_not_answer_is_named_and_given_up(video: Path, what: str) -> None:
    folder = video.parent.with_name("dead-mount")
    folder.symlink_to(video.parent)
    path = folder / video.name
    with make_pool(stall_s=0.5) as pool:
        clip = make_clip(path, SHAPE)
        asked = pool.probe(clip.url, "video") if what == "probe" else pool.decode(clip)
        with pytest.raises(SourceError, match=rf"reading .*{path.name} gave no byte for 0\.5 s"):
            asked.result()


def test_a_system_that_starts_no_process_is_no_fault_of_a_clip(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with make_pool() as pool:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", refuse)
            with pytest.raises(MachineError, match="temporarily unavailable"):
                pool.decode(make_clip(video, SHAPE)).result()
        pixels_of(pool.decode(make_clip(video, SHAPE)).result())
