"""Finish a cache: encode the shards that are missing, and with --retry-failed the clips that failed."""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections.abc import Mapping, Sequence

from latentcache.core.records import ShardId
from latentcache.errors import CacheError
from latentcache.format.lease import Leaseholder
from latentcache.format.manifest import refresh
from latentcache.format.rounds import Rounds
from latentcache.inspecting.status_words import import_command
from latentcache.planning.changed_sources import check_sources
from latentcache.planning.create import take_step, write_metadata
from latentcache.planning.grow import Difference
from latentcache.planning.planned import PlannedCache, reopen_cache
from latentcache.planning.retry import plan_retry
from latentcache.planning.to_read import failed_rows
from latentcache.running.driver import check_device
from latentcache.running.probing import prober_of
from latentcache.running.scalars import check_scalars
from latentcache.running.summary import Summary
from latentcache.storage.folder import redact

from . import parsers
from .behind import say_behind
from .cli import OK, SOME_FAILED, run_job, storage_options
from .fields import resume_fields, share_known_fields, worse
from .output import some_names
from .progress import copy_missing, encode


def main() -> int:
    """Parse the command line and run."""
    return run_job(resume, parsers.resume())


def resume(args: argparse.Namespace) -> int:
    """Check that everything still matches, and encode what is left; returns the exit status."""
    options = storage_options(args.overrides, others=True, fields=True)
    planned = reopen_cache(args.cache, options, args.overrides, args.allow_encoder)
    with Leaseholder(lease_s=planned.config.run.lease_s, take=args.take_lease) as holder:
        planned = planned.held_by(holder)
        return _fields(args, planned) if args.field else _go_on(planned, holder, args)


def _go_on(planned: PlannedCache, holder: Leaseholder, args: argparse.Namespace) -> int:
    if args.retry_failed:
        planned = _plan_again(planned, holder)
    write_metadata(planned.storage, planned.manifest)  # that of a run that was stopped before it
    missing = copy_missing(planned, planned.missing_shards())
    _check_imported(planned, missing)
    if missing:
        check_device(planned.config.run)
        check_scalars(planned.config.run)
    looked_at = None if args.skip_changed else check_sources(planned, missing)
    shards = planned.manifest.num_shards
    print(f"cache    {shards} shards, {shards - len(missing)} committed, {len(missing)} to encode")
    if looked_at is not None:
        print(f"sources  {looked_at} of the source files were looked at; decoding looks at each")
    shared = share_known_fields(planned, args.overrides, missing)
    status = encode(planned, missing, shared)
    if status in (OK, SOME_FAILED):
        status = worse(status, _fields(args, planned, shared.summaries))
    return status


def _check_imported(planned: PlannedCache, missing: Sequence[ShardId]) -> None:
    """Raise CacheError for clips that were made by another program: nothing here is encoded."""
    url = redact(planned.storage.url)
    command = import_command(planned.manifest, shlex.quote(url))
    if missing and command:
        raise CacheError(
            f"{url} is an import of {planned.manifest.generations[0].selection}, and {len(missing)} shards "
            f"are still to be imported: there is nothing to encode. Go on with:  {command}"
        )


def _fields(
    args: argparse.Namespace, planned: PlannedCache, made: Mapping[str, Summary] | None = None
) -> int:
    status = resume_fields(
        planned, args.overrides, names=args.field, retry_failed=args.retry_failed, made=made
    )
    if args.field and status in (OK, SOME_FAILED):
        say_behind(planned, args.field)
    return status


def _plan_again(planned: PlannedCache, holder: Leaseholder) -> PlannedCache:
    """Plan failed clips and rejected sources again, as new rows; nothing that is there changes."""
    rounds = Rounds("planning the failed clips again")
    while True:
        rounds.next()
        failed = failed_rows(planned.storage, planned.manifest)
        pool = functools.partial(prober_of, planned.config)
        step, difference = plan_retry(planned, failed, pool)
        print(
            f"retry    {failed.num_rows} failed clips and {difference.num_rejected} rejected sources were "
            f"looked at; {step.num_clips} clips are planned again"
        )
        _print_kept(difference)
        taken = take_step(planned, step, holder)
        if taken is not None:
            return taken
        manifest = refresh(planned.storage, planned.manifest)
        planned = PlannedCache(config=planned.config, manifest=manifest, storage=planned.storage)


def _print_kept(difference: Difference) -> None:
    kinds = (
        (
            difference.without_values,
            "whose files have changed, and whose values per frame only the corpus has",
        ),
        (
            difference.rewritten,
            "in tar files or tables that were written again, of which only the corpus says where they are",
        ),
        (
            difference.unstamped,
            "in tar files or tables that may have been written again, as their storage names neither a "
            "time of change nor an ETag; only the corpus says where they are",
        ),
    )
    for names, why in kinds:
        if len(names):
            print(
                f"kept     {len(names)} sources {why}; their clips stay: {some_names(names)}. To take "
                "them in, run `latentcache precompute CONFIG.yaml`"
            )


if __name__ == "__main__":
    sys.exit(main())
