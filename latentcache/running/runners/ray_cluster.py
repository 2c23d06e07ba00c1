"""Joining a Ray cluster or starting Ray here, for workers and for probing."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray._private.state
from ray._private import ray_constants
from ray.exceptions import RayError
from ray.job_config import JobConfig

from latentcache.config.sections import RunConfig
from latentcache.core.machine import num_cpus
from latentcache.core.threads import JOINING_RAY, DaemonPool
from latentcache.errors import ConfigError
from latentcache.running.attempt import in_one_line
from latentcache.running.ray_address import address_of, no_cluster
from latentcache.running.runners.elastic import Node
from latentcache.running.runners.ray_watch import RayWatch

#: Only reports travel through Ray's object store; this is near the smallest that Ray accepts.
OBJECT_STORE_BYTES = 100 << 20
#: Joining a cluster takes seconds, and on busy machines some more.
JOIN_S = 60.0
LOOK_S = 0.2


def watch_ray() -> RayWatch:
    """Return what watches the processes of the Ray that this one has joined."""
    node = ray._private.worker.global_worker.node
    return RayWatch(node.gcs_address, node.raylet_socket_name)


def connect(run: RunConfig) -> bool:
    """Join the cluster whose address a run is given, or start Ray here. Returns whether it did either.

    Raises ConfigError where the cluster cannot be reached.
    """
    if ray.is_initialized():
        return False
    with _own_sigterm():
        _connect(address_of(run))
    return True


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's SIGTERM handler: Ray puts one in its place that ends the driver at once."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


class _NoFolders(list[str]):
    """Stays empty when Ray adds the driver's folder to what its workers search first.

    There a `queue.py` would shadow the library's. What the driver finds, workers find: see search_path.
    """

    def extend(self, _: Iterable[str]) -> None:
        """Add nothing."""


def search_path() -> list[str]:
    """Return where the driver finds modules; an encoder of others may be in the current folder."""
    return [str(Path(path or ".").absolute()) for path in sys.path]


def _own_interpreter() -> None:
    """Let workers run in the driver's environment: under `uv run`, Ray would make each one of its own."""
    ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
    if "uv_runtime_env_hook" in os.environ.get(ray_constants.RAY_RUNTIME_ENV_HOOK, ""):
        del os.environ[ray_constants.RAY_RUNTIME_ENV_HOOK]


def _connect(given: tuple[str, str] | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _own_interpreter()
    job_config = JobConfig()
    job_config._py_driver_sys_path = _NoFolders()
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "job_config": job_config,
    }
    if given is None:
        local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        try:
            ray.init(address="local", num_cpus=num_cpus(), **local, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"Ray cannot start on this machine: {in_one_line(error)}. Set RAY_TMPDIR to a folder with "
                "a short path and room, or use run.runner=local, which needs no Ray."
            ) from error
        return
    pool = DaemonPool(1, name=JOINING_RAY)
    joined = pool.submit(_join, given[0], quiet)
    joined.add_done_callback(lambda _: pool.cancel())
    try:
        _wait(joined)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise no_cluster(given, in_one_line(error)) from error
    finally:
        if not joined.done():
            # At exit, Ray would ask for ever what does not answer.
            atexit.unregister(ray.shutdown)
    if not joined.done():
        raise no_cluster(given, f"Ray answered there, and joining it took more than {JOIN_S:g} s")


def _join(address: str, options: Mapping[str, Any]) -> None:
    ray.init(address=address, **options)
    ray.nodes()


def _wait(joined: Future[None]) -> None:
    """Wait for JOIN_S at the most, and raise what was raised.

    Only a thread can be left: Ray's native code is deaf to signals. It also takes SIGTERM for itself.
    """
    ends_s = time.monotonic() + JOIN_S
    handler = signal.getsignal(signal.SIGTERM)
    while not joined.done() and time.monotonic() < ends_s:
        wait([joined], timeout=LOOK_S)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    if joined.done():
        joined.result()


def nodes() -> list[Node]:
    """Return the machines that are there to stay: not those that are gone or about to go."""
    leaving = leaving_nodes()
    return [
        Node(
            id=found["NodeID"],
            cpus=float(found["Resources"].get("CPU", 0.0)),
            gpus=int(found["Resources"].get("GPU", 0)),
        )
        for found in ray.nodes()
        if found["Alive"] and found["NodeID"] not in leaving
    ]


def leaving_nodes() -> set[str]:
    """Return the machines that Ray was told will go soon, such as by a notice of preemption."""
    return set(ray._private.state.state.get_draining_nodes())
