"""Caches that were made to do harm, opened under a limit of memory: `python -m tests.tools.hostile FOLDER`.

Prints one line a case: its name, and the error that it ended with, or `read` where samples came out.
tests/system/test_hostile.py runs it: a limit of memory cannot be taken back, and a crash takes the process.
"""

from __future__ import annotations

import functools
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from latentcache.errors import LatentCacheError
from tests.tools.hostile.cases import CASES, RANDOM, Case, read_all, sound
from tests.tools.hostile.random_changes import COUNT

#: That a case may take beyond what the process has when it begins. Sound caches here take 1 MiB.
MEMORY_BYTES = 1 << 30


def outcome(read: Callable[[], int]) -> str:
    try:
        return f"read {read()}"
    except LatentCacheError as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    except BaseException as error:  # noqa: BLE001 - whatever else is what the test looks for
        return f"UNEXPECTED {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def limit_memory() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    now = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize:"))
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, now + MEMORY_BYTES))


def main() -> None:
    folder = Path(sys.argv[1])
    for name, make in CASES.items():
        make(folder / name)
    read_all(Path(sound(folder / "sound").url))  # loads what reading loads
    limit_memory()
    for name in CASES:
        print(f"{name}\t{outcome(functools.partial(read_all, folder / name))}", flush=True)
    for name, run in RANDOM.items():
        text = outcome(functools.partial(count_runs, run, folder / name))
        print(f"{name}\t{text}", flush=True)


def count_runs(run: Case, folder: Path) -> int:
    """Return how many changed caches gave samples."""
    COUNT["read"] = 0
    run(folder)
    return COUNT["read"]


if __name__ == "__main__":
    main()
