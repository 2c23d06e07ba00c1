"""What the jobs share: exit statuses, one message an error, the progress bar, the summary."""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from latentcache.core.image_quality import psnr_in_words
from latentcache.core.records import REASONS, ShardId, ShardReport
from latentcache.core.units import human_bytes as human_bytes
from latentcache.errors import (
    CacheError,
    ConfigError,
    CorpusError,
    CorruptionError,
    LatentCacheError,
    StorageError,
)
from latentcache.planning.planned import PlannedCache, num_rejected
from latentcache.running.driver import Run, Summary
from latentcache.running.events import GaveUp, Progress, Retried
from latentcache.storage.folder import redact

OK, OTHER, WRONG_INPUT, SOME_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
#: Seconds between lines of progress where the output is not a terminal.
LINE_INTERVAL_S = 10.0
#: A run without any worker for as long says so: loading a large model takes less, losing a cluster more.
NO_WORKER_S = 120.0
NAMED_FAILURES = 10


class Parser(argparse.ArgumentParser):
    """An argument parser that knows the exit statuses, and what every job takes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_argument("-v", "--verbose", action="store_true", help="log details to stderr")

    def add_cache(self) -> None:
        """Add the cache as the next argument, and the options of its storage."""
        self.add_argument("cache", metavar="CACHE_URL")
        self.add_argument(
            "--storage-option",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="fsspec option",
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and how it is used."""
        print(f"{self.prog}: {message}\n{self.format_usage().strip()}", file=sys.stderr)
        sys.exit(WRONG_INPUT)


def run_job(job: Callable[[argparse.Namespace], int], parser: Parser) -> int:
    """Run a job; what it raises becomes one message and an exit status."""
    args = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, _interrupt)
    if args.verbose:
        _log_to_stderr()
    try:
        return job(args)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return OTHER
    except CorruptionError as error:
        return _fail(error, OTHER)
    except (ConfigError, CorpusError, CacheError, StorageError) as error:
        return _fail(error, WRONG_INPUT)
    except LatentCacheError as error:
        return _fail(error, OTHER)


def _log_to_stderr() -> None:
    """Show what latentcache logs in this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("latentcache")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _interrupt(*_: object) -> NoReturn:
    """Make SIGTERM, as preemption sends it, the same as Ctrl-C."""
    raise KeyboardInterrupt


def _fail(error: LatentCacheError, status: int) -> int:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return status


def storage_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `--storage-option key=value` pairs; values are YAML. Raises ConfigError."""
    from latentcache.config.files import apply_overrides

    return apply_overrides({}, pairs)


def made_folder(folder: Path, advice: str) -> Path:
    """Return a folder of the user's, made if need be. Raises ConfigError, ending in `advice`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {folder}: {error.strerror}. {advice}") from None
    return folder


def encode(
    planned: PlannedCache, missing: Sequence[ShardId], failed: Sequence[ShardId] = ()
) -> int:
    """Encode missing shards, and failed clips again; print the summary, return the exit status."""
    run = Run(planned, missing, failed)
    num_tasks = len(missing) + len(failed)
    url = redact(planned.storage.url)
    manifest = planned.manifest
    skipped = sum(bucket.num_clips for bucket in manifest.buckets) - planned.num_clips(missing)
    if not num_tasks:
        print(f"\nNothing to encode: all {skipped} clips are committed.")
    total = planned.num_clips([*missing, *failed])
    try:
        with closing(run.events()) as events, _Bar(total) as bar:
            for event in events:
                bar.show(event)
    except KeyboardInterrupt:
        print("\nInterrupted. " + _how_to_go_on(run.summary, num_tasks, url), file=sys.stderr)
        return INTERRUPTED
    except LatentCacheError as error:
        _fail(error, OTHER)
        print("Stopped. " + _how_to_go_on(run.summary, num_tasks, url), file=sys.stderr)
        return WRONG_INPUT if isinstance(error, ConfigError) else OTHER
    if num_tasks:
        _print_summary(run.summary, skipped)
    _print_failures(run.summary)
    rejected = num_rejected(planned.storage)
    clips = sum(run.published["num_clips"].to_pylist())
    failed = clips - sum(run.published["num_ok"].to_pylist())
    print(f"\ncache    {clips - failed} clips ok, {failed} failed, {rejected} sources rejected")
    if failed:
        print(f"Try the failed ones again:  latentcache resume {shlex.quote(url)} --retry-failed")
    print(f"Next:  latentcache stream {shlex.quote(url)}")
    return SOME_FAILED if failed or rejected or run.summary.shards_failed else OK


def _how_to_go_on(summary: Summary, num_tasks: int, url: str) -> str:
    return (
        f"{summary.shards} of {num_tasks} shards were committed and are safe; those in flight will be "
        f"encoded again.\nGo on with:  latentcache resume {shlex.quote(url)}"
    )


class _Bar:
    """tqdm on a terminal, a line now and then elsewhere. Counts clips that are done, in flight or not."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._committed = 0
        self._done = 0
        self._started = self._printed = self._last_up = time.monotonic()
        self._warnings: set[str] = set()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, unit="clip", dynamic_ncols=True, smoothing=0.1)

    def __enter__(self) -> _Bar:
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
            self._say(
                f"shard {event.task.shard.name} {verb} (attempt {event.task.attempts}): {event.task.error}"
            )
        elif isinstance(event, Progress):
            self._look_at_workers(event.workers)
            for warning in event.warnings:
                self._warn(warning)
        done = event.clips_done if isinstance(event, Progress) else 0
        self._done = min(self._total, max(self._done, done, self._committed))
        self._draw()

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)
        elif time.monotonic() - self._printed > LINE_INTERVAL_S:
            self._printed = time.monotonic()
            rate = self._done / (self._printed - self._started)
            eta = f", {(self._total - self._done) / rate:.0f} s left" if rate else ""
            print(f"{self._done}/{self._total} clips, {rate:.2f} clips/s{eta}", flush=True)

    def _look_at_workers(self, workers: int) -> None:
        if workers:
            self._last_up = time.monotonic()
        elif time.monotonic() - self._last_up > NO_WORKER_S:
            self._warn("no worker is up; the run waits until the cluster has a place for one")

    def _warn(self, text: str) -> None:
        """Say it once: every worker warns for itself."""
        if text not in self._warnings:
            self._warnings.add(text)
            self._say(f"warning: {text}")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


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
    print(
        f"time     encode {summary.encode_s:.1f} s ({summary.encode_s / busy_s:.0%} of the run), "
        f"waiting for pixels {summary.wait_s:.1f} s, write {summary.write_s:.1f} s, "
        f"decode {summary.decode_s:.1f} s in all processes"
    )
    if errors := summary.tiling_errors:
        print(
            f"tiling   error {sum(errors) / len(errors):.2g} on average, {max(errors):.2g} at most, of "
            f"{len(errors)} clips encoded untiled, too (RMS over the latents' standard deviation)"
        )
    if summary.psnrs_db:
        print(f"quality  {psnr_in_words(summary.psnrs_db)}")


def _print_failures(summary: Summary) -> None:
    if not summary.reasons and not summary.shard_errors:
        return
    print("\nfailed:")
    for reason, count in summary.reasons.most_common():
        print(f"  {count:>6} x {reason}: {REASONS[reason]}")
    for name, error in list(summary.shard_errors.items())[:NAMED_FAILURES]:
        print(f"    shard {name}: {error}")
    for key, reason, message in summary.failures[:NAMED_FAILURES]:
        if reason != "shard_failed":
            print(f"    {key}: {message}")
    if len(summary.failures) > NAMED_FAILURES:
        print("    ... all of them: cache.table() where status is 'failed'")
