"""Make one cache of several ones of the same recipe; nothing is decoded or encoded.

Clips that several caches have, of sources with the same name and content, are taken once. The new cache
knows the sources of all, so that `precompute` opens none of them again. A merge that was stopped goes on
with the same command. Exit status: 0.
"""

from __future__ import annotations

import argparse
import sys

from latentcache.copying.selection import Selection
from latentcache.errors import ConfigError

from . import parsers
from .cli import run_job
from .derived import derive, split_words


def main() -> int:
    """Parse the command line and run."""
    return run_job(merge, parsers.merge())


def merge(args: argparse.Namespace) -> int:
    """Merge caches; returns the exit status."""
    urls, overrides = split_words(args.caches)
    if len(urls) < 2:
        raise ConfigError("a merge takes two caches or more; latentcache copy copies one")
    return derive(
        args, "merge", urls, args.output, overrides, selection=Selection(), prefer=args.prefer
    )


if __name__ == "__main__":
    sys.exit(main())
