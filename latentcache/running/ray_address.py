"""Whether the Ray cluster that a run is to join answers, found in seconds and before anything is probed."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from latentcache.config.sections import RunConfig
from latentcache.core.threads import DaemonPool
from latentcache.errors import ConfigError

#: A cluster that is there answers at once; looking its name up can take some seconds.
ANSWER_S = 5.0
LOOK_UP_S = 10.0


def address_of(
    run: RunConfig, environment: Mapping[str, str] = os.environ
) -> tuple[str, str] | None:
    """Return a cluster's address and where it is given, None where the run starts Ray by itself."""
    if run.runner != "ray":
        return None
    if run.ray_address:
        return run.ray_address, "run.ray_address"
    if found := environment.get("RAY_ADDRESS"):
        return found, "the environment variable RAY_ADDRESS"
    return None


def check_ray_address(run: RunConfig) -> None:
    """Raise ConfigError where nothing answers at the address of the cluster."""
    given = address_of(run)
    if given is None:
        return
    host, _, port = given[0].removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # such as `auto`, which Ray itself looks up
        return
    pool = DaemonPool(1, name="ray-address")
    asked = pool.submit(lambda: _connect(host.strip("[]"), int(port)))
    try:
        asked.result(timeout=LOOK_UP_S)
    except (OSError, OverflowError, UnicodeError) as error:  # TimeoutError is an OSError
        why = str(error) or f"no answer within {LOOK_UP_S:g} s"
        raise ConfigError(
            f"no Ray cluster at {given[0]}, the address that {given[1]} gives: {why}. Nothing was done. "
            f"Start the cluster with `ray start --head`, or correct {given[1]}; without an address, the "
            "run starts Ray on this machine."
        ) from None
    finally:
        pool.cancel()


def _connect(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=ANSWER_S).close()
