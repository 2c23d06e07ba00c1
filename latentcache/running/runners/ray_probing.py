"""Probing on a Ray cluster: batches of sources go to tasks, which the cluster repeats if it loses them."""

from __future__ import annotations

import logging
import queue
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

import ray
from ray.exceptions import RayError

from latentcache.config.sections import Config
from latentcache.decoders.neighbours import Neighbours
from latentcache.decoders.pool import DecodePool
from latentcache.errors import ClipError, LatentCacheError, MachineError, RunStoppedError
from latentcache.running.attempt import in_one_line, plain_error
from latentcache.running.runners.ray_cluster import connect, search_path, watch_ray
from latentcache.running.runners.ray_watch import message

log = logging.getLogger(__name__)

#: Sources of a task: starting its decoding process costs about as much as a few sources on a local disk.
#: A machine that is lost costs no more than this for each of its CPUs.
BATCH = 64
#: Tasks that are submitted for each one that can run, so that none waits for the driver.
AHEAD = 2
#: Sources that are under way at the most: about 100 MB of the driver's memory.
MAX_WINDOW = 1 << 15
#: How often a task is repeated whose machine or process was lost.
MAX_RETRIES = 10
#: What comes in quick succession is put into the same batches.
LINGER_S = 0.05
POLL_S = 0.2
#: The cluster's CPUs are counted again this often: it may grow.
COUNT_INTERVAL_S = 5.0
#: No answer for as long is said once: all CPUs of the cluster may be taken.
SILENT_S = 120.0
CLOSE_S = 10.0

Request = Mapping[str, Any]
Outcome = dict[str, Any] | LatentCacheError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a task is asked, as plain data. requests: arguments of `DecodePool.probe`."""

    config: Config
    requests: Sequence[Request]
    neighbours: Sequence[str]
    search: Sequence[str]


def probe_batch(batch: Batch) -> tuple[str, list[Outcome]]:
    """Look at sources with a decoding process of its own; returns the host and what was found, in order.

    Trouble that is no source's fault is the outcome of all sources after the first that meets it.
    """
    sys.path.extend(path for path in batch.search if path not in sys.path)
    host = socket.gethostname()
    try:
        pool = DecodePool.for_run(batch.config, num_processes=1, num_buffers=1)
    except LatentCacheError as error:
        return host, [plain_error(error)] * len(batch.requests)
    with pool:
        pool.remember(batch.neighbours)
        futures = [pool.probe(**request) for request in batch.requests]
        return host, _outcomes(futures)


def _outcomes(futures: Sequence[Future[dict[str, Any]]]) -> list[Outcome]:
    found: list[Outcome] = []
    for future in futures:
        try:
            found.append(future.result())
        except ClipError as error:
            found.append(error)
        except LatentCacheError as error:
            return found + [plain_error(error)] * (len(futures) - len(found))
    return found


@dataclass(eq=False)
class _Asked:
    request: Request
    future: Future[dict[str, Any]] = field(default_factory=Future)


class ClusterProber:
    """Looks at sources in tasks of the cluster that a run joins; a context manager, as `DecodePool`.

    One thread speaks to Ray. Entering raises ConfigError where there is no cluster.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._queue: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._in_flight: dict[Any, list[_Asked]] = {}
        self._neighbours = Neighbours()
        self._search = search_path()
        self._closing = threading.Event()
        self._num_cpus = 0.0
        self._num_slots, self._counted_s, self._answered_s = 1, float("-inf"), float("-inf")
        self._thread = threading.Thread(target=self._run, name="ray-probing", daemon=True)

    @property
    def window(self) -> int:
        """As many sources as keep the cluster busy, within the driver's memory."""
        return min(MAX_WINDOW, (AHEAD + 1) * BATCH * self._num_slots)

    def __enter__(self) -> Self:
        self._is_ours = connect(self._config.run)
        self._watch = watch_ray()
        self._count()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(CLOSE_S)
        is_gone = self._watch.notice()
        self._watch.close()
        if self._is_ours and not is_gone:
            ray.shutdown()

    def probe(
        self, url: str, kind: str, *, identity_only: bool = False, times: bool = False
    ) -> Future[dict[str, Any]]:
        """Find what `DecodePool.probe` finds, and raise what it raises."""
        self._neighbours.add(url)
        options = {"identity_only": identity_only, "times": times}
        asked = _Asked({"url": url, "kind": kind, **options})
        self._queue.put(asked)
        return asked.future

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._count()
                self._submit()
                self._collect()
            for reference in self._in_flight:
                ray.cancel(reference, force=True)
        except RayError as error:
            self._fail(_lost(error))
        except MachineError as error:
            self._fail(error)

    def _count(self) -> None:
        """Look, now and then, at how many tasks the cluster can run at once."""
        if time.monotonic() - self._counted_s > COUNT_INTERVAL_S:
            self._num_cpus = float(ray.cluster_resources().get("CPU", 0.0))
            self._num_slots, self._counted_s = max(1, int(self._num_cpus)), time.monotonic()

    def _submit(self) -> None:
        """Put what was asked into batches, larger ones the more there is."""
        if not self._in_flight:
            self._closing.wait(LINGER_S)
            self._answered_s = time.monotonic()
        room = AHEAD * self._num_slots - len(self._in_flight)
        while room > 0 and (queued := self._queue.qsize()):
            size = min(BATCH, -(-queued // room))
            asked = [self._queue.get() for _ in range(size)]
            self._in_flight[self._start([each.request for each in asked])] = asked
            room -= 1

    def _start(self, requests: Sequence[Request]) -> Any:
        neighbours = [other for each in requests for other in self._neighbours.of(each["url"])]
        batch = Batch(
            config=self._config,
            requests=requests,
            neighbours=[*dict.fromkeys(neighbours)],
            search=self._search,
        )
        task = ray.remote(probe_batch).options(
            num_cpus=min(1.0, self._num_cpus),
            max_retries=MAX_RETRIES,
            scheduling_strategy="SPREAD",
        )
        return task.remote(batch)

    def _collect(self) -> None:
        """Hand over what is done. Raises RayError of a task that was lost, MachineError without Ray."""
        if lost := self._watch.notice():
            raise MachineError(message(lost))
        if not self._in_flight:
            return
        done, _ = ray.wait([*self._in_flight], num_returns=1, timeout=POLL_S)
        for reference in done:
            host, outcomes = ray.get(reference)
            for asked, outcome in zip(self._in_flight.pop(reference), outcomes, strict=True):
                _settle(asked.future, outcome, host)
            self._answered_s = time.monotonic()
        if time.monotonic() - self._answered_s > SILENT_S:
            self._answered_s = float("inf")
            log.warning(
                "no source was probed for %.0f s: the CPUs of the Ray cluster may all be taken. Probing "
                "goes on when some are free, or when the cluster grows.",
                SILENT_S,
            )

    def _fail(self, error: LatentCacheError) -> None:
        """Let everyone who waits see the error, also who asks later."""
        for asked in [each for batch in self._in_flight.values() for each in batch]:
            _settle(asked.future, error, socket.gethostname())
        self._in_flight.clear()
        while not self._closing.is_set():
            try:
                asked = self._queue.get(timeout=POLL_S)
            except queue.Empty:
                continue
            _settle(asked.future, error, socket.gethostname())


def _settle(future: Future[dict[str, Any]], outcome: Outcome, host: str) -> None:
    if not isinstance(outcome, LatentCacheError):
        future.set_result(outcome)
        return
    is_of_machine = isinstance(outcome, MachineError | RunStoppedError)
    if is_of_machine and host != socket.gethostname():
        outcome = type(outcome)(f"on {host}: {outcome}")
    future.set_exception(outcome)


def _lost(error: RayError) -> MachineError:
    return MachineError(
        f"probing on the Ray cluster failed: {in_one_line(error)}. See that every node has the same "
        "Python, Ray and latentcache, and enough memory. This says nothing about the files, so no source "
        "was rejected. When it is put right, go on with the same command."
    )
