"""`latentcache JOB ...`: runs one of the jobs."""

from __future__ import annotations

import importlib
import sys

from latentcache.errors import did_you_mean

JOBS = {
    "precompute": "encode a corpus into a cache, from a config file",
    "resume": "finish a cache that was interrupted, or retry what failed",
    "stream": "read a cache as a trainer would, and measure it",
}


def main() -> int:
    """Run the job that the first argument names; returns its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in JOBS:
        sys.argv = [f"latentcache {name}", *sys.argv[2:]]
        return int(importlib.import_module(f"{__package__}.{name}").main())
    known = "\n".join(f"  latentcache {job:<12}{what}" for job, what in JOBS.items())
    usage = f"usage: latentcache JOB ...\n\n{known}\n\n`latentcache JOB --help` says more."
    if name in ("-h", "--help"):
        print(usage)
        return 0
    print(
        f"latentcache: there is no job {name!r}.{did_you_mean(name, JOBS)}\n{usage}",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
