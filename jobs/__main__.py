"""`latentcache JOB ...`: runs one of the jobs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from latentcache import __version__
from latentcache.errors import did_you_mean

from .interrupts import INTERRUPTED
from .output import open_streams
from .parsers import PARSERS
from .waiting import Waiting

JOBS = {
    "precompute": "encode a corpus into a cache, from a config file",
    "estimate": "say what precompute would take in time, memory, bytes and money",
    "add-field": "add further arrays to a cache, such as the states of a text encoder",
    "drop-field": "remove such a field from a cache",
    "resume": "finish a cache that was interrupted, or retry what failed",
    "status": "say how far a cache is, from anywhere, while its run goes on or after",
    "verify": "check every byte of a cache, and mark what is damaged",
    "compact": "copy short shards, and those with many retired rows, into full ones",
    "merge": "make one cache of several ones of the same recipe",
    "copy": "copy a cache, or some clips of it, into Zarr or Parquet",
    "export": "write a cache in the form that another trainer reads",
    "import": "make a cache of latents that another trainer's script has written",
    "push": "push a cache to the Hugging Face hub, with a card",
    "clean": "remove what interrupted writes and older plans left in a cache",
    "stream": "read a cache as a trainer would, and measure it",
    "report": "show a cache on one page: progress, failures, decoded clips, latents",
    "preview": "write decoded clips as videos and pictures, beside their sources",
    "train-example": "train a small diffusion transformer on a cache",
    "init": "write a configuration with every key explained, for an encoder",
    "schema": "print the JSON schema of configurations",
    "completion": "print what bash, zsh or fish needs to complete command lines",
}
#: Jobs whose module has another name.
_MODULES = {
    "add-field": "add_field",
    "copy": "copy_cache",
    "drop-field": "drop_field",
    "import": "import_cache",
    "train-example": "training.train_example",
}


def main_of(job: str) -> Callable[[], int]:
    """Return the `main` of a job."""
    main: Callable[[], int] = importlib.import_module(
        f"{__package__}.{_MODULES.get(job, job)}"
    ).main
    return main


def main() -> int:
    """Run the job that the first argument names; returns its exit status."""
    open_streams()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in JOBS:
        sys.argv = [f"latentcache {name}", *sys.argv[2:]]
        if name in PARSERS:
            PARSERS[name]().parse_intermixed_args()  # help and mistakes come before anything heavy
        try:
            with Waiting(only_on_terminal=True) as waiting:
                waiting.say("starting")
                job = main_of(name)
        except KeyboardInterrupt:  # later ones are the job's own
            print("\nInterrupted.", file=sys.stderr)
            return INTERRUPTED
        return job()
    if name == "--version":
        print(f"latentcache {__version__}")
        return 0
    known = "\n".join(f"  latentcache {job:<15}{what}" for job, what in JOBS.items())
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
