"""Two runs on storage that cannot create on condition: one writes, and one that has lost its lease stops.

The processes and the storage are real; leases last for seconds here.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentcache.format import checksum
from latentcache.format.lease import Lease, read_lease
from latentcache.format.paths import LEASE
from latentcache.storage.folder import Storage
from tests.tools import plain  # noqa: F401 - registers the file system
from tests.tools.caches import ROOT, assert_same_cache, lines_of, make_config, run_inline
from tests.tools.encoders import slow
from tests.tools.videos import moving_pattern, write_video

OK, STOPPED = 0, 1
LEASE_S = 4.0


@pytest.fixture(autouse=True, scope="module")
def fast() -> Iterator[None]:
    """Runs in this process take no time to encode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(slow.ENCODE_S, "0")
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lease") / "corpus"
    folder.mkdir()
    for index in range(4):
        write_video(folder / f"v{index}.mp4", moving_pattern(41, 64, 96, seed=index))
    return folder


@pytest.fixture(scope="module")
def clean(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of a run that had nothing to fear, on storage that creates on condition."""
    folder = tmp_path_factory.mktemp("clean")
    sections = {"cache": {"shard_clips": 1}, "encoder": {"kind": slow.__name__}}
    config = make_config(folder, corpus, str(folder / "cache"), **sections)
    assert run_inline("precompute", config)[0] == OK
    return folder / "cache"


@pytest.fixture
def config(tmp_path: Path, corpus: Path) -> Path:
    sections = {
        "cache": {"shard_clips": 1},
        "run": {"lease_s": LEASE_S},
        "encoder": {"kind": slow.__name__},
    }
    return make_config(tmp_path, corpus, f"plain://{tmp_path}/cache", **sections)


@pytest.fixture
def first(config: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that has committed something."""
    command = [sys.executable, "-m", "tests.tools.plain", "precompute", str(config)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = {**os.environ, slow.ENCODE_S: "0.2"}  # so that it goes on for some seconds
    process = subprocess.Popen(command, cwd=ROOT, text=True, env=env, **pipes)
    while not list(tmp_path.glob("cache/samples/*/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    with process:
        yield process
        process.kill()


def lease_of(folder: Path) -> Lease:
    found = read_lease(Storage(f"plain://{folder}/cache"))
    assert found is not None
    return found


def check_whole(folder: Path, clean: Path) -> None:
    """The cache is that of one run, and says what its storage cannot do."""
    assert not (folder / "cache" / LEASE).exists()
    assert lines_of(folder / "cache", ["exclusive"]) == [False]
    assert_same_cache(folder / "cache", clean)


def test_a_run_that_was_stopped_for_longer_than_its_lease_writes_nothing_more(
    first: subprocess.Popen[str], config: Path, tmp_path: Path, clean: Path
) -> None:
    os.kill(first.pid, signal.SIGSTOP)
    status, printed = run_inline("resume", f"plain://{tmp_path}/cache")
    assert status == STOPPED, printed
    assert f"LeaseError: plain://{tmp_path}/cache is worked on by process {first.pid} on" in printed
    assert "--take-lease" in printed
    while time.time() < lease_of(tmp_path).expires_s:
        time.sleep(0.05)
    status, printed = run_inline("precompute", config)
    assert status == OK, printed
    after = {path: path.read_bytes() for path in tmp_path.glob("cache/**/*") if path.is_file()}
    os.kill(first.pid, signal.SIGCONT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == STOPPED, said
    assert said.count("has lost the lease of") == 1, said
    assert "LeaseError: this run has lost the lease of" in said
    assert after == {p: p.read_bytes() for p in tmp_path.glob("cache/**/*") if p.is_file()}
    check_whole(tmp_path, clean)


@pytest.mark.long
def test_the_lease_of_a_killed_run_is_taken_at_once_on_its_machine_and_later_elsewhere(
    first: subprocess.Popen[str], config: Path, tmp_path: Path, clean: Path
) -> None:
    first.kill()
    first.wait()
    left = lease_of(tmp_path)
    elsewhere = dataclasses.replace(left, place="another system", expires_s=time.time() + 1000)
    path = tmp_path / "cache" / LEASE
    path.write_bytes(checksum.seal_json(dataclasses.asdict(elsewhere)))
    status, printed = run_inline("precompute", config)
    assert status == STOPPED, printed
    assert "LeaseError" in printed
    path.write_bytes(checksum.seal_json(dataclasses.asdict(left)))
    assert run_inline("precompute", config)[0] == OK
    check_whole(tmp_path, clean)


@pytest.mark.long
def test_a_lease_that_is_taken_by_force_ends_the_run_that_had_it(
    first: subprocess.Popen[str], config: Path, tmp_path: Path, clean: Path
) -> None:
    status, printed = run_inline("precompute", config, "--take-lease")
    _, said = first.communicate(timeout=120)
    assert status == OK, printed
    assert first.returncode == STOPPED, said
    assert "has lost the lease of" in said
    check_whole(tmp_path, clean)
