"""A run shown as it goes: the bar, what failed, the summary, and how to go on."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from latentcache.copying.field_choice import FieldChoice, take_fields
from latentcache.copying.fields import copy_fields
from latentcache.copying.parents import Parents
from latentcache.copying.shards import NotCopied, copy_shards, pending_copies
from latentcache.core.image_quality import psnr_in_words
from latentcache.core.records import REASONS, ShardId, ShardReport
from latentcache.core.units import human_bytes, human_time, plural
from latentcache.errors import LatentCacheError
from latentcache.format.manifest import refresh
from latentcache.format.planned_sources import read_rejected
from latentcache.format.snapshot import shard_of
from latentcache.planning.planned import PlannedCache
from latentcache.redaction import printable, redact
from latentcache.running.driver import Run
from latentcache.running.events import GaveUp, Progress, Retried, Started
from latentcache.running.publisher import RunSnapshot
from latentcache.running.shared_fields import SharedFields
from latentcache.running.speed import Pace, clips_per_s, time_left
from latentcache.running.summary import Summary

from .cli import INTERRUPTED, OK, OTHER, SOME_FAILED, print_error
from .waiting import CLEAR, LINE_INTERVAL_S, Waiting

#: A run without any worker for as long says so: loading a large model takes less, losing a cluster more.
NO_WORKER_S = 120.0
NAMED_FAILURES = 10
#: tqdm's own, but for the speed and the time left, which are those that `status` shows.
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


def encode(
    planned: PlannedCache, missing: Sequence[ShardId], shared: SharedFields | None = None
) -> int:
    """Encode missing shards; print the summary, return the exit status.

    shared: fields that are made along with the latents.
    """
    run = Run(planned, missing, shared)
    num_tasks = len(missing)
    url = redact(planned.storage.url)
    total = planned.num_clips(missing)
    skipped = planned.manifest.num_clips - total
    if not planned.manifest.exclusive:
        print(
            "lease    this run has it: the storage cannot create on condition, so one run may write"
        )
    if not num_tasks:
        print(f"\nNothing to encode: all {skipped} clips are committed.")
    try:
        with closing(run.events()) as events, Waiting() as waiting, Bar(total) as bar:
            if num_tasks:
                waiting.say("starting workers, which load the model")
            for event in events:
                if isinstance(event, Started):
                    waiting.stop()
                bar.show(event)
    except KeyboardInterrupt:
        print("\nInterrupted. " + _how_to_go_on(run.summary, num_tasks, url), file=sys.stderr)
        return INTERRUPTED
    except LatentCacheError as error:
        print_error(error)
        print("Stopped. " + _how_to_go_on(run.summary, num_tasks, url), file=sys.stderr)
        return error.exit_status
    if num_tasks:
        _print_summary(run.summary, skipped)
    print_failures(run.summary)
    if unfinished := _unfinished(planned, run.published):
        _print_unfinished(planned, unfinished, shlex.quote(url))
        return OTHER
    rejected = read_rejected(planned.storage, planned.manifest).num_rows
    clips = sum(run.published["num_clips"].to_pylist())
    failed = clips - sum(run.published["num_ok"].to_pylist())
    print(f"\ncache    {clips - failed} clips ok, {failed} failed, {rejected} sources rejected")
    if failed:
        print(f"Try the failed ones again:  latentcache resume {shlex.quote(url)} --retry-failed")
    print(f"Next:  latentcache stream {shlex.quote(url)}")
    return SOME_FAILED if failed or rejected or run.summary.shards_failed else OK


def copy_missing(
    planned: PlannedCache, missing: Sequence[ShardId], parents: Parents | None = None
) -> list[ShardId]:
    """Make the copies that are planned, fields first; return the missing shards that are left to encode.

    A shard is one of them if what it is copied from is gone; not if it is damaged, for then its old rows
    count until they are repaired. parents: the caches to copy from; omitted, those at the URLs that they
    had. Raises StorageError.
    """
    pending = pending_copies(planned, missing)
    if not pending:
        # Fields of other caches were copied before the latents, so these need not be within reach.
        _copy_fields(planned, parents)
        return list(missing)
    parents = parents or Parents(planned.config.cache.storage_options)
    print_left_out(take_fields(planned, parents))
    _copy_fields(planned, parents)
    interval_s = planned.config.run.snapshot_interval_s
    snapshot = RunSnapshot(planned.storage, planned.manifest, interval_s)
    left, num_copied = set(missing), 0
    with (
        Bar(planned.num_clips(pending)) as bar,
        closing(copy_shards(planned, pending, parents)) as outcomes,
    ):
        for outcome in outcomes:
            if isinstance(outcome, NotCopied):
                bar.warn(f"shard {outcome.shard.name} cannot be copied: {outcome.error}")
                if not outcome.is_lost:
                    left.discard(outcome.shard)
                continue
            num_copied += 1
            left.discard(ShardId(outcome.bucket, outcome.shard))
            snapshot.add(outcome)
            bar.show(replace(outcome, failures=()))  # which are known
    snapshot.close()
    print(f"copied   {num_copied} of {len(pending)} shards, as they are stored")
    return [shard for shard in missing if shard in left]


def print_left(planned: PlannedCache) -> list[ShardId]:
    """Say what earlier steps have left to do; returns the shards that are to be copied."""
    missing = planned.missing_shards()
    copies = pending_copies(planned, missing)
    for shards, done in ((sorted({*missing} - {*copies}), "encoded"), (copies, "copied")):
        if shards:
            clips, where = plural(planned.num_clips(shards), "clip"), plural(len(shards), "shard")
            print(f"left     {clips} in {where} of before are still to be {done}")
    return copies


def print_left_out(choice: FieldChoice) -> None:
    """Say which fields a merged or copied cache does not take, and why."""
    for name, why in choice.left_out.items():
        print(f"note     the field {name} is left out: {why}")


def _copy_fields(planned: PlannedCache, parents: Parents | None) -> None:
    for found in copy_fields(planned, parents):
        for warning in found.warnings:
            print(f"warning  {warning}", file=sys.stderr)
        if found.num_shards:
            print(
                f"copied   {found.num_shards} shards of the field {found.name}, as they are stored"
            )
        if found.num_owed:
            print(
                f"field    {found.num_owed} clips of {found.name} are still to be encoded:  latentcache "
                f"resume {shlex.quote(redact(planned.storage.url))}"
            )


def _unfinished(planned: PlannedCache, published: pa.Table) -> list[ShardId]:
    """Return the planned shards that storage does not hold, as it was listed at the end of the run.

    Shards whose rows another run has retired meanwhile are not missed.
    """
    there = {shard_of(row) for row in published.select(["bucket", "shard"]).to_pylist()}
    manifest = refresh(planned.storage, planned.manifest)
    now = PlannedCache(config=planned.config, manifest=manifest, storage=planned.storage)
    wanted = set(planned.planned_shards()) & set(now.planned_shards())
    return sorted(wanted - there)


def _print_unfinished(planned: PlannedCache, unfinished: Sequence[ShardId], url: str) -> None:
    """Say why shards are not there, and what to do. Of those that are copied, old rows are damaged."""
    waiting = len(pending_copies(planned, unfinished))
    if waiting:
        print(
            f"{waiting} shards wait for damaged clips that they are copied from. Plan these again:  "
            f"latentcache verify {url} --repair   Then go on with:  latentcache resume {url}",
            file=sys.stderr,
        )
    if others := len(unfinished) - waiting:
        print(
            f"{others} shards are not in the storage, though the run has ended: another run may be at "
            f"work on them. Go on with:  latentcache resume {url}",
            file=sys.stderr,
        )


def _how_to_go_on(summary: Summary, num_tasks: int, url: str) -> str:
    return (
        f"{summary.shards} of {num_tasks} shards were committed and are safe; those in flight will be "
        f"encoded again.\nGo on with:  latentcache resume {shlex.quote(url)}"
    )


class Bar:
    """tqdm on a terminal, a line now and then elsewhere, once a worker is up.

    Counts clips that are done, in flight or not.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._committed = 0
        self._done = 0
        self._printed = self._last_up = time.monotonic()
        self._pace = Pace(self._printed)
        self._warnings: set[str] = set()
        self._is_started = False
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, event: object) -> None:
        """Take an event in and show it."""
        if isinstance(event, ShardReport):
            self._committed += event.num_clips
            for key, _, message in event.failures:
                self._say(f"failed: {key}: {message}")
        elif isinstance(event, Retried | GaveUp):
            verb = "will be retried" if isinstance(event, Retried) else "given up"
            task = event.task
            self._say(
                f"shard {task.shard.name} {verb} (attempt {task.attempts}): {redact(task.error)}"
            )
        elif isinstance(event, Progress):
            self._look_at_workers(event.workers)
            for warning in event.warnings:
                self.warn(warning)
        done = event.clips_done if isinstance(event, Progress) else 0
        self._done = min(self._total, max(self._done, done, self._committed))
        self._pace.add(time.monotonic(), self._done)
        self._is_started |= isinstance(event, Started)
        if self._is_started:
            self._draw()

    def _draw(self) -> None:
        if self._bar is None and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, dynamic_ncols=True, bar_format=BAR)
        if self._bar is not None:
            self._bar.set_postfix_str(self._speed(), refresh=False)
            self._bar.update(self._done - self._bar.n)
        elif time.monotonic() - self._printed > LINE_INTERVAL_S:
            self._printed = time.monotonic()
            print(f"{self._done}/{self._total} clips, {self._speed()}", flush=True)

    def _speed(self) -> str:
        """Return the speed and the time left, in words."""
        speed = clips_per_s([self._pace])
        left_s = time_left(self._total - self._done, speed)
        left = "" if left_s is None else f", {human_time(left_s)} left"
        return f"{speed:.2f} clips/s{left}"

    def _look_at_workers(self, workers: int) -> None:
        if workers:
            self._last_up = time.monotonic()
        elif time.monotonic() - self._last_up > NO_WORKER_S:
            self.warn(
                "no worker is up; the run waits until the cluster has a place for one, and its model is "
                "loaded"
            )

    def warn(self, text: str) -> None:
        """Say it once: every worker warns for itself."""
        if text not in self._warnings:
            self._warnings.add(text)
            self._say(f"warning: {text}")

    def _say(self, text: str) -> None:
        text = printable(text)
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print((CLEAR if sys.stderr.isatty() else "") + text, file=sys.stderr, flush=True)


def _print_summary(summary: Summary, skipped: int) -> None:
    wall_s = max(summary.wall_s, 1e-9)
    busy_s = wall_s * max(1, summary.workers)
    before = f" ({skipped} more were there before)" if skipped else ""
    print(f"\nclips    {summary.clips_ok} ok, {summary.clips_failed} failed{before}")
    elsewhere = f", {summary.shards_elsewhere} by another run" if summary.shards_elsewhere else ""
    print(
        f"shards   {summary.shards} written{elsewhere}, {summary.shards_failed} failed, "
        f"{summary.retries} retries"
    )
    if summary.stored_bytes:
        ratio = summary.stored_bytes / summary.raw_bytes
        print(
            f"bytes    {human_bytes(summary.stored_bytes)} stored, {ratio:.2f} of "
            f"{human_bytes(summary.raw_bytes)} raw"
        )
    print(
        f"speed    {summary.clips_ok / wall_s:.2f} clips/s, {summary.frames / wall_s:.0f} pixel frames/s, "
        f"{wall_s:.1f} s after {summary.start_s:.1f} s of starting up"
    )
    fetched = f", fetch {summary.fetch_s:.1f} s" if summary.fetch_s else ""
    print(
        f"time     encode {summary.encode_s:.1f} s ({summary.encode_s / busy_s:.0%} of the run), "
        f"waiting for pixels {summary.wait_s:.1f} s, write {summary.write_s:.1f} s, "
        f"decode {summary.decode_s:.1f} s in all processes{fetched}"
    )
    if summary.fields_s:
        print(
            f"fields   {summary.fields_s:.1f} s ({summary.fields_s / busy_s:.0%} of the run) for fields of "
            "the same pixels"
        )
    if errors := summary.tiling_errors:
        print(
            f"tiling   error {sum(errors) / len(errors):.2g} on average, {max(errors):.2g} at most, of "
            f"{len(errors)} clips encoded untiled, too (RMS over the latents' standard deviation)"
        )
    if errors := summary.kernel_errors:
        print(
            f"kernels  error {sum(errors) / len(errors):.2g} on average, {max(errors):.2g} at most, of "
            f"{len(errors)} clips encoded by themselves with plain kernels, too"
        )
    if summary.psnrs_db or summary.kernel_errors:
        print(
            f"compare  {summary.compare_s:.1f} s ({summary.compare_s / busy_s:.1%} of the run) for "
            "decoding and comparing clips; quality.every sets how many"
        )
    if summary.psnrs_db:
        print(f"quality  {psnr_in_words(summary.psnrs_db)}")


def print_failures(summary: Summary, table: str = "cache.table() where status is 'failed'") -> None:
    """Print why clips and shards of a run failed. table: where all of them are."""
    if not summary.reasons and not summary.shard_errors:
        return
    print("\nfailed:")
    for reason, count in summary.reasons.most_common():
        print(f"  {count:>6} x {reason}: {REASONS[reason]}")
    for name, error in list(summary.shard_errors.items())[:NAMED_FAILURES]:
        print(f"    shard {name}: {printable(redact(error))}")
    for key, reason, message in summary.failures[:NAMED_FAILURES]:
        if reason != "shard_failed":
            print(f"    {printable(key)}: {message}")
    if len(summary.failures) > NAMED_FAILURES:
        print(f"    ... all of them: {table}")
