"""Add a field to a cache, such as the states of a text encoder: a layer beside the latents, which stay.

FIELD.yaml names fields as a configuration's section `fields` does. Run again, it finishes a field that was
interrupted, and encodes the texts that have changed since.
"""

from __future__ import annotations

import argparse
import sys

from latentcache.config.fields import load_fields
from latentcache.format.lease import Leaseholder
from latentcache.planning.planned import reopen_cache

from . import parsers
from .cli import OK, run_job, storage_options
from .fields import make_fields


def main() -> int:
    """Parse the command line and run."""
    return run_job(add_field, parsers.add_field())


def add_field(args: argparse.Namespace) -> int:
    """Plan the fields, and encode what is missing; returns the exit status."""
    fields = load_fields(args.fields)
    options = storage_options(args.overrides, others=True)
    cache = reopen_cache(args.cache, options, args.overrides, args.allow_encoder)
    with Leaseholder(lease_s=cache.config.run.lease_s, take=args.take_lease) as holder:
        cache = cache if args.dry_run else cache.held_by(holder)
        status = make_fields(cache, fields, update=args.update, dry_run=args.dry_run)
    if args.dry_run and status == OK:
        print("\nDry run: nothing was written.")
    return status


if __name__ == "__main__":
    sys.exit(main())
