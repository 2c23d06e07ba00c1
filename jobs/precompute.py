"""Encode a corpus into a cache: plan, encode what is missing, publish the snapshot, say what to do next."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from typing import Any

from tqdm import tqdm

from latentcache.config.files import load_config
from latentcache.config.sections import Config
from latentcache.core.records import REASONS
from latentcache.core.spec import ITEM_BYTES
from latentcache.corpus.saved_probes import SavedProbes
from latentcache.corpus.sources import Corpus
from latentcache.format.manifest import Manifest
from latentcache.planning.create import check_folder, create_cache
from latentcache.planning.plan import Plan
from latentcache.planning.planner import plan_corpus
from latentcache.planning.recipe import make_manifest, resolve_encoder
from latentcache.redaction import printable
from latentcache.running.driver import check_device
from latentcache.storage.folder import Storage, redact

from .cli import Parser, human_bytes, run_job
from .progress import encode


def main() -> int:
    """Parse the command line and run."""
    parser = Parser(prog="latentcache precompute", description=__doc__)
    parser.add_config()
    parser.add_argument("--dry-run", action="store_true", help="print the plan and touch nothing")
    return run_job(precompute, parser)


def precompute(args: argparse.Namespace) -> int:
    """Plan and encode; returns the exit status."""
    config = load_config(args.config, args.overrides)
    storage = Storage(config.cache.url, config.cache.storage_options)
    spec, identity = resolve_encoder(config)
    saved = SavedProbes(storage, config.corpus.max_pixels)
    is_new = not args.dry_run and not check_folder(config, spec, identity)
    if is_new:
        check_device(config.run)
    with _ProbeBar() as bar:
        plan = plan_corpus(config, spec, bar.start, bar.step, saved if is_new else None)
    if saved.num_found:
        print(f"         {saved.num_found} of them were probed before, by a run that was stopped")
    manifest = make_manifest(config, spec, identity, plan)
    _print_plan(config, manifest, plan)
    if args.dry_run:
        print("\nDry run: nothing was written.")
        return 0
    planned = create_cache(config, manifest, plan)
    saved.remove()
    return encode(planned, planned.missing_shards())


class _ProbeBar:
    """Shows what was found in the corpus, and the probing of it on a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _ProbeBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, corpus: Corpus) -> None:
        """Say what the corpus holds."""
        kinds = Counter(corpus.table["kind"].to_pylist())
        found = ", ".join(
            f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in sorted(kinds.items())
        )
        ignored = ", ".join(f"{count} {suffix}" for suffix, count in sorted(corpus.ignored.items()))
        print(f"corpus   {found}" + (f"; ignored: {ignored}" if ignored else ""), flush=True)
        total = corpus.table.num_rows
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, unit="file", desc="probing", dynamic_ncols=True, leave=False
            )

    def step(self) -> None:
        """Count one probed source."""
        if self._bar is not None:
            self._bar.update()


def _print_plan(config: Config, manifest: Manifest, plan: Plan) -> None:
    spec = manifest.spec
    print(
        f"encoder  {spec.model_class}, {spec.channels} channels, stores {spec.stored} as {spec.dtype}"
    )
    print(f"cache    {redact(config.cache.url)} ({manifest.format}, {manifest.fingerprint[:12]})")
    print(f"\n{'bucket':<16}{'clips':>10}{'shards':>9}  {'latent':<22}{'raw bytes':>12}")
    total = 0
    for bucket in manifest.buckets:
        size = bucket.num_clips * math.prod(bucket.shape) * ITEM_BYTES[spec.dtype]
        total += size
        shape = "x".join(map(str, bucket.shape))
        print(
            f"{bucket.name:<16}{bucket.num_clips:>10}{bucket.num_shards:>9}  {shape:<22}"
            f"{human_bytes(size):>12}"
        )
    shards = sum(bucket.num_shards for bucket in manifest.buckets)
    print(f"{'in all':<16}{plan.num_clips:>10}{shards:>9}  {'':<22}{human_bytes(total):>12}")
    _print_rejected(plan)


def _print_rejected(plan: Plan) -> None:
    reasons = Counter(plan.rejected["reason"].to_pylist())
    for reason, count in reasons.most_common():
        print(f"rejected: {count} x {reason}: {REASONS[reason]}")
    for row in plan.rejected.slice(0, 5).to_pylist():
        print(f"  {printable(row['source'])}: {row['message']}")
    if plan.rejected.num_rows:
        print(
            "Rejected sources are rows of the cache's table, with their reasons; there is no latent."
        )


if __name__ == "__main__":
    sys.exit(main())
