"""The trainer: what it learns, that it goes on exactly where it was killed, and what it refuses."""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from jobs.training import checkpoints
from jobs.training.flow_model import FlowModel, draw, flow_loss
from jobs.training.train_example import average_gradients
from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.machine import install_command
from latentcache.format.shards.protocol import ArrayLayout
from tests.tools.caches import ROOT, run_inline
from tests.tools.ranks import run_ranks
from tests.tools.synthetic import write_cache

pytestmark = pytest.mark.slow

#: 16 clips of two buckets, so that an epoch is of 9 steps, or of 4 of two processes.
TINY = ["--batch-size", "2", "--heads", "1", "--depth", "1", "--log-every", "1"]
STEPS, EVERY = 12, 4
#: Steps of a run that will be killed.
FOREVER = 10**6


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As torchrun has it: the sums of another number of threads differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_cache(str(tmp_path_factory.mktemp("train") / "cache"), stored="moments").url


def arguments(cache: str, folder: Path, *more: object, steps: int = STEPS) -> list[str]:
    options = ["--steps", steps, "--checkpoint-dir", folder, "--checkpoint-every", EVERY, *more]
    return [cache, *TINY, *map(str, options)]


def train(cache: str, folder: Path, *more: object, steps: int = STEPS, status: int = 0) -> str:
    """Train in this process; returns what was printed."""
    got, printed = run_inline("train_example", *arguments(cache, folder, *more, steps=steps))
    assert got == status, printed
    return printed


def train_in(num: int, cache: str, folder: Path, steps: int = STEPS) -> None:
    """Train in so many processes, undisturbed."""
    if num == 1:
        train(cache, folder, steps=steps)
    else:
        run_ranks(num, functools.partial(train, cache, folder, steps=steps))


def start(num: int, cache: str, folder: Path, steps: int = FOREVER) -> subprocess.Popen[str]:
    """Start as a user does, with torchrun where there are several processes."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num}", "-m"]
    command = [*(torchrun if num > 1 else []), "jobs.training.train_example"]
    return subprocess.Popen(
        [sys.executable, "-m", *command, *arguments(cache, folder, steps=steps)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if num > 1 else subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_after(process: subprocess.Popen[str], num_steps: int) -> int:
    """Kill it and all its processes once it has taken so many steps; returns the last one seen."""
    assert process.stdout is not None
    seen = (line for line in process.stdout if line.startswith("step "))
    *_, last = itertools.islice(seen, num_steps)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family)
    process.communicate()
    print(f"killed after {last}")
    return int(last.removeprefix("step").partition("/")[0])


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested dicts and lists, with where it is."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(part, f"{name}/{key}")
    else:
        yield name, value


def assert_same_checkpoint(got: Path, expected: Path) -> None:
    """The newest ones of two folders are equal, bit for bit."""
    (got_facts, got_weights), (facts, weights) = (
        checkpoints.load(checkpoints.complete(folder)[-1]) for folder in (got, expected)
    )
    assert got_facts == facts
    found, wanted = dict(tensors(got_weights)), dict(tensors(weights))
    assert found.keys() == wanted.keys()
    assert any(name.startswith("/optimiser") for name in wanted)
    for name, value in wanted.items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(found[name], value), name


@pytest.fixture(scope="module")
def expected(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run that nothing disturbed."""
    train(cache, folder := tmp_path_factory.mktemp("expected"))
    return folder


def assert_goes_on_exactly(num: int, num_kills: int, cache: str, tmp_path: Path) -> None:
    """Kill a run, and finish it; it ends as one that was not killed."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for _ in range(num_kills):
        step = kill_after(start(num, cache, killed), random.randrange(EVERY + 1, 3 * EVERY))
        newest = checkpoints.load(checkpoints.complete(killed)[-1])[0].step
        assert newest > step - EVERY - 1
    finish = start(num, cache, killed, newest + EVERY + 1)
    out, _ = finish.communicate(timeout=240)
    assert finish.returncode == 0
    assert f"resumed  from {killed}/step-{newest:08d}" in out
    train_in(num, cache, whole, newest + EVERY + 1)
    assert_same_checkpoint(killed, whole)


@pytest.mark.long
@pytest.mark.parametrize("num", [1, 2])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    num: int, cache: str, tmp_path: Path
) -> None:
    assert_goes_on_exactly(num, 1, cache, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("num", [1, 2, 3])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    num: int, cache: str, tmp_path: Path
) -> None:
    assert_goes_on_exactly(num, 4, cache, tmp_path)


@pytest.mark.long
def test_an_interrupt_says_what_is_safe(cache: str, tmp_path: Path) -> None:
    process = start(1, cache, tmp_path / "c")
    assert process.stdout is not None
    next(line for line in process.stdout if line.startswith("saved"))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"Interrupted after step \d+\. .*step-\d{8} is safe; go on with the", err)


@pytest.mark.parametrize("stop", [1, 7, 9, 11])
def test_runs_one_after_another_are_as_one(
    stop: int, cache: str, expected: Path, tmp_path: Path
) -> None:
    """Within an epoch, at its end, and in the next one."""
    assert "started  from random weights" in train(cache, tmp_path, steps=stop)
    assert f"resumed  from {tmp_path}/step-{stop:08d}" in train(cache, tmp_path)
    assert_same_checkpoint(tmp_path, expected)
    assert "nothing to do: 12 steps of 12 were taken before" in train(cache, tmp_path)


@pytest.mark.long
def test_another_number_of_processes_goes_on_with_the_batches_that_are_left(
    cache: str, tmp_path: Path
) -> None:
    train_in(2, cache, tmp_path)
    before, _ = checkpoints.load(checkpoints.complete(tmp_path)[-1])
    printed = train(cache, tmp_path, steps=STEPS + 1)
    assert "which 2 processes wrote" in printed
    assert "a step now takes 2 clips instead of 4" in printed
    after, _ = checkpoints.load(checkpoints.complete(tmp_path)[-1])
    assert before.step * 2 > before.loader["batches"] > 0  # within the second epoch
    assert after.loader == {**before.loader, "batches": before.loader["batches"] + 1}


def test_the_loss_falls(tmp_path: Path) -> None:
    def make(layout: ArrayLayout, rng: np.random.Generator, place: int) -> Array:
        """Latents of the normaliser's mean, and of one sign on each side."""
        sides = np.sign(np.arange(layout.shape[-1]) - layout.shape[-1] / 2 + 0.5)
        return np.broadcast_to(sides, layout.shape).astype(numpy_dtype(layout.dtype))

    url = write_cache(str(tmp_path / "cache"), make=make).url
    printed = train(url, tmp_path / "c", "--learning-rate", 0.01, steps=60)
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", printed)]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_what_is_random_follows_from_seed_step_and_rank_alone() -> None:
    def numbers(seed: int = 1, step: int = 2, rank: int = 3) -> torch.Tensor:
        torch.rand(1)
        draws = draw((4, 2, 1, 2, 2), caption_dropout=0.5, seed=seed, step=step, rank=rank)
        return torch.cat([draws.noise.flatten(), draws.times, draws.dropped.float()])

    assert torch.equal(numbers(), numbers())
    others = [numbers(seed=2), numbers(step=3), numbers(rank=2), numbers(step=3, rank=2)]
    assert not any(torch.equal(numbers(), other) for other in others)


def check_averages() -> None:
    """Weights whose gradients are the number of the rank."""
    torch.distributed.init_process_group("gloo")
    rank, num = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = torch.nn.Linear(3, 2)
    (rank * sum(part.sum() for part in model.parameters())).backward()
    average_gradients(model, num)
    for part in model.parameters():
        assert torch.equal(part.grad, torch.full_like(part, (num - 1) / 2))
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_all_ranks_train_with_the_mean_of_their_gradients() -> None:
    run_ranks(2, check_averages)


class Knows(torch.nn.Module):
    """Knows the latents, and so the velocity from them to the noise."""

    def __init__(self, latents: torch.Tensor) -> None:
        super().__init__()
        self.latents = latents

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, _: list[str]) -> torch.Tensor:
        return (noisy - self.latents) / times[:, None, None, None, None]


def test_the_velocity_leads_from_the_latents_to_the_noise() -> None:
    latents = torch.arange(32.0).reshape(2, 4, 1, 2, 2)
    draws = draw(latents.shape, caption_dropout=0, seed=0, step=0, rank=0)
    assert flow_loss(Knows(latents), latents, ["", ""], draws) < 1e-6
    assert flow_loss(Knows(latents + 1), latents, ["", ""], draws) > 1


def test_captions_are_seen_and_dropped_ones_are_not() -> None:
    torch.manual_seed(0)
    model = FlowModel(channels=2, patch=1, num_heads=1, depth=1)
    latents = torch.randn(2, 2, 1, 3, 3)

    def loss(captions: list[str | None], dropout: float) -> float:
        draws = draw(latents.shape, caption_dropout=dropout, seed=0, step=0, rank=0)
        return flow_loss(model, latents, captions, draws).item()

    assert loss(["a cat", "a dog"], 0) != loss(["a cat", "a cow"], 0)
    assert loss(["a cat", "a dog"], 0) != loss(["a cat", None], 0)
    assert loss(["a cat", "a dog"], 1) == loss([None, ""], 0)


def test_the_last_two_checkpoints_are_kept_and_halves_of_one_are_none(
    cache: str, expected: Path, tmp_path: Path
) -> None:
    (tmp_path / "step-00000099.tmp").mkdir()
    train(cache, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000008", "step-00000012"]
    assert_same_checkpoint(tmp_path, expected)


@pytest.mark.parametrize("name", [checkpoints.WEIGHTS, checkpoints.FACTS])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(
    name: str, cache: str, expected: Path, tmp_path: Path
) -> None:
    train(cache, tmp_path)
    newest = checkpoints.complete(tmp_path)[-1]
    data = (newest / name).read_bytes()
    (newest / name).write_bytes(data[: len(data) // 2])
    printed = train(cache, tmp_path, status=1)
    assert f"CorruptionError: the checkpoint {newest} is damaged" in printed
    newest.rename(tmp_path / "elsewhere")
    assert "resumed  from" in train(cache, tmp_path)
    assert_same_checkpoint(tmp_path, expected)


def test_other_settings_are_refused_with_their_differences(cache: str, tmp_path: Path) -> None:
    train(cache, tmp_path, steps=1)
    printed = train(cache, tmp_path, "--seed", 5, "--depth", 2, status=2)
    assert "  seed: 0 there, 5 here\n  depth: 1 there, 2 here" in printed
    other = write_cache(str(tmp_path / "other"), buckets={"5x32x32": 4}).url
    assert "another order of batches" in train(other, tmp_path, status=2)


def test_a_cache_of_ids_is_refused(tmp_path: Path) -> None:
    url = write_cache(str(tmp_path / "ids"), stored="ids", dtype="uint16").url
    assert "noise cannot be added to them" in train(url, tmp_path / "c", status=2)


def test_odd_latents_have_smaller_patches(tmp_path: Path) -> None:
    url = write_cache(str(tmp_path / "odd"), buckets={"5x24x40": 3}).url
    assert "patches of 1x1x1" in train(url, tmp_path / "c", steps=1)


def test_weights_are_not_lost_to_gradients_that_are_not_finite(cache: str, tmp_path: Path) -> None:
    printed = train(cache, tmp_path, "--learning-rate", 1e38, steps=50, status=1)
    assert "RunStoppedError: the gradients of step" in printed
    for path in checkpoints.complete(tmp_path):
        weights = checkpoints.load(path)[1]["model"]
        assert all(value.isfinite().all() for value in weights.values())


def test_wrong_arguments_end_in_one_message(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--steps, --checkpoint-every" in train(cache, tmp_path, steps=0, status=2)
    (tmp_path / "file").write_text("")
    assert "Give another --checkpoint-dir" in train(cache, tmp_path / "file", status=2)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert install_command("diffusers") in train(cache, tmp_path, status=2)


def test_a_checkpoint_is_json_and_tensors(cache: str, tmp_path: Path) -> None:
    train(cache, tmp_path, steps=1)
    facts = json.loads((tmp_path / "step-00000001" / checkpoints.FACTS).read_text())
    assert facts["step"] == facts["world_size"] == facts["loader"]["batches"] == 1
