"""The machine of a figure, for the benchmarks to print. Needs only the standard library."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine() -> str:
    """The machine, in one line."""
    model = "unknown CPU"
    if Path("/proc/cpuinfo").exists():
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
        model = names[0].partition(": ")[2] if names else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
