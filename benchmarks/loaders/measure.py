"""One measurement of one reader, in a separate process: its rate, its CPU time, and its values."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.loaders.latents import SAMPLE_BYTES, Latents
from benchmarks.loaders.reader import BATCH_SIZE, READ_AHEAD, Batch, Place, Reader


class WrongValuesError(Exception):
    """A reader returned something other than what was written."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """num_samples in wall_s; cpu_s of the process and its children; first_batch_s since opening.

    wire_bytes: what the S3 server sent.
    """

    num_samples: int
    wall_s: float
    cpu_s: float
    first_batch_s: float
    wire_bytes: int = 0

    @property
    def samples_per_s(self) -> float:
        return self.num_samples / self.wall_s

    @property
    def mb_per_s(self) -> float:
        """Megabytes of raw latents per second."""
        return self.samples_per_s * SAMPLE_BYTES / 1e6

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of CPU per sample."""
        return 1e3 * self.cpu_s / self.num_samples


class Clock:
    """Wall and CPU seconds of this process and its descendants, over the windows that it runs."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0
        self._started: tuple[float, float] | None = None

    def start(self) -> None:
        self._started = time.perf_counter(), _tree_cpu_s()

    def stop(self) -> None:
        if self._started is not None:
            self.wall_s += time.perf_counter() - self._started[0]
            self.cpu_s += _tree_cpu_s() - self._started[1]
        self._started = None


def _tree_cpu_s() -> float:
    """User and system seconds of this process, its children, and those of theirs that have ended."""
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def steady(reader: Reader, place: Place, lanes: int, latents: Latents, seconds: float) -> Run:
    """Read epochs until the clock has run for `seconds`; the first one warms up.

    The clock runs in the middle of each epoch, as `window` says.
    """
    opened = time.perf_counter()
    epochs, clock, num_samples, epoch = reader.open(place, lanes), Clock(), 0, 0
    first, last = window(-(-len(latents) // BATCH_SIZE))
    first_batch_s = 0.0
    while epoch == 0 or clock.wall_s < seconds:
        seen: list[int] = []
        batch: Batch | None = None
        for number, batch in enumerate(epochs(epoch)):
            first_batch_s = first_batch_s or time.perf_counter() - opened
            seen += batch[0]
            if epoch and first < number <= last:
                num_samples += len(batch[0])
            if epoch and number == first:
                clock.start()
            if number == last:
                clock.stop()
        clock.stop()
        check(latents, seen, batch)
        epoch += 1
    return Run(
        num_samples=num_samples,
        wall_s=clock.wall_s,
        cpu_s=clock.cpu_s,
        first_batch_s=first_batch_s,
    )


def window(num_batches: int) -> tuple[int, int]:
    """The batches of an epoch at whose delivery the clock starts and stops.

    Readers read ahead, so the first batches are late and the last ones cost nothing. An epoch of training
    is so long that neither counts. In an epoch of fewer batches than four times READ_AHEAD, reading ahead
    shows in the result.
    """
    margin = min(READ_AHEAD, num_batches // 4)
    return margin, num_batches - 1 - margin


def cold(reader: Reader, place: Place, lanes: int, latents: Latents) -> Run:
    """Read one epoch, from opening the loader to the last batch."""
    clock, seen, first_batch_s = Clock(), [], 0.0
    batch: Batch | None = None
    clock.start()
    opened = time.perf_counter()
    for batch in reader.open(place, lanes)(0):
        first_batch_s = first_batch_s or time.perf_counter() - opened
        seen += batch[0]
    clock.stop()
    check(latents, seen, batch)
    return Run(
        num_samples=len(seen),
        wall_s=clock.wall_s,
        cpu_s=clock.cpu_s,
        first_batch_s=first_batch_s,
    )


def check(latents: Latents, seen: list[int], batch: Batch | None) -> None:
    """Compare an epoch's last batch bit for bit, and check that each number comes once."""
    if batch is None or Counter(seen) != Counter(range(len(latents))):
        missing = sorted(set(range(len(latents))) - set(seen))
        repeated = [n for n, times in Counter(seen).items() if times > 1]
        raise WrongValuesError(f"an epoch lacked samples {missing[:5]}, repeated {repeated[:5]}")
    numbers, samples = batch
    if samples.dtype != torch.bfloat16 or samples.device.type != "cpu":
        raise WrongValuesError(f"a batch is {samples.dtype} on {samples.device}")
    for number, sample in zip(numbers, samples, strict=True):
        if not torch.equal(sample.view(torch.int16), latents[number].view(torch.int16)):
            raise WrongValuesError(f"sample {number} differs from what was written")


def in_process(function: Callable[[], Any], timeout_s: float) -> tuple[Any, str | None]:
    """Call in a forked process, so that readers share nothing; returns the result, or an error.

    It forks, because importing every peer takes seconds; the caller must not have started any threads.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(function, there))
    process.start()
    there.close()
    try:
        answer = here.recv() if here.poll(timeout_s) else (None, f"no end after {timeout_s:.0f} s")
    except EOFError:
        process.join()
        answer = None, f"its process ended with status {process.exitcode}"
    with contextlib.suppress(ProcessLookupError):  # its workers too
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return answer


def _call(function: Callable[[], Any], answer: Any) -> None:
    os.setsid()
    warnings.simplefilter("ignore")  # peers warn about read-only arrays and files left open
    try:
        answer.send((function(), None))
    except WrongValuesError as error:
        answer.send((None, f"WRONG VALUES: {error}"))
    except Exception as error:  # noqa: BLE001 - a peer may raise anything; the others go on
        answer.send((None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """An empty folder, removed afterwards."""
    with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def to_json(run: Run) -> dict[str, float]:
    """The run's fields and rates."""
    rates = ("samples_per_s", "mb_per_s", "cpu_ms")
    return {**asdict(run), **{name: getattr(run, name) for name in rates}}
