"""A run's figures on the way to TensorBoard or Weights & Biases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from latentcache.config.sections import RunConfig
from latentcache.core import sinks
from latentcache.core.records import ShardReport
from latentcache.core.sinks import SINKS, Sinks
from latentcache.running.events import STAGES, Died, Event, Progress, Retried
from latentcache.running.speed import Pace, clips_per_s

COUNTED = ("failed", "frames", "stored_bytes", "retries", "deaths")


def check_scalars(run: RunConfig) -> None:
    """Raise ConfigError where figures are to go somewhere, and the package for it is not installed."""
    for name in SINKS:
        if getattr(run, name) is not None:
            sinks.check_installed(name, f"run.{name}")


class Scalars:
    """What a run has done so far, in figures by name."""

    def __init__(self, places: Sinks) -> None:
        self._sinks = places
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
        if self._sinks and time.monotonic() - self._written_at > sinks.INTERVAL_S:
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
        self._sinks.add(self._values, self._clips)

    def close(self) -> None:
        """Write the last figures, and what the sinks still hold."""
        self.write()
        self._sinks.close()


@contextmanager
def scalars_of(run: RunConfig, name: str) -> Iterator[Scalars]:
    """Open what `run` asks for. name: the run's. Raises ConfigError where one cannot be opened."""
    asked = {setting: place for setting in SINKS if (place := getattr(run, setting))}
    opened = {
        f"run.{setting}": sinks.open_sink(setting, f"run.{setting}", place, name)
        for setting, place in asked.items()
    }
    scalars = Scalars(Sinks(opened))
    try:
        yield scalars
    finally:
        scalars.close()
