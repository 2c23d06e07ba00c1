"""Copy short shards, and shards with many retired rows, into full ones; nothing is decoded or encoded.

The new shards hold the same compressed bytes. Old rows count until the shard that replaces them is there,
so that readers see every clip once at any moment; a compaction that was stopped goes on with the same
command, or with `latentcache resume`. Later `latentcache clean` removes the old shards. Exit status: 0.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace

from latentcache.copying.compact import Rewritten, choose_shards, plan_compaction
from latentcache.copying.shards import pending_copies
from latentcache.errors import ConfigError, CorruptionError
from latentcache.format.fields.manifest import field_names, read_field
from latentcache.format.lease import Leaseholder
from latentcache.format.manifest import read_manifest, refresh
from latentcache.format.rounds import Rounds
from latentcache.format.snapshot import current_index
from latentcache.planning.create import take_step, write_metadata
from latentcache.planning.planned import PlannedCache
from latentcache.redaction import redact
from latentcache.running.publisher import RunSnapshot
from latentcache.storage.folder import Storage

from . import parsers
from .cli import OK, copying_config, run_job, storage_options
from .progress import copy_missing, print_left


def main() -> int:
    """Parse the command line and run."""
    return run_job(compact, parsers.compact())


def compact(args: argparse.Namespace) -> int:
    """Finish what was begun, plan what is worth it, and copy; returns the exit status."""
    if not 0 < args.below <= 1:
        raise ConfigError(
            f"--below is a part of a full shard, above 0 and up to 1, not {args.below}"
        )
    storage = Storage(args.cache, storage_options(args.overrides))
    manifest = read_manifest(storage)
    for name in field_names(storage):
        read_field(storage, name, manifest)  # before anything is planned, if it is damaged
    config = copying_config(manifest, args.cache, args.overrides)
    planned = PlannedCache(config=config, manifest=manifest, storage=storage)
    left = print_left(planned)
    if args.dry_run:
        _print(_choose(planned, args))
        if left:
            print("What is worth compacting is looked at again once what is left is copied.")
        print("Dry run: nothing was written.")
        return OK
    with Leaseholder(lease_s=config.run.lease_s, take=args.take_lease) as holder:
        if _compact(planned.held_by(holder), args):
            url = shlex.quote(redact(args.cache))
            print(f"The old shards can be removed later:  latentcache clean {url}")
    return OK


def _compact(planned: PlannedCache, args: argparse.Namespace) -> bool:
    """Finish what was begun, then what is worth it; returns whether there was any of that."""
    write_metadata(planned.storage, planned.manifest)  # that of a run that was stopped before it
    _copy(planned)
    rounds = Rounds("compaction")
    while True:
        rounds.next()
        chosen = _choose(planned, args)
        _print(chosen)
        taken = take_step(planned, plan_compaction(planned, chosen, drop_failed=args.drop_failed))
        if taken is not None:
            break
        planned = replace(planned, manifest=refresh(planned.storage, planned.manifest))
        _copy(planned)
    _copy(taken)
    RunSnapshot(taken.storage, taken.manifest, taken.config.run.snapshot_interval_s).close()
    return bool(chosen)


def _choose(planned: PlannedCache, args: argparse.Namespace) -> Sequence[Rewritten]:
    index = current_index(planned.storage, planned.manifest).to_pylist()
    return choose_shards(planned.manifest, index, below=args.below, drop_failed=args.drop_failed)


def _copy(planned: PlannedCache) -> None:
    """Make planned copies. Raises CorruptionError where that cannot be done."""
    copy_missing(planned, planned.missing_shards())
    if left := pending_copies(planned, planned.missing_shards()):
        url = redact(planned.storage.url)
        raise CorruptionError(
            f"{url}: {len(left)} shards cannot be copied, such as {left[0].name}, for what they are copied "
            "from is damaged. Old rows count until they are replaced. Plan the damaged clips again: "
            f"latentcache verify {shlex.quote(url)} --repair; then encode them, and copy the others: "
            f"latentcache resume {shlex.quote(url)}"
        )


def _print(chosen: Sequence[Rewritten]) -> None:
    if not chosen:
        print("Nothing to compact.")
        return
    print(f"{'bucket':<16}{'shards':>9}{'retired rows':>15}{'clips':>10}{'new shards':>13}")
    for rewritten in chosen:
        print(
            f"{rewritten.bucket:<16}{len(rewritten.shards):>9}{rewritten.num_retired:>15}"
            f"{rewritten.num_clips:>10}{rewritten.num_new:>13}"
        )


if __name__ == "__main__":
    sys.exit(main())
