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

from latentcache.copying.compact import Rewritten, choose_shards, plan_compaction
from latentcache.copying.shards import pending_copies
from latentcache.errors import ConfigError, CorruptionError
from latentcache.format.manifest import read_manifest, refresh
from latentcache.format.snapshot import current_index
from latentcache.planning.create import take_step, write_metadata
from latentcache.planning.planned import PlannedCache
from latentcache.redaction import redact
from latentcache.running.publisher import RunSnapshot
from latentcache.storage.folder import Storage

from .cli import OK, Parser, copying_config, run_job, storage_options
from .progress import copy_missing

#: Shards of which fewer rows count than this part of a full one's are rewritten.
BELOW = 0.75


def main() -> int:
    """Parse the command line and run."""
    parser = Parser(prog="latentcache compact", description=__doc__)
    parser.add_cache()
    parser.add_argument(
        "--below",
        type=float,
        default=BELOW,
        metavar="PART",
        help=f"rewrite shards of which less than this part of a full one counts ({BELOW})",
    )
    parser.add_argument(
        "--drop-failed",
        action="store_true",
        help="retire clips that failed, instead of copying their rows",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
    return run_job(compact, parser)


def compact(args: argparse.Namespace) -> int:
    """Finish what was begun, plan what is worth it, and copy; returns the exit status."""
    if not 0 < args.below <= 1:
        raise ConfigError(
            f"--below is a part of a full shard, above 0 and up to 1, not {args.below}"
        )
    storage = Storage(args.cache, storage_options(args.overrides))
    manifest = read_manifest(storage)
    config = copying_config(manifest, args.cache, args.overrides)
    planned = PlannedCache(config=config, manifest=manifest, storage=storage)
    if not args.dry_run:
        write_metadata(storage, manifest)  # that of a run that was stopped before it
        _copy(planned)
    while True:
        index = current_index(storage, planned.manifest).to_pylist()
        chosen = choose_shards(
            planned.manifest, index, below=args.below, drop_failed=args.drop_failed
        )
        _print(chosen)
        if args.dry_run:
            print("Dry run: nothing was written.")
            return OK
        step = plan_compaction(planned, chosen, drop_failed=args.drop_failed)
        taken = take_step(planned, step)
        if taken is not None:
            break
        manifest = refresh(storage, planned.manifest)
        planned = PlannedCache(config=config, manifest=manifest, storage=storage)
        _copy(planned)
    _copy(taken)
    RunSnapshot(storage, taken.manifest, config.run.snapshot_interval_s).close()
    if chosen:
        url = shlex.quote(redact(args.cache))
        print(f"The old shards can be removed later:  latentcache clean {url}")
    return OK


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
