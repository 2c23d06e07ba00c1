"""Remove a field from a cache: its folder, and nothing else. Readers that have it open cannot go on."""

from __future__ import annotations

import argparse
import shlex
import sys

from latentcache.config.sections import RunConfig
from latentcache.core.fields import check_name
from latentcache.errors import ConfigError, did_you_mean
from latentcache.format.fields.manifest import field_names
from latentcache.format.fields.paths import field_folder, field_index_path, field_json_path
from latentcache.format.lease import Leaseholder
from latentcache.format.manifest import read_manifest
from latentcache.storage.folder import Storage, redact

from . import parsers
from .cli import OK, human_bytes, run_job, storage_options


def main() -> int:
    """Parse the command line and run."""
    return run_job(drop_field, parsers.drop_field())


def drop_field(args: argparse.Namespace) -> int:
    """List what would go, and remove it if that is asked for; returns the exit status."""
    storage = Storage(args.cache, storage_options(args.overrides))
    manifest = read_manifest(storage)  # that it is a cache at all
    check_name(args.field)
    files = storage.files(field_folder(args.field))
    if not files:
        known = field_names(storage)
        raise ConfigError(
            f"{redact(args.cache)} has no field {args.field!r}.{did_you_mean(args.field, known)} "
            f"It has: {', '.join(known) or 'none'}."
        )
    size = human_bytes(sum(file.num_bytes for file in files))
    if not args.yes:
        url = shlex.quote(redact(args.cache))
        print(
            f"{len(files)} files, {size}, can go:  latentcache drop-field {url} {args.field} --yes"
        )
        return OK
    # The snapshot first, so that nobody reads halves; field.json last, so that this can be done again.
    order = {field_index_path(args.field): -1, field_json_path(args.field): 1}
    with Leaseholder(lease_s=RunConfig().lease_s, take=args.take_lease) as holder:
        writable = holder.over(storage, exclusive=manifest.exclusive)
        for file in sorted(files, key=lambda file: order.get(file.path, 0)):
            writable.delete(file.path)
    print(f"Removed the field {args.field}: {len(files)} files, {size}.")
    return OK


if __name__ == "__main__":
    sys.exit(main())
