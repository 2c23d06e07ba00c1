"""Add a field to a cache, such as the states of a text encoder: a layer beside the latents, which stay.

FIELD.yaml names fields as a configuration's section `fields` does. Run again, it finishes a field that was
interrupted, and encodes the texts that have changed since.
"""

from __future__ import annotations

import argparse
import sys

from latentcache.config.fields import load_fields
from latentcache.planning.planned import reopen_cache

from .cli import OK, Parser, run_job, storage_options
from .fields import make_fields


def main() -> int:
    """Parse the command line and run."""
    parser = Parser(prog="latentcache add-field", description=__doc__)
    parser.add_argument("cache", metavar="CACHE_URL")
    parser.add_argument("fields", metavar="FIELD.yaml")
    parser.add_argument(
        "--update",
        action="store_true",
        help="encode texts that have changed since the field was planned, too",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    parser.add_overrides("run.* settings, or where things are here")
    return run_job(add_field, parser)


def add_field(args: argparse.Namespace) -> int:
    """Plan the fields, and encode what is missing; returns the exit status."""
    fields = load_fields(args.fields)
    options = storage_options(args.overrides, others=True)
    cache = reopen_cache(args.cache, options, args.overrides)
    status = make_fields(cache, fields, update=args.update, dry_run=args.dry_run)
    if args.dry_run and status == OK:
        print("\nDry run: nothing was written.")
    return status


if __name__ == "__main__":
    sys.exit(main())
