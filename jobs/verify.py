"""Check every byte of a cache; --sample encodes some clips again, --repair plans damaged clips again.

Exit status: 0 sound; 3 problems were found, even if --repair has planned the clips again: until
`latentcache resume` has encoded them, their latents are missing; 1 a sample was not compared: the storage
of its sources did not answer, or no clip could be encoded again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from tqdm import tqdm

from latentcache.config.sections import RunConfig
from latentcache.core.devices import resolve_device
from latentcache.errors import CacheError, ConfigError
from latentcache.format.lease import Leaseholder
from latentcache.format.manifest import read_manifest
from latentcache.format.paths import CACHE_JSON, COPIED, GENERATIONS, INDEX, RETIRED
from latentcache.inspecting.status_words import import_command
from latentcache.inspecting.verify import Findings, verify, write_derived
from latentcache.planning.create import repair_cache
from latentcache.planning.fields.planned import repair_field
from latentcache.redaction import printable
from latentcache.storage.folder import Storage, redact

from . import parsers
from .cli import OK, OTHER, SOME_FAILED, human_bytes, run_job, storage_options
from .fields import worse

if TYPE_CHECKING:
    from latentcache.inspecting.reencode import Repeated
    from latentcache.planning.planned import PlannedCache

#: Problems that are printed one by one.
NAMED = 50


def main() -> int:
    """Parse the command line and run."""
    return run_job(check, parsers.verify())


def check(args: argparse.Namespace) -> int:
    """Verify, sample and repair; returns the exit status."""
    if args.sample < 0:
        raise ConfigError(f"--sample is a number of clips, not {args.sample}")
    if args.seed < 0:
        raise ConfigError(f"--seed is at least 0, not {args.seed}")
    device = resolve_device(args.device, "--device")
    options = storage_options(args.overrides, others=args.sample > 0)
    storage, url = Storage(args.cache, options), redact(args.cache)
    with _Bar() as bar:
        findings = verify(storage, bar.start, bar.step)
    for note in findings.notes:
        print(f"note     {note}")
    status = OK
    if args.sample and findings.sound:
        status = _check_sample(args, findings, device)
    _print_problems(findings)
    for of_field in findings.fields:
        print(
            f"field    {of_field.name}: {of_field.num_samples} samples, "
            f"{human_bytes(of_field.num_bytes)}, {len(of_field.problems)} problems"
        )
    print(
        f"\nverified {url}: {findings.num_clips} clips in {len(findings.sound)} sound shards, "
        f"{human_bytes(findings.num_bytes)} of latents; {len(findings.problems)} problems"
    )
    if args.repair and findings.problems:
        with Leaseholder(lease_s=RunConfig().lease_s, take=args.take_lease) as holder:
            _repair(storage, findings, holder)
    if findings.damaged or any(of_field.damaged for of_field in findings.fields):
        _print_next(storage, url, args.repair)
    return worse(status, SOME_FAILED if findings.problems else OK)


class _Bar:
    """Counts shards on a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, num_shards: int) -> None:
        """Begin to count."""
        if sys.stderr.isatty():
            self._bar = tqdm(total=num_shards, unit="shard", dynamic_ncols=True, leave=False)

    def step(self) -> None:
        """Count one shard."""
        if self._bar is not None:
            self._bar.update()


def _check_sample(args: argparse.Namespace, findings: Findings, device: torch.device) -> int:
    """Encode sampled clips again, and print what came of it; returns the exit status of that."""
    from latentcache.planning.planned import reopen_cache

    options = storage_options(args.overrides, others=True)
    planned = reopen_cache(args.cache, options, args.overrides, args.allow_encoder)
    if not planned.manifest.provenance.has_pixels:
        print("sample   none: the latents were imported, so there are no pixels to encode again")
        return OK
    results = _repeat(planned, args, findings, device)
    _print_sample(results, findings)
    if num_unread := sum(result.is_unread for result in results):
        print(
            f"sample   {num_unread} of {len(results)} clips could not be read, for their storage did not "
            "answer, so nothing is known of their latents. Run the same command again when it does. If the "
            "corpus is elsewhere now, run precompute with it first, which notes the new place"
        )
        return OTHER
    if results and all(result.problem is not None for result in results):
        print("sample   No clip was encoded again, so nothing is known of the latents")
        return OTHER
    return OK


def _repeat(
    planned: PlannedCache, args: argparse.Namespace, findings: Findings, device: torch.device
) -> list[Repeated]:
    """Encode clips again that are sampled among the sound shards."""
    from latentcache.format.snapshot import current_index, shard_of
    from latentcache.inspecting.choose import sample_places
    from latentcache.inspecting.reencode import repeat
    from latentcache.reading.cache import Cache

    index = current_index(planned.storage, planned.manifest)
    cache, trusted = Cache(planned.storage, planned.manifest, index), set(findings.sound)
    sound = index.filter(
        pa.array([shard_of(row) in trusted for row in index.to_pylist()], pa.bool_())
    )
    places = sample_places(cache, sound, args.sample, args.seed)
    return list(repeat(planned, cache, places, device))


def _print_sample(results: Sequence[Repeated], findings: Findings) -> None:
    from latentcache.inspecting.reencode import TOLERANCE

    for result in results:
        if result.problem is not None:
            print(f"sample   {printable(result.key)}: not encoded again: {result.problem}")
        elif not result.ok:
            findings.add(
                f"latents/{result.place.shard.bucket}",
                f"clip {result.key!r} of shard {result.place.shard.number} is off by "
                f"{result.difference:.2g} (at most {TOLERANCE} is taken for another machine's rounding)",
            )
    tried = [result for result in results if result.problem is None]
    equal = sum(result.difference == 0 for result in tried)
    largest = max((result.difference for result in tried), default=0.0)
    print(
        f"sample   {len(tried)} of {len(results)} clips encoded again: {equal} equal bit for bit, the "
        f"largest difference is {largest:.2g}"
    )


def _print_problems(findings: Findings) -> None:
    for problem in findings.problems[:NAMED]:
        print(f"problem  {problem.path}: {problem.what}")
    if len(findings.problems) > NAMED:
        print(f"         and {len(findings.problems) - NAMED} more")


def _repair(storage: Storage, findings: Findings, holder: Leaseholder) -> None:
    fixed = (CACHE_JSON, f"{GENERATIONS}/", f"{RETIRED}/", f"{COPIED}/")
    if broken := [p.path for p in findings.problems if p.path.startswith(fixed)]:
        raise CacheError(
            f"{redact(storage.url)} cannot be repaired while its {broken[0]} is damaged: what the shards "
            "should be is unknown. Nothing was changed."
        )
    storage = holder.over(storage, exclusive=read_manifest(storage).exclusive)
    write_derived(storage, findings)
    is_index_wrong = any(problem.path == INDEX for problem in findings.problems)
    planned = repair_cache(
        storage, findings.damaged, derived=findings.derived, is_index_wrong=is_index_wrong
    )
    print(
        f"repaired {planned} clips are planned again, and {len(findings.derived)} sample tables were "
        "written again from their objects"
    )
    if is_index_wrong:
        print(f"repaired {INDEX} was written again from the sample tables")
    for of_field in findings.fields:
        rows = {shard: frozenset(rows) for shard, rows in of_field.damaged.items()}
        if rows and of_field.manifest is not None:
            num = repair_field(storage, of_field.manifest, rows)
            before = sum(map(len, rows.values())) - num
            more = f"; {before} were before" if before else ""
            print(f"repaired {num} clips of the field {of_field.name} are planned again{more}")
    rest = sum(not problem.is_repairable for problem in findings.problems)
    if rest:
        print(f"         {rest} problems are not of shards: each says above what repairs it")


def _print_next(storage: Storage, url: str, repaired: bool) -> None:
    quoted = shlex.quote(url)
    if not repaired:
        print(f"Plan them again:      latentcache verify {quoted} --repair")
    try:
        command = import_command(read_manifest(storage), quoted)
    except CacheError:  # which is among the problems
        command = None
    if command:
        print(f"Import them again:    {command}")
    else:
        print(f"Encode them again:    latentcache resume {quoted}")


if __name__ == "__main__":
    sys.exit(main())
