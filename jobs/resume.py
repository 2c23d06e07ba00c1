"""Finish a cache: encode the shards that are missing, and with --retry-failed the clips that failed."""

from __future__ import annotations

import argparse
import sys

from latentcache.format.snapshot import current_index
from latentcache.planning.changed_sources import check_sources
from latentcache.planning.planned import failed_shards, reopen_cache
from latentcache.running.driver import check_device

from .cli import Parser, run_job, storage_options
from .progress import encode


def main() -> int:
    """Parse the command line and run."""
    parser = Parser(prog="latentcache resume", description=__doc__)
    parser.add_cache("run.* settings, or ")
    parser.add_argument(
        "--retry-failed", action="store_true", help="encode failed clips again, too"
    )
    parser.add_argument(
        "--skip-changed", action="store_true", help="record clips of changed sources as failed"
    )
    return run_job(resume, parser)


def resume(args: argparse.Namespace) -> int:
    """Check that everything still matches, and encode what is left; returns the exit status."""
    options = storage_options(args.overrides, others=True)
    planned = reopen_cache(args.cache, options, args.overrides)
    missing = planned.missing_shards()
    committed = current_index(planned.storage)
    failed = failed_shards(committed) if args.retry_failed else []
    tasks = [*missing, *failed]
    if tasks:
        check_device(planned.config.run)
    looked_at = None if args.skip_changed else check_sources(planned, tasks)
    shards = sum(bucket.num_shards for bucket in planned.manifest.buckets)
    print(f"cache    {shards} shards, {committed.num_rows} committed, {len(tasks)} to encode")
    if looked_at is not None:
        print(f"sources  {looked_at} of the source files were looked at; decoding looks at each")
    return encode(planned, missing, failed)


if __name__ == "__main__":
    sys.exit(main())
