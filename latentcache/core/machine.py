"""Facts of the machine that this process runs on: its CPUs and versions of packages.

Decoding processes import this, so it imports nothing that is slow to import.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import shlex
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path, PurePosixPath

from latentcache import __version__

PACKAGES = ("torch", "ray", "av", "decord", "diffusers", "transformers")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's work depends on."""
    found = {"python": platform.python_version(), "latentcache": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def anonymous_file(name: str) -> int:
    """Return the descriptor of a file without a name, in memory if the system can; it goes when closed."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


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


def num_cpus(
    cgroups: Path = Path("/sys/fs/cgroup"), own_cgroups: Path = Path("/proc/self/cgroup")
) -> int:
    """Return the CPUs that this process may use: those it is bound to, but no more than its quota.

    Containers have quotas of CPU time, set in control groups (version 1 or 2); of part of a CPU the
    whole one counts. cgroups: where they are mounted; own_cgroups: the file that names this process's.
    """
    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    num_bound = len(bound) or os.cpu_count() or 1
    quotas = list(_cpu_quotas(cgroups, own_cgroups))
    return max(1, min([num_bound, *map(math.ceil, quotas)]))


def _cpu_quotas(cgroups: Path, own_cgroups: Path) -> Iterator[float]:
    """Yield the quotas, in CPUs, of the process's control groups and of those that they are in."""
    for line in _read(own_cgroups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = (controllers, "cpu") if controllers else (".", "unified")
        for mount in dict.fromkeys(mounts):
            for folder in _with_parents(cgroups / mount, path):
                quota = _quota_v1(folder) if controllers else _quota_v2(folder)
                if quota is not None:
                    yield quota


def _with_parents(mount: Path, path: str) -> Iterator[Path]:
    """Yield a group's folder and its parents'. In a container only the last of them may be there."""
    group = PurePosixPath(path.strip("/"))
    for inside in (group, *group.parents):
        yield mount / inside


def _quota_v2(folder: Path) -> float | None:
    """Return the quota in `cpu.max`: `MICROSECONDS PERIOD`, or `max PERIOD` for none."""
    return _quota(*_read(folder / "cpu.max").split()[:2])


def _quota_v1(folder: Path) -> float | None:
    """Return the quota in `cpu.cfs_quota_us`, -1 for none, over `cpu.cfs_period_us`."""
    return _quota(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _quota(time_us: str = "", period_us: str = "") -> float | None:
    try:
        quota = int(time_us) / int(period_us)
    except (ValueError, ZeroDivisionError):
        return None
    return quota if quota > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def trim_memory() -> None:
    """Give free memory back to the system, where the C library can: glibc keeps some for each thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
