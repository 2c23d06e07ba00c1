"""List what a cache's folder holds that no plan refers to; with --yes remove it, and nothing else.

That is temporary files of interrupted writes, older than an hour, and tables and objects of buckets and
shards that the plan does not have. Foreign files are listed and left. Exit status: 0.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence

from latentcache.format.manifest import read_manifest
from latentcache.inspecting.leftovers import Leftovers, find_leftovers
from latentcache.redaction import printable
from latentcache.storage.folder import Storage, StoredFile, redact

from .cli import OK, Parser, human_bytes, run_job, storage_options

#: Files of one kind that are listed one by one.
NAMED = 100


def main() -> int:
    """Parse the command line and run."""
    parser = Parser(prog="latentcache clean", description=__doc__)
    parser.add_cache()
    parser.add_argument("--yes", action="store_true", help="remove what is listed as removable")
    return run_job(clean, parser)


def clean(args: argparse.Namespace) -> int:
    """List leftovers, and remove them where that is asked for; returns the exit status."""
    storage = Storage(args.cache, storage_options(args.overrides))
    manifest = read_manifest(storage)
    found = find_leftovers(storage.files(), manifest, time.time())
    _print(found)
    removable = found.removable
    size = human_bytes(sum(file.num_bytes for file in removable))
    if not removable:
        print("Nothing to remove.")
    elif args.yes:
        for file in removable:
            storage.delete(file.path)
        print(f"Removed {len(removable)} files, {size}.")
    else:
        url = shlex.quote(redact(args.cache))
        print(f"{len(removable)} files, {size}, can go:  latentcache clean {url} --yes")
    return OK


def _print(found: Leftovers) -> None:
    _print_files("of an interrupted write", found.temporary)
    _print_files("of no plan", found.unplanned)
    _print_files("perhaps being written (less than an hour old); left", found.recent)
    _print_files("foreign; left", found.foreign)


def _print_files(what: str, files: Sequence[StoredFile]) -> None:
    for file in files[:NAMED]:
        print(f"{human_bytes(file.num_bytes):>10}  {printable(file.path)}  ({what})")
    if len(files) > NAMED:
        print(f"{'':>10}  and {len(files) - NAMED} more {what}")


if __name__ == "__main__":
    sys.exit(main())
