"""Push a cache to the Hugging Face hub as a data set, with a card. Exit status: 0.

Files go in one commit, so that a reader sees all of the cache or nothing. A push that was stopped goes on
with the same command: the hub keeps the files that it has.
"""

from __future__ import annotations

import argparse
import sys

from latentcache.core.units import human_bytes
from latentcache.exchange.hub import card_of, files_of, repo_of, upload
from latentcache.inspecting.leftovers import is_cache_file
from latentcache.reading.cache import open_cache

from . import parsers
from .cli import OK, run_job


def main() -> int:
    """Parse the command line and run."""
    return run_job(push, parsers.push())


def push(args: argparse.Namespace) -> int:
    """Show the card, and push unless it is a dry run; returns the exit status."""
    repo = repo_of(args.target)
    cache = open_cache(args.cache)
    card = card_of(cache, repo, args.license)
    sizes = {file.path: file.num_bytes for file in cache.storage.files("")}
    files = files_of(sizes)
    print(
        f"files    {len(files)}, {human_bytes(sum(sizes[path] for path in files))}, and this card:\n"
    )
    print(card)
    if args.dry_run:
        print("Dry run: nothing was pushed.")
        return OK
    print(f"pushed   {upload(cache, repo, card, is_cache_file, private=args.private)}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
