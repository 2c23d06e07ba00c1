"""A run that stands still (SIGSTOP) at a step, while another finishes the cache, and then goes on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import latentcache
from latentcache.format.generations import generation_path
from latentcache.inspecting.verify import verify
from latentcache.storage.folder import Storage
from tests.tools.caches import ROOT, make_config, read_files, run_inline, samples_of
from tests.tools.fault_lab import make_small_corpus

pytestmark = pytest.mark.slow

SOME_FAILED = 3
KEYS = {f"p{n}.png#0" for n in range(5)}


def config_of(folder: Path, corpus: Path, cache: Path, shard_format: str) -> Path:
    return make_config(
        folder,
        corpus,
        str(cache),
        clips={"frames": 1, "select": "first", "size": [32, 48]},
        cache={"url": str(cache), "format": shard_format, "shard_clips": 2},
        encoder={"kind": "tests.tools.encoders.noisy"},
    )


def start(step: int, *job: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tools.stopped", str(step), *map(str, job)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def has_stopped(process: subprocess.Popen[str]) -> bool:
    """Wait until it stands still, or has ended before it came to the step."""
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return True
    process.returncode = os.waitstatus_to_exitcode(status)
    return False


def stop_and_go_on(folder: Path, corpus: Path, step: int, shard_format: str) -> bool:
    """Whether the run came to that step; checks the cache, and a reader that was opened meanwhile."""
    folder.mkdir()
    cache = folder / "cache"
    config = config_of(folder, corpus, cache, shard_format)
    process = start(step, "precompute", config)
    stopped = has_stopped(process)
    if stopped:
        other = (
            ("resume", cache) if (cache / generation_path(1)).exists() else ("precompute", config)
        )
        status, printed = run_inline(*other)
        assert status == SOME_FAILED, printed
        before, committed = samples_of(cache), read_files(cache)
        reader = latentcache.open_cache(str(cache))
        os.kill(process.pid, signal.SIGCONT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == SOME_FAILED, out + err
        assert samples_of(cache) == before
        assert {reader[n]["key"] for n in range(len(reader))} == before.keys()
        written = {name for name in committed if name.startswith(("latents/", "samples/"))}
        after = read_files(cache)
        replaced = [n for n in written if after[n] != committed[n] and not n.endswith("zarr.json")]
        assert not replaced
    else:
        out, err = process.communicate(timeout=120)
        assert process.returncode == SOME_FAILED, out + err
    assert samples_of(cache).keys() == KEYS
    findings = verify(Storage(str(cache)))
    assert not findings.problems, (step, findings.problems)
    return stopped


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small_corpus(tmp_path_factory.mktemp("stopped") / "corpus")


def count_steps(folder: Path, corpus: Path, shard_format: str) -> int:
    process = start(-1, "precompute", config_of(folder, corpus, folder / "counted", shard_format))
    out, err = process.communicate(timeout=120)
    assert process.returncode == SOME_FAILED, out + err
    return int(out.rsplit("steps ", 1)[1])


def test_a_run_that_stands_still_at_a_step_is_no_harm(corpus: Path, tmp_path: Path) -> None:
    steps, rng = count_steps(tmp_path, corpus, "zarr"), random.Random(0)
    for step in rng.sample(range(steps), 1):
        stop_and_go_on(tmp_path / str(step), corpus, step, "zarr")


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("shard_format", ["zarr", "parquet"])
def test_a_run_may_stand_still_at_every_step(
    corpus: Path, tmp_path: Path, shard_format: str
) -> None:
    steps = count_steps(tmp_path, corpus, shard_format)
    stopped = [
        stop_and_go_on(tmp_path / str(step), corpus, step, shard_format) for step in range(steps)
    ]
    assert sum(stopped) > 0.9 * steps
