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

from .cli import Parser, run_job
from .derived import add_arguments, derive, split_words


def main() -> int:
    """Parse the command line and run."""
    parser = Parser(prog="latentcache merge", description=__doc__)
    parser.add_argument(
        "caches",
        nargs="+",
        metavar="CACHE_URL",
        help="the caches, in the order in which their clips shall come; then cache.storage_options.*, and "
        "corpus.storage_options.* where those of these caches differ from the new one's",
    )
    parser.add_argument("-o", "--output", required=True, metavar="URL", help="the new cache")
    parser.add_argument(
        "--prefer",
        choices=["first", "last"],
        help="whose clips to take of sources with the same name and other content",
    )
    add_arguments(parser)
    return run_job(merge, parser)


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
