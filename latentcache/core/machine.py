"""Facts of the machine that this process runs on."""

from __future__ import annotations

import os
import platform
import re
import shlex
from importlib.metadata import PackageNotFoundError, requires, version

from latentcache import __version__

PACKAGES = ("torch", "ray", "av", "decord", "diffusers")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's work depends on."""
    found = {"python": platform.python_version(), "latentcache": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def install_command(extra: str) -> str:
    """Return the command that installs what an extra of latentcache needs.

    It names the packages, since latentcache's own name is in no package index.
    """
    try:
        known = requires("latentcache") or []
    except PackageNotFoundError:  # run from a checkout that is not installed
        known = []
    found = [line.partition(";") for line in known]
    wanted = [
        shlex.quote(package.strip())
        for package, _, marker in found
        if re.search(rf"""extra == ['"]{extra}['"]""", marker)
    ]
    return f"pip install {' '.join(wanted)}" if wanted else f"pip install -e '.[{extra}]'"


def num_cpus() -> int:
    """Return the CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
