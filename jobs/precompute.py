"""Encode a corpus into a cache: plan, encode what is missing, publish the snapshot, say what to do next."""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import yaml
from tqdm import tqdm

from latentcache.config.clips import ClipsConfig
from latentcache.config.fields import FieldConfig, parse_fields
from latentcache.config.files import load_config
from latentcache.config.sections import Config
from latentcache.core.records import REASONS
from latentcache.core.spec import ITEM_BYTES
from latentcache.corpus.sources import Corpus
from latentcache.format.lease import Leaseholder
from latentcache.format.manifest import Manifest
from latentcache.planning.grow import Difference
from latentcache.planning.planned import PlannedCache
from latentcache.planning.planner import Hooks, grow_cache
from latentcache.planning.step import Step
from latentcache.redaction import printable
from latentcache.running.driver import check_device
from latentcache.running.probing import prober_of
from latentcache.running.scalars import check_scalars
from latentcache.storage.folder import redact

from . import parsers
from .behind import say_behind
from .cli import OK, SOME_FAILED, human_bytes, run_job
from .field_plans import check_fields, check_step
from .fields import make_fields, note_folders, share_fields, worse
from .output import some_names
from .progress import copy_missing, encode, print_left
from .waiting import LINE_INTERVAL_S, Waiting


def main() -> int:
    """Parse the command line and run."""
    return run_job(precompute, parsers.precompute())


def precompute(args: argparse.Namespace) -> int:
    """Plan what is new, and encode what is missing; returns the exit status."""
    config = load_config(args.config, args.overrides)
    fields = parse_fields(config.fields)
    if not args.dry_run:
        check_device(config.run)
        check_scalars(config.run)
    with Leaseholder(lease_s=config.run.lease_s, take=args.take_lease) as holder:
        planned = _plan(config, fields, holder, args)
        checked = check_fields(planned, fields, dry_run=args.dry_run)
        if args.dry_run:
            print("\nDry run: nothing was written.")
            return 0
        note_folders(checked)
        missing = copy_missing(planned, planned.missing_shards())
        shared = share_fields(planned, checked, missing)
        status = encode(planned, missing, shared)
        if status in (OK, SOME_FAILED):
            made = make_fields(
                planned, fields, made=shared.summaries, corpus=planned.config.corpus.source
            )
            status = worse(status, made)
            say_behind(planned, fields)
        return status


def _plan(
    config: Config,
    fields: Mapping[str, FieldConfig],
    holder: Leaseholder,
    args: argparse.Namespace,
) -> PlannedCache:
    def look(cache: PlannedCache, step: Step, difference: Difference) -> None:
        _print_step(args.prune, cache, step, difference)
        check_step(fields, cache, step)

    with _ProbeBar() as bar:
        hooks = Hooks(
            on_sources=bar.start,
            on_probed=bar.step,
            on_step=look,
        )
        return grow_cache(
            config,
            prune=args.prune,
            check_content=args.check_content,
            dry_run=args.dry_run,
            hooks=hooks,
            holder=holder,
            prober=prober_of,
        )


class _ProbeBar:
    """Shows what was found in the corpus, and the probing of it on a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._num_sources = self._num_probed = 0
        self._printed_s = time.monotonic()
        self._waiting = Waiting()

    def __enter__(self) -> _ProbeBar:
        self._waiting.say("listing the corpus")
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.stop()
        if self._bar is not None:
            self._bar.close()

    def start(self, corpus: Corpus) -> None:
        """Say what the corpus holds."""
        self._waiting.stop()
        kinds = Counter(corpus.table["kind"].to_pylist())
        found = ", ".join(
            f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(kinds.items())
        )
        ignored = ", ".join(f"{count} {suffix}" for suffix, count in sorted(corpus.ignored.items()))
        print(f"corpus   {found}" + (f"; ignored: {ignored}" if ignored else ""), flush=True)
        for note in corpus.notes:
            print(f"note     {note}", flush=True)
        self._num_sources = total = corpus.table.num_rows
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, unit="file", desc="probing", dynamic_ncols=True, leave=False
            )

    def step(self) -> None:
        """Count one probed source."""
        self._num_probed += 1
        if self._bar is not None:
            self._bar.update()
        elif time.monotonic() - self._printed_s > LINE_INTERVAL_S:
            self._printed_s = time.monotonic()
            print(f"probing  {self._num_probed}/{self._num_sources} files", flush=True)


def _print_step(prune: bool, planned: PlannedCache, step: Step, difference: Difference) -> None:
    manifest = planned.manifest
    spec = manifest.spec
    print(
        f"encoder  {spec.model_class}, {spec.channels} channels, stores {spec.stored} as {spec.dtype}"
    )
    url = redact(planned.storage.url)
    print(f"cache    {url} ({manifest.format}, {manifest.fingerprint[:12]})")
    _print_clips(planned.config.clips)
    if manifest.generations:
        _print_difference(difference, prune)
        _print_corpus(step)
        print_left(planned)
    if difference.num_saved:
        print(
            f"probed   {difference.num_saved} of them were probed before, by a run that was stopped"
        )
    if step.clips:
        _print_buckets(manifest, step)
        _print_notes(difference)
    _print_rejected(step.rejected)


def _print_clips(clips: ClipsConfig) -> None:
    """Say what a preset stands for, or what else takes the place of the usual pixels."""
    if clips.resize is None and clips.sampling == "nearest":
        return
    if clips.resize is not None:
        print(f"resize   {clips.resize.in_words()}")
    plain = clips.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(plain, default_flow_style=True, width=98, sort_keys=False)
    print(textwrap.indent(text.strip(), " " * 9).replace(" " * 9, "clips    ", 1))


def _print_difference(difference: Difference, prune: bool) -> None:
    """Say in one screen how the corpus differs from what the cache knows."""
    gone = "are retired" if prune else "stay; --prune retires them"
    kinds = [
        ("new", difference.new, ""),
        ("changed", difference.changed, ", whose old clips are retired"),
        (
            "partial",
            difference.completed,
            ", of which some clips were there; all are planned again",
        ),
        ("repaired", difference.repaired, ", which were rejected before"),
        ("moved", difference.moved, ""),
        ("touched", difference.touched, ", whose content is the same"),
        ("gone", difference.gone, f", which {gone}"),
        (
            "kept",
            difference.unreadable,
            ", which cannot be used now; their clips, captions and kept columns stay",
        ),
    ]
    for word, names, what in kinds:
        if len(names):
            print(f"{word:<9}{len(names)} sources{what}: {some_names(names)}")
    for name, why in difference.why.items():
        print(f"  {printable(name)}: {why}")
    if difference.num_relabelled:
        print(f"captions {difference.num_relabelled} clips with other captions or kept columns")
    if num_lost := difference.captions.num_lost:
        print(
            f"captions {num_lost} of them have lost their caption: the corpus has none for them any more"
        )
    if num_kept := difference.captions.num_kept:
        print(f"captions {num_kept} clips keep theirs, for the corpus has no captions any more")
    print(f"same     {difference.num_same} sources; {difference.num_probed} were opened")


def _print_corpus(step: Step) -> None:
    """Say where the corpus is, where known sources came from one in another folder."""
    if step.takes_over:
        where = redact(step.corpus) or "several folders"
        print(f"corpus   in {where} now; known sources came from one in another folder")


def _print_buckets(manifest: Manifest, step: Step) -> None:
    print(f"\n{'bucket':<16}{'clips':>10}{'shards':>9}  {'latent':<22}{'raw bytes':>12}")
    total = shards = 0
    for bucket, tables in sorted(step.clips.items()):
        clips = sum(table.num_rows for table in tables)
        shape = manifest.spec.latent_shape(bucket.frames, bucket.height, bucket.width)
        size = clips * math.prod(shape) * ITEM_BYTES[manifest.spec.dtype]
        num_shards = -(-clips // manifest.shard_clips)
        total, shards = total + size, shards + num_shards
        text = "x".join(map(str, shape))
        print(f"{bucket.name:<16}{clips:>10}{num_shards:>9}  {text:<22}{human_bytes(size):>12}")
    print(f"{'in all':<16}{step.num_clips:>10}{shards:>9}  {'':<22}{human_bytes(total):>12}")


def _print_notes(difference: Difference) -> None:
    for note in difference.notes:
        names = f": {some_names(note.names)}" if len(note.names) else ""
        print(f"{note.what:<9}{note.text}{names}")


def _print_rejected(rejected: pa.Table | None) -> None:
    if rejected is None:
        return
    reasons = Counter(rejected["reason"].to_pylist())
    for reason, count in reasons.most_common():
        print(f"rejected: {count} x {reason}: {REASONS[reason]}")
    for row in rejected.slice(0, 5).to_pylist():
        print(f"  {printable(row['source'])}: {row['message']}")
    if rejected.num_rows:
        print(
            "Rejected sources are rows of the cache's table, with their reasons; there is no latent."
        )


if __name__ == "__main__":
    sys.exit(main())
