"""Show a cache on one page: what it is, what is done and what failed, and what its latents decode to."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from datetime import UTC, datetime
from typing import Any

from latentcache.core.devices import resolve_device
from latentcache.core.machine import install_command
from latentcache.core.units import human_bytes
from latentcache.errors import ConfigError
from latentcache.format.manifest import read_manifest
from latentcache.inspecting.field_counts import behind_of
from latentcache.inspecting.report.collect import Report, collect
from latentcache.inspecting.status_words import behind_lines
from latentcache.storage.folder import Storage

from . import parsers
from .cli import OK, output_file, run_job, storage_options, stored_config, write_file


def main() -> int:
    """Parse the command line and run."""
    return run_job(report, parsers.report())


def report(args: argparse.Namespace) -> int:
    """Gather, render and write; returns the exit status."""
    if args.clips < 0 or args.seed < 0:
        raise ConfigError("--clips and --seed are at least 0")
    output = output_file(args.output)
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "the report's plots need the package 'matplotlib', which is not installed. Run: "
            + install_command("report")
        )
    device = resolve_device(args.device, "--device")
    storage = Storage(args.cache, storage_options(args.overrides, others=True))
    manifest = read_manifest(storage)
    config = stored_config(manifest, args.cache, args.overrides, args.allow_encoder)
    found = collect(
        storage,
        manifest,
        config,
        num_clips=args.clips,
        seed=args.seed,
        device=device,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    from latentcache.inspecting.report.page import render  # matplotlib

    page = render(found, made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    write_file(output, page.encode("utf-8", "backslashreplace"))
    _print_summary(found, args.output, len(page))
    return OK


def _print_summary(found: Report, output: str, num_bytes: int) -> None:
    ok = sum(bucket.num_ok for bucket in found.facts.buckets)
    failed = sum(bucket.num_failed for bucket in found.facts.buckets)
    planned = sum(bucket.planned_clips for bucket in found.facts.buckets)
    print(f"cache    {ok} clips ok and {failed} failed of {planned} planned")
    for line in behind_lines(behind_of(found.facts.fields), found.url):
        print(f"behind   {line}")
    compared: list[Any] = [clip.quality for clip in found.clips if clip.quality]
    if compared:
        psnr = statistics.median(quality.psnr_db for quality in compared)
        print(f"quality  PSNR {psnr:.1f} dB, the median of {len(compared)} clips")
    if found.problem:
        print(f"No clip was decoded: {found.problem}", file=sys.stderr)
    for message in found.damaged:
        print(f"damaged  {message}", file=sys.stderr)
    print(f"report   {output} ({human_bytes(num_bytes)})")


if __name__ == "__main__":
    sys.exit(main())
