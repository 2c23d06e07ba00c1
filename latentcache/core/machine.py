"""Facts of the machine that this process runs on: its CPUs, its GPUs, and versions of packages."""

from __future__ import annotations

import math
import os
import platform
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path, PurePosixPath

import torch

from latentcache import __version__
from latentcache.errors import ConfigError

PACKAGES = ("torch", "ray", "av", "decord", "diffusers", "transformers")
#: Devices that encoders run on, as they are written.
DEVICE = re.compile(r"cpu(?::0)?|cuda(?::(0|[1-9][0-9]*))?", re.ASCII)


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


def resolve_device(
    asked: torch.device | str | None = None, name: str = "device", *, others: bool = False
) -> torch.device:
    """Return the device that was asked for; `auto` or None: cuda if there is a GPU, else cpu.

    Every part of the project decides by this rule. It starts no CUDA, so processes may be forked after.

    asked: auto, cpu, cuda or cuda:N. name: how the user asked, such as `--device`. others: whether
    torch's other devices will do, too; encoders and decoders are tested on cpu and cuda only.

    Raises ConfigError if it is anything else, or a GPU that this machine does not have.
    """
    text = "auto" if asked is None else str(asked)
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return torch.device("cuda" if num_gpus else "cpu")
    match = DEVICE.fullmatch(text)
    if match is not None and (text.startswith("cpu") or int(match[1] or 0) < num_gpus):
        return torch.device(text)
    if match is None and others and (device := _other_device(text)) is not None:
        return device
    problem, fix = "is not a device to be used here", "Give auto, cpu, cuda or cuda:N."
    if match is not None:
        problem, fix = "is not there", "Give cpu or auto, or use a machine that has it."
    raise ConfigError(f"{name}={text!r} {problem}: {_gpus_in_words(num_gpus)}. {fix}")


def _other_device(text: str) -> torch.device | None:
    """Return a device of torch's that is neither the CPU nor a GPU of CUDA; None if it is not here."""
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):
        return None
    return device


def _gpus_in_words(num_gpus: int) -> str:
    if num_gpus:
        return f"this machine has {', '.join(f'cuda:{n}' for n in range(num_gpus))}"
    return f"torch {torch.__version__} sees no CUDA GPU on this machine"


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
