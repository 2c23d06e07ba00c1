"""Copies of remote sources in TMPDIR: none is left behind by a process that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from latentcache.decoders.pool import DecodePool
from latentcache.decoders.temporary_copies import new_copy, remove_copies_of, remove_orphans
from tests.tools.http_files import serve
from tests.tools.videos import moving_pattern, write_video

#: A process that is killed while it has a copy.
DIES = """
import os, signal
from latentcache.decoders.temporary_copies import new_copy
copy = new_copy(".mp4")
print(copy.name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_copy_goes_when_it_is_closed(own_folder: Path) -> None:
    with new_copy(".mp4") as copy:
        assert Path(copy.name).suffix == ".mp4"
        assert [path.name for path in own_folder.iterdir()] == [Path(copy.name).name]
    assert not [*own_folder.iterdir()]


@pytest.mark.slow
def test_a_copy_of_a_killed_process_is_removed_and_that_of_a_living_one_stays(
    own_folder: Path,
) -> None:
    def dead_copy() -> Path:
        done = subprocess.run([sys.executable, "-c", DIES], capture_output=True, text=True)
        return Path(done.stdout.strip())

    with new_copy(".mp4") as living:
        old, known = dead_copy(), dead_copy()
        for path in (old, known, Path(living.name)):
            os.utime(path, (1, 1))
        remove_copies_of(int(known.name.split("-")[2]))
        assert sorted(own_folder.iterdir()) == sorted([old, Path(living.name)])
        remove_copies_of(os.getpid())
        remove_orphans()
        assert [*own_folder.iterdir()] == [Path(living.name)]
    fresh = dead_copy()
    remove_orphans()
    assert fresh.exists(), "it may be about to be locked"


@pytest.mark.slow
def test_a_pool_leaves_nothing_behind(own_folder: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", moving_pattern(9, 64, 96))
    pool = DecodePool(num_processes=1, num_buffers=1, timeout_s=60)
    with serve(videos) as server, pool:
        pool.probe(f"{server.url}/a.mp4", "video").result()
        (copy,) = own_folder.iterdir()
        assert copy.stat().st_size == (videos / "a.mp4").stat().st_size
    assert not [*own_folder.iterdir()]
