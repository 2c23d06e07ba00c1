"""Asks whether Ray's control service (GCS) answers at an address: `ray_address` runs this as a process.

Ray's client repeats its question for 40 s, in native code that nothing interrupts; a process can be killed.
It prints two lines: the address that it asks, and why a run cannot join there, nothing where it can.
"""

from __future__ import annotations

import os
import sys

from ray import exceptions
from ray._private import services
from ray._raylet import GcsClient

_AUTH_ADVICE = "; give Ray the cluster's token in RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token"


def _where(address: str) -> str:
    """Return the host and port of an address. Raises ValueError where there is none."""
    try:
        where = str(services.canonicalize_bootstrap_address(address))
        int(where.rpartition(":")[2])
    except ConnectionError:  # of `auto`; its message tells how to call Ray's own commands
        raise ValueError("no Ray runs on this machine") from None
    except ValueError:
        raise ValueError("an address is `auto` or host:port, such as 10.0.0.1:6379") from None
    return where


def _why_not(where: str, *, is_found: bool) -> str:
    """Return why no run can join a cluster. is_found: Ray itself has found it, and knows its token."""
    try:
        GcsClient(address=where)  # which asks for the cluster's id
    except exceptions.RayError as error:
        # Older versions of Ray have neither tokens nor their error.
        is_about_token = type(error).__name__ == "AuthenticationError"
        if is_about_token and is_found:
            return ""
        said = str(error).split(" Note:")[0].splitlines()[0]
        return f"what answers there says {said!r}" + (_AUTH_ADVICE if is_about_token else "")
    return ""


def _main(address: str) -> None:
    try:
        where = _where(address)
    except ValueError as error:
        _say(f"\n{error}")
        return
    _say(where)
    _say(_why_not(where, is_found=address == "auto"))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1])
    os._exit(0)  # Ray's threads are not waited for
