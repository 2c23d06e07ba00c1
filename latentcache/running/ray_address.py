"""Whether the Ray cluster that a run is to join answers, found in seconds and before anything is probed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from latentcache.config.sections import RunConfig
from latentcache.core.threads import DaemonPool
from latentcache.errors import ConfigError
from latentcache.redaction import printable

T = TypeVar("T")

#: A port that is there accepts a connection at once; looking its name up can take some seconds.
CONNECT_S = 5.0
LOOK_UP_S = 10.0
#: Ray's control service answers in milliseconds; that of a large cluster may be busy.
ANSWER_S = 10.0
#: Loading Ray takes a second, on a busy machine many. After that, joining shows what is there.
LOAD_S = 60.0
_ASKING = Path(__file__).parent / "runners" / "ray_asking.py"
#: Stands for no cluster in Ray's own words.
_LOCAL = "local"


def address_of(
    run: RunConfig, environment: Mapping[str, str] = os.environ
) -> tuple[str, str] | None:
    """Return a cluster's address and where it is given, None where the run starts Ray by itself."""
    if run.runner != "ray":
        return None
    found = environment.get("RAY_ADDRESS")
    given = (run.ray_address, "run.ray_address")
    if found and run.ray_address in (None, "", "auto"):  # as Ray does
        given = (found, "the environment variable RAY_ADDRESS")
    return (given[0], given[1]) if given[0] and given[0] != _LOCAL else None


def no_cluster(given: tuple[str, str], why: str) -> ConfigError:
    """Return what to raise where no cluster can be joined at what `address_of` gives."""
    address, source = given
    return ConfigError(
        printable(
            f"no Ray cluster at {address}, the address that {source} gives: {why.rstrip('. ')}. Start the "
            f"cluster with `ray start --head`, or correct {source}; without an address, the run starts Ray "
            "on this machine."
        )
    )


def check_ray_address(run: RunConfig) -> None:
    """Raise ConfigError where Ray does not answer at the address of the cluster."""
    given = address_of(run)
    if given is None:
        return
    address = given[0]
    if "://" in address:
        why: str | None = (
            "a run joins a cluster on one of its machines, by the host:port of its control service, whose "
            "port is 6379 unless it was set, or by `auto`; Ray Client (ray://) and the dashboard (http://) "
            "are other services"
        )
    else:
        why = _unreachable(address) or _no_ray(address)
    if why:
        raise no_cluster(given, f"{why}. Nothing was done")


def _unreachable(address: str) -> str | None:
    """Return why there is no connection to an address; None: there is, or Ray itself has to look it up."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():  # such as `auto`
        return None
    try:
        _within(LOOK_UP_S, lambda: _connect(host.strip("[]"), int(port)))
    except (OSError, OverflowError, UnicodeError) as error:  # TimeoutError is an OSError
        return str(error) or f"no answer within {LOOK_UP_S:g} s"
    return None


def _connect(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=CONNECT_S).close()


def _no_ray(address: str) -> str | None:
    """Return why it is not Ray that answers at an address; None: it is, or it could not be asked."""
    command = [sys.executable, "-P", str(_ASKING), address]
    none = subprocess.DEVNULL
    with subprocess.Popen(  # noqa: S603 - this package's own file
        command, stdin=none, stdout=subprocess.PIPE, stderr=none, text=True
    ) as asking:
        assert asking.stdout is not None
        where: str | None = None
        try:
            where = _within(LOAD_S, asking.stdout.readline)
            said = _within(ANSWER_S, asking.stdout.readline)
        except TimeoutError:
            if where is None:
                return None
            return f"at {where.strip()}, nothing answered as Ray does within {ANSWER_S:g} s"
        finally:
            asking.kill()
    if where and not said:
        return f"Ray's client broke down when it asked at {where.strip()}"
    return said.strip()


def _within(limit_s: float, call: Callable[[], T]) -> T:
    """Call a function in a thread that may be left behind. Raises TimeoutError, and what it raises."""
    pool = DaemonPool(1, name="ray-address")
    try:
        return pool.submit(call).result(timeout=limit_s)
    finally:
        pool.cancel()
