"""List what a cache's folder holds beyond the cache; with --yes remove it, and nothing else.

That is temporary files of interrupted writes and tables of no generation, older than an hour, and shards
all of whose rows were retired more than --retired-days ago. Readers that opened the cache before cannot
read those any more. Foreign files are listed and left. Exit status: 0.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from latentcache.config.sections import RunConfig
from latentcache.errors import CorruptionError
from latentcache.format.fields.manifest import FieldManifest, field_names, read_field
from latentcache.format.fields.paths import field_folder, field_json_path
from latentcache.format.fields.snapshot import publish_field
from latentcache.format.lease import Leaseholder
from latentcache.format.manifest import Manifest, read_manifest, refresh
from latentcache.format.snapshot import known_index, shard_of
from latentcache.inspecting.leftovers import (
    Leftovers,
    find_leftovers,
    is_sample_table,
    retired_shards,
)
from latentcache.redaction import printable
from latentcache.storage.folder import Storage, StoredFile, redact

from . import parsers
from .cli import OK, human_bytes, run_job, storage_options

#: Files of one kind that are listed one by one.
NAMED = 100


def main() -> int:
    """Parse the command line and run."""
    return run_job(clean, parsers.clean())


def clean(args: argparse.Namespace) -> int:
    """List leftovers, and remove them where that is asked for; returns the exit status."""
    storage = Storage(args.cache, storage_options(args.overrides))
    manifest = read_manifest(storage)
    now_s = time.time()
    files = storage.files()
    retired = set(retired_shards(storage, files, manifest, now_s - 86400 * args.retired_days))
    held = retired.intersection(map(shard_of, known_index(storage, manifest).to_pylist()))
    retired -= held
    fields = [read_field(storage, name, manifest) for name in field_names(storage)]
    found = find_leftovers(files, manifest, now_s, retired, fields)
    _print(found)
    url = shlex.quote(redact(args.cache))
    if held:
        print(
            f"{len(held)} retired shards stay: the published snapshot still has them, for the run that "
            f"retired them was killed. Publish what counts now:  latentcache resume {url}"
        )
    removable = found.removable
    size = human_bytes(sum(file.num_bytes for file in removable))
    if not removable:
        print("Nothing to remove.")
    elif args.yes:
        with Leaseholder(lease_s=RunConfig().lease_s, take=args.take_lease) as holder:
            writable = holder.over(storage, exclusive=manifest.exclusive)
            # A run that was halted may have taken its step since, and then its tables count.
            now = refresh(storage, manifest)
            removable = find_leftovers(removable, now, now_s, retired, fields).removable
            # Sample tables first: what a clean that is stopped leaves behind counts for nothing.
            for file in sorted(removable, key=lambda file: not is_sample_table(file.path)):
                writable.delete(file.path)
            _publish_fields(writable, now, fields, removable)
        size = human_bytes(sum(file.num_bytes for file in removable))
        print(f"Removed {len(removable)} files, {size}.")
    else:
        print(f"{len(removable)} files, {size}, can go:  latentcache clean {url} --yes")
    return OK


def _publish_fields(
    storage: Storage,
    manifest: Manifest,
    fields: Sequence[FieldManifest],
    removed: Sequence[StoredFile],
) -> None:
    """Publish the snapshots of fields of which files were removed, perhaps the last ones of a shard."""
    for field in fields:
        folder = f"{field_folder(field.name)}/"
        is_there = storage.exists(field_json_path(field.name))
        if is_there and any(file.path.startswith(folder) for file in removed):
            with suppress(CorruptionError):  # of another table: the field's next run publishes it
                publish_field(storage, field, manifest)


def _print(found: Leftovers) -> None:
    _print_files("of an interrupted write", found.temporary)
    _print_files("of no generation and no field", found.unplanned)
    _print_files("of a retired shard", found.retired)
    _print_files("perhaps being written (less than an hour old); left", found.recent)
    _print_files("foreign; left", found.foreign)


def _print_files(what: str, files: Sequence[StoredFile]) -> None:
    for file in files[:NAMED]:
        print(f"{human_bytes(file.num_bytes):>10}  {printable(file.path)}  ({what})")
    if len(files) > NAMED:
        print(f"{'':>10}  and {len(files) - NAMED} more {what}")


if __name__ == "__main__":
    sys.exit(main())
