"""Write a cache in the form that another trainer reads, and print what its configuration needs.

What could not be right is refused before anything is written. Every file is written whole, so that an
export that was stopped goes on with the same command. Exit status: 0.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from tqdm import tqdm

from latentcache.exchange.export import Options
from latentcache.exchange.export import export as write_export
from latentcache.exchange.layouts import check_options, get_layout
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.reading.cache import open_cache
from latentcache.storage.folder import Storage, redact

from . import parsers
from .cli import OK, run_job
from .derived import check_overrides, check_places, options_of


def main() -> int:
    """Parse the command line and run."""
    return run_job(export, parsers.export())


def export(args: argparse.Namespace) -> int:
    """Write what is missing of an export; returns the exit status."""
    check_overrides(args.overrides)
    options, out_options = options_of(args.overrides)
    check_places([args.cache], args.output)
    cache = open_cache(args.cache, options)
    wanted = Options(
        bucket=args.bucket,
        dtype=args.dtype,
        text=args.text,
        fields=tuple(args.field),
        seed=args.seed,
        model=args.model,
    )
    check_options(args.to, wanted)
    found = get_layout(args.to).export(cache, wanted)
    out = Storage(args.output, out_options)
    for note in found.notes:
        print(f"note     {note}")
    if kept := [name for name in cache.batch_columns if name not in SAMPLE_SCHEMA.names]:
        print(f"note     columns that this layout has no place for stay here: {', '.join(kept)}")
    left = write_export(cache, args.to, found, out, wanted)
    with contextlib.closing(left):
        total = next(left)
        print(f"files    {len(found.files)}, {len(found.files) - total} there already")
        _show(left, total)
    print(f"export   {redact(out.absolute_url)} is whole, for {args.to}\n")
    print(found.stanza(redact(out.absolute_url)))
    return OK


def _show(left: Iterator[int], total: int) -> None:
    """Show how many files are left of those that were missing."""
    with tqdm(total=total, unit="file", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        for number in left:
            bar.update(total - number - bar.n)


if __name__ == "__main__":
    sys.exit(main())
