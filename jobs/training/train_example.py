"""Train a small diffusion transformer on a cache, by flow matching; goes on exactly where it was killed.

With several processes: torchrun --nproc-per-node N -m latentcache.jobs.training.train_example CACHE_URL ...
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from latentcache.core.devices import resolve_device
from latentcache.core.posterior import sample_seed
from latentcache.errors import ConfigError, RunStoppedError
from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.storage.folder import redact

from .. import parsers
from ..cli import INTERRUPTED, OK, made_folder, run_job, storage_options
from . import checkpoints
from .checkpoints import Facts
from .flow_model import FlowModel, draw, flow_loss

WARMUP_STEPS = 20
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What weights follow from, beside the cache and the world size. It continues only with these.

    patch: height and width in latents of what is one token.
    """

    batch_size: int
    learning_rate: float
    caption_dropout: float
    seed: int
    channels: int
    patch: int
    num_heads: int
    depth: int


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The place of this process among those that train, and its device."""

    rank: int
    world_size: int
    device: torch.device


def main() -> int:
    """Parse the command line and run."""
    return run_job(run, parsers.train_example())


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit status."""
    _check(args)
    device = _device(args.device)
    cache = open_cache(args.cache, storage_options(args.overrides))
    settings = _settings(args, cache)
    # Now, for it would be a pity after the first steps.
    folder = made_folder(Path(args.checkpoint_dir), "Give another --checkpoint-dir.")
    with _ranks(device) as ranks:
        trainer = Trainer(cache, settings, ranks)
        say = print if ranks.rank == 0 else _say_nothing
        say(f"cache    {redact(args.cache)}: {len(cache)} clips, {cache.spec.model_class}")
        say(f"model    {trainer.describe()}")
        _resume(trainer, folder, say)
        try:
            _train(trainer, args, folder, say)
        except KeyboardInterrupt:
            say(f"\nInterrupted after step {trainer.step}. {_saved(folder)}", file=sys.stderr)
            return INTERRUPTED
        say(f"Next: the same command with --steps {2 * args.steps} trains on from {folder}")
    return OK


def _say_nothing(*_: object, **__: object) -> None: ...


def _check(args: argparse.Namespace) -> None:
    numbers = (args.steps, args.checkpoint_every, args.log_every, args.heads, args.depth)
    if min(numbers) < 1 or args.learning_rate <= 0 or not 0 <= args.caption_dropout <= 1:
        raise ConfigError(
            "--steps, --checkpoint-every, --log-every, --heads and --depth are at least 1, "
            "--learning-rate is above 0 and --caption-dropout from 0 to 1"
        )


def _settings(args: argparse.Namespace, cache: Cache) -> Settings:
    """Return the settings, with what follows from the cache. Raises ConfigError for a cache of ids."""
    if cache.spec.stored == "ids":
        raise ConfigError(
            f"{redact(args.cache)} holds ids of {cache.spec.model_class}, which are names and no "
            "amounts: noise cannot be added to them, as flow matching does. Give a cache of moments, "
            "means or samples."
        )
    # Of all that was planned: it stays the same while the cache grows.
    sizes = [size for bucket in cache.manifest.buckets for size in bucket.shape[-2:]]
    return Settings(
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        caption_dropout=args.caption_dropout,
        seed=args.seed,
        channels=cache.spec.channels,
        patch=1 if any(size % 2 for size in sizes) else 2,
        num_heads=args.heads,
        depth=args.depth,
    )


def _device(asked: str | None) -> torch.device:
    """Return this process's device: of the GPUs of a machine that of its place among its processes."""
    device = resolve_device(asked, "--device")
    if device.type != "cuda" or device.index is not None:
        return device
    return resolve_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}", "LOCAL_RANK: device")


@contextmanager
def _ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun has started, if it has."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Ranks(rank=0, world_size=1, device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(rank=dist.get_rank(), world_size=world_size, device=device)
    finally:
        dist.destroy_process_group()


class Trainer:
    """Model, optimiser and loader of one rank. step: those that were taken, of all runs."""

    def __init__(self, cache: Cache, settings: Settings, ranks: Ranks) -> None:
        self.settings, self.ranks, self.step = settings, ranks, 0
        self.loader = LatentLoader(
            cache,
            batch_size=settings.batch_size,
            seed=settings.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            device=ranks.device,
            dtype=torch.float32,
        )
        torch.manual_seed(sample_seed("weights", settings.seed))  # the same on every rank
        self.model = FlowModel(
            channels=settings.channels,
            patch=settings.patch,
            num_heads=settings.num_heads,
            depth=settings.depth,
        ).to(ranks.device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate)

    def describe(self) -> str:
        """Return one line about the model and the processes."""
        num = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"{num / 1e6:.2f} M parameters, patches of 1x{self.settings.patch}x{self.settings.patch}; "
            f"{self.ranks.world_size} x {self.settings.batch_size} clips a step, on "
            f"{self.ranks.device.type}"
        )

    def batches(self) -> Iterator[dict[str, Any]]:
        """Yield batches from where the loader is, epoch after epoch."""
        while True:
            yield from self.loader

    def take_step(self, batch: Mapping[str, Any]) -> float:
        """Train on a batch and return its loss. Raises RunStoppedError where gradients are not finite.

        What is random follows from (seed, step, rank), not from the steps before.
        """
        draws = draw(
            batch["latents"].shape,
            caption_dropout=self.settings.caption_dropout,
            seed=self.settings.seed,
            step=self.step,
            rank=self.ranks.rank,
        )
        self.optimiser.zero_grad()
        loss = flow_loss(self.model, batch["latents"], batch["caption"], draws)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(self.model, self.ranks.world_size)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        if not norm.isfinite():
            raise RunStoppedError(
                f"the gradients of step {self.step + 1} are not finite, so the weights would be lost. "
                "Checkpoints are of steps before. Train with a smaller --learning-rate, in another "
                "--checkpoint-dir."
            )
        warmup = min(1.0, (self.step + 1) / WARMUP_STEPS)
        self.optimiser.param_groups[0]["lr"] = self.settings.learning_rate * warmup
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def save(self, folder: Path) -> Path:
        """Write a checkpoint, which fits any rank. Raises StorageError."""
        facts = Facts(
            step=self.step,
            world_size=self.ranks.world_size,
            settings=dataclasses.asdict(self.settings),
            loader=self.loader.state_dict(),
        )
        weights = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        return checkpoints.save(folder, facts, weights)

    def restore(self, path: Path) -> Facts:
        """Go on from a checkpoint. Raises ConfigError where it is of other settings."""
        facts, weights = checkpoints.load(path)
        here = dataclasses.asdict(self.settings)
        wrong = [name for name in here if facts.settings.get(name) != here[name]]
        if wrong:
            raise ConfigError(
                f"the checkpoint {path} is of other settings:\n"
                + "\n".join(f"  {n}: {facts.settings.get(n)} there, {here[n]} here" for n in wrong)
                + "\nGive the same ones to go on, or another --checkpoint-dir to start again."
            )
        self.loader.load_state_dict(facts.loader)
        self.model.load_state_dict(weights["model"])
        self.optimiser.load_state_dict(weights["optimiser"])
        self.step = facts.step
        return facts


def average_gradients(model: torch.nn.Module, world_size: int) -> None:
    """Replace gradients by their mean over the ranks, added up in the same order in every step.

    DistributedDataParallel lays them out again after its first step, and with three ranks or more the
    order of a sum depends on the place: a resumed run would differ in its last bits.
    """
    if world_size == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def _resume(trainer: Trainer, folder: Path, say: Any) -> None:
    """Go on from the newest checkpoint, as rank 0 sees it, if there is one."""
    newest = [path.name for path in checkpoints.complete(folder)[-1:]]
    if trainer.ranks.world_size > 1:
        chosen = [newest]
        dist.broadcast_object_list(chosen)
        newest = chosen[0]
    if not newest:
        say(f"started  from random weights; checkpoints go to {folder}", flush=True)
        return
    facts = trainer.restore(folder / newest[0])
    say(f"resumed  from {folder / newest[0]}", flush=True)
    if facts.world_size != trainer.ranks.world_size:
        size = trainer.settings.batch_size
        say(
            f"         which {facts.world_size} processes wrote: the batches that were left go on, but "
            f"a step now takes {trainer.ranks.world_size * size} clips instead of "
            f"{facts.world_size * size}"
        )


def _train(trainer: Trainer, args: argparse.Namespace, folder: Path, say: Any) -> None:
    if trainer.step >= args.steps:
        say(f"nothing to do: {trainer.step} steps of {args.steps} were taken before")
        return
    meter = Meter(trainer)
    for batch in itertools.islice(trainer.batches(), args.steps - trainer.step):
        meter.add(trainer.take_step(batch), len(batch["key"]))
        is_last = trainer.step == args.steps
        if is_last or trainer.step % args.log_every == 0:
            say(f"step     {trainer.step}/{args.steps}  {meter.read()}", flush=True)
        if (is_last or trainer.step % args.checkpoint_every == 0) and trainer.ranks.rank == 0:
            say(f"saved    {trainer.save(folder)}", flush=True)


class Meter:
    """Loss, speed and waiting since it was last read, of all ranks."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._reset()

    def _reset(self) -> None:
        self._started_s, self._waited_s = time.perf_counter(), self._trainer.loader.stats.wait_s
        self._losses = self._num_steps = self._num_samples = 0.0

    def add(self, loss: float, num_samples: int) -> None:
        """Count one step of this rank."""
        self._losses += loss
        self._num_steps += 1
        self._num_samples += num_samples

    def read(self) -> str:
        """Return a line and start from the beginning. Collective, where there are several ranks."""
        ranks = self._trainer.ranks
        waited_s = self._trainer.loader.stats.wait_s - self._waited_s
        sums = [self._losses, self._num_steps, self._num_samples, waited_s]
        total = torch.tensor(sums, device=ranks.device)
        if ranks.world_size > 1:
            dist.all_reduce(total)
        losses, steps, samples, waited_s = total.tolist()
        wall_s = time.perf_counter() - self._started_s
        self._reset()
        return (
            f"loss {losses / steps:.4f}  {samples / wall_s:.1f} samples/s, waited "
            f"{waited_s / ranks.world_size:.2f} of {wall_s:.2f} s for data"
        )


def _saved(folder: Path) -> str:
    """Say what is safe, and how to go on."""
    found = checkpoints.complete(folder)
    if not found:
        return "Nothing was saved yet; the same command starts again."
    return f"{found[-1]} is safe; go on with the same command."


if __name__ == "__main__":
    sys.exit(main())
