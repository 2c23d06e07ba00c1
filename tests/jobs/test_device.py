"""Every job that is told a device: one message and exit status 2 where it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import latentcache
from latentcache.errors import ConfigError
from latentcache.running.driver import Run
from tests.tools.caches import make_config, make_corpus, run_inline
from tests.tools.planned import planned_from

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

ABSENT = [f"cuda:{torch.cuda.device_count()}", "foo", ""]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA GPU")

#: Jobs with `--device`, and what else they must be given.
JOBS = {
    "verify": ["--sample", "1"],
    "preview": ["--sample", "1", "-o", "OUT"],
    "report": ["--clips", "1", "-o", "OUT/report.html"],
    "stream": [],
    "train_example": ["--steps", "1", "--checkpoint-dir", "OUT"],
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("device") / "corpus", 2, frames=5)


@pytest.fixture(scope="module")
def cache(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    status, printed = run_inline("precompute", make_config(folder, corpus, str(folder / "cache")))
    assert status == 3, printed  # a page.mp4 is no video
    return folder / "cache"


def run(job: str, cache: Path, out: Path, device: str) -> tuple[int, str]:
    more = [argument.replace("OUT", str(out)) for argument in JOBS[job]]
    return run_inline(job, cache, *more, "--device", device)


def assert_refused(status: int, printed: str, name: str, device: str) -> None:
    assert status == 2, printed
    assert printed.startswith(f"ConfigError: {name}={device!r} is not ")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("device", [*ABSENT, pytest.param("cuda", marks=NO_GPU)])
@pytest.mark.parametrize("job", JOBS)
def test_a_device_that_is_not_there_is_refused_before_anything_is_done(
    cache: Path, tmp_path: Path, job: str, device: str
) -> None:
    status, printed = run(job, cache, tmp_path / "out", device)
    assert_refused(status, printed, "--device", device)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("job", JOBS)
def test_jobs_take_a_device_that_is_there(
    cache: Path, tmp_path: Path, job: str, device: str
) -> None:
    status, printed = run(job, cache, tmp_path / "out", device)
    assert status == 0, printed


@pytest.mark.parametrize("device", [*ABSENT, pytest.param("cuda", marks=NO_GPU)])
def test_a_clip_is_not_decoded_on_a_device_that_is_not_there(cache: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device='{device}' is not "):
        latentcache.open_cache(str(cache)).decode("v0.mp4#0", device=device)


@NO_GPU
@pytest.mark.parametrize("runner", ["local", "ray"])
@pytest.mark.parametrize("job", ["precompute", "estimate"])
def test_runs_on_a_gpu_are_refused_before_the_corpus_is_probed(
    corpus: Path,
    tmp_path: Path,
    runner: str,
    job: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    status, printed = run_inline(job, config, f"run.runner={runner}", "run.device=cuda")
    assert_refused(status, printed, "run.device", "cuda")
    assert not (tmp_path / "cache").exists()


@NO_GPU
def test_a_plan_for_a_gpu_can_be_made_without_one(corpus: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    status, printed = run_inline("precompute", config, "run.device=cuda", "--dry-run")
    assert status == 0, printed


@NO_GPU
def test_the_local_runner_refuses_as_ray_does(corpus: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"), run={"device": "cuda"})
    prepared = planned_from(config)
    missing = prepared.missing_shards()
    with pytest.raises(ConfigError, match=r"run\.device='cuda' is not there"):
        list(Run(prepared, missing).events())
    assert prepared.missing_shards() == missing
    status, printed = run_inline("resume", tmp_path / "cache")
    assert_refused(status, printed, "run.device", "cuda")


@NO_GPU
def test_a_complete_cache_of_gpus_needs_none(cache: Path) -> None:
    status, printed = run_inline("resume", cache, "run.device=cuda")
    assert "Nothing to encode" in printed
    assert status == 3
