"""A run's figures on the way to TensorBoard or Weights & Biases."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from latentcache.config.sections import RunConfig
from latentcache.core.records import ShardReport
from latentcache.errors import ConfigError
from latentcache.running.events import STAGES, Died, Event, Progress, Retried
from latentcache.running.speed import Pace, clips_per_s

log = logging.getLogger(__name__)

#: Figures are written this often, and at the end.
INTERVAL_S = 5.0
COUNTED = ("failed", "frames", "stored_bytes", "retries", "deaths")


class Sink(Protocol):
    """Where figures go."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write figures of one moment. step: clips done."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in a folder, for `tensorboard --logdir`."""

    def __init__(self, folder: str, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(f"{folder}/{name}")

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write figures of one moment."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Wandb:
    """A run of a project of Weights & Biases; `WANDB_MODE=offline` keeps it on this machine."""

    def __init__(self, project: str, name: str) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(project=project, name=name, job_type="latentcache")

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write figures of one moment."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


#: A setting of `run` -> what it needs to be installed, and the sink.
SINKS: dict[str, tuple[str, type[TensorBoard] | type[Wandb]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", Wandb),
}


def check_scalars(run: RunConfig) -> None:
    """Raise ConfigError where figures are to go somewhere, and the package for it is not installed."""
    for name, (package, _) in SINKS.items():
        if getattr(run, name) is None:
            continue
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"run.{name} is set, but the package {package} cannot be imported ({error}), so no figures "
                f"could be written. Install it (`pip install {package}`), or leave run.{name} out."
            ) from error


class Scalars:
    """What a run has done so far, in figures by name. A sink that fails is said once, and fails nothing."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)
        self._pace = Pace(time.monotonic())
        self._written_at = float("-inf")
        self._clips = 0
        self._values = {f"latentcache/{name}": 0.0 for name in (*COUNTED, *STAGES)}

    def take(self, event: Event) -> None:
        """Count an event of the run; every few seconds, write."""
        match event:
            case ShardReport() if not event.committed_before:
                self._add_shard(event)
            case Retried():
                self._count("retries", 1)
            case Died():
                self._count("deaths", 1)
            case Progress():
                self._add_progress(event)
        if self._sinks and time.monotonic() - self._written_at > INTERVAL_S:
            self.write()

    def _count(self, name: str, number: float) -> None:
        self._values[f"latentcache/{name}"] += number

    def _add_shard(self, report: ShardReport) -> None:
        self._count("failed", report.num_clips - report.num_ok)
        self._count("frames", report.num_frames)
        self._count("stored_bytes", report.stored_bytes)
        for stage in STAGES:
            self._count(stage, getattr(report, stage))
        if report.psnrs_db:
            self._values["latentcache/psnr_db"] = sorted(report.psnrs_db)[len(report.psnrs_db) // 2]

    def _add_progress(self, event: Progress) -> None:
        self._pace.add(time.monotonic(), event.clips_done)
        self._clips = max(self._clips, event.clips_done)
        self._values["latentcache/clips"] = event.clips_done
        self._values["latentcache/workers"] = event.workers
        self._values["latentcache/clips_per_s"] = clips_per_s([self._pace])

    def write(self) -> None:
        """Write the figures of this moment."""
        self._written_at = time.monotonic()
        self._each("add", self._values, self._clips)

    def close(self) -> None:
        """Write the last figures, and what the sinks still hold."""
        self.write()
        self._each("close")

    def _each(self, method: str, *arguments: Any) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:  # noqa: BLE001 - of other packages: none may stop a run
                log.warning("run.%s: %s; nothing more is written there", name, error)
                del self._sinks[name]


@contextmanager
def scalars_of(run: RunConfig, name: str) -> Iterator[Scalars]:
    """Open what `run` asks for. name: the run's. Raises ConfigError where one cannot be opened."""
    scalars = Scalars(
        {setting: _opened(run, setting, name) for setting in SINKS if getattr(run, setting)}
    )
    try:
        yield scalars
    finally:
        scalars.close()


def _opened(run: RunConfig, setting: str, name: str) -> Sink:
    try:
        return SINKS[setting][1](getattr(run, setting), name)
    except Exception as error:
        raise ConfigError(
            f"run.{setting} cannot be opened ({error}), so no figures could be written. Nothing "
            f"was encoded. Correct run.{setting}, or leave it out."
        ) from error
