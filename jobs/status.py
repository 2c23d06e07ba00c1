"""Say how far a cache is, from any machine, from what is on its storage: while its run goes on, or after.

Exit status: 0 whatever the cache is like, if there is one; 130 where --watch was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from latentcache.core.records import REASONS
from latentcache.core.units import human_bytes, human_time
from latentcache.errors import ConfigError
from latentcache.format.fields.snapshot import FieldCounts
from latentcache.inspecting.status import Status
from latentcache.inspecting.watch import Watch
from latentcache.running import log_lines
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

from .cli import OK, Parser, run_job, storage_options

WATCH_INTERVAL_S = 10.0
#: Watching spends at most this part of its time on looking, so that a huge cache is not listed all day.
LOOKING = 0.1
BAR_WIDTH = 30
BLOCKS = "▁▂▃▄▅▆▇█"
#: To the start of the line that is so many lines up, and clear what is below.
REDRAW = "\x1b[{}F\x1b[J"


def main() -> int:
    """Parse the command line and run."""
    parser = Parser(prog="latentcache status", description=__doc__)
    parser.add_cache()
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH_INTERVAL_S,
        metavar="SECONDS",
        help=f"look again this often ({WATCH_INTERVAL_S:g}) until the cache is finished",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a look")
    return run_job(status, parser)


def status(args: argparse.Namespace) -> int:
    """Look once, or until the cache is finished; returns the exit status."""
    if args.watch is not None and not (0 < args.watch < math.inf):
        raise ConfigError(f"--watch takes a number of seconds above 0, not {args.watch:g}")
    watch = Watch(Storage(args.cache, storage_options(args.overrides)))
    screen = _Screen()
    for found in _looks(watch, args.watch):
        if args.json:
            print(json.dumps(_to_json(found)), flush=True)
        else:
            screen.show(_lines(found, watch, args.cache))
    return OK


def _looks(watch: Watch, interval_s: float | None) -> Iterator[Status]:
    """Look at the cache until it is finished, or once where there is no interval."""
    while True:
        started = time.monotonic()
        found = watch.look(time.time())
        yield found
        if interval_s is None or found.state == "finished":
            return
        time.sleep(max(interval_s, (time.monotonic() - started) * (1 / LOOKING - 1)))


class _Screen:
    """Draws in place on a terminal; elsewhere what is shown follows each other."""

    def __init__(self) -> None:
        self._num_lines = 0

    def show(self, lines: Sequence[str]) -> None:
        """Show these lines in place of the last ones."""
        if sys.stdout.isatty() and self._num_lines:
            print(REDRAW.format(self._num_lines), end="")
        elif self._num_lines:
            print()
        print("\n".join(lines), flush=True)
        self._num_lines = len(lines)


def _to_json(found: Status) -> dict[str, Any]:
    data = dataclasses.asdict(found)
    for run in data["runs"]:
        del run["done"]
    return data


def _lines(found: Status, watch: Watch, url: str) -> list[str]:
    planned, manifest = found.planned, watch.manifest
    left = planned.num_clips - found.clips_ok - found.clips_failed
    lines = [
        f"cache    {redact(url)} ({manifest.format}, {manifest.fingerprint[:12]})",
        f"state    {_state(found, shlex.quote(redact(url)))}",
        f"shards   {_bar(found.shards_committed / planned.num_shards)} {found.shards_committed:,} of "
        f"{planned.num_shards:,} committed, {found.shards_in_hand:,} running, "
        f"{found.shards_failed:,} failed",
        f"clips    {found.clips_ok:,} ok, {found.clips_failed:,} failed, {max(0, left):,} left; "
        f"{planned.rejected:,} sources rejected",
        f"bytes    {human_bytes(found.stored_bytes)} stored",
    ]
    if found.since_s is not None and any(found.speeds):
        lines.append(f"speed    {_speed(found)}")
    if found.left_s is not None:
        lines.append(f"left     {human_time(found.left_s)}")
    return [*lines, *_failures(found), *map(_field, found.fields.items())]


def _field(item: tuple[str, FieldCounts]) -> str:
    name, counts = item
    lost = f", {counts.num_lost:,} with lost tokens" if counts.num_lost else ""
    return (
        f"field    {name}: {counts.num_committed:,} of {counts.num_shards:,} shards committed, "
        f"{counts.num_ok:,} clips ok, {counts.num_failed:,} failed{lost}, "
        f"{human_bytes(counts.stored_bytes)}"
    )


def _state(found: Status, url: str) -> str:
    if found.state == "running":
        return f"running: {found.workers} workers up{_troubles(found)}"
    if found.state == "not started":
        return f"not started: planned, and nothing is encoded. Start with: latentcache resume {url}"
    if found.state == "finished":
        retry = f". Try the failed ones again:  latentcache resume {url} --retry-failed"
        return "finished" + (retry if found.clips_failed else "")
    return f"interrupted: {_last_words(found)}. Go on with:  latentcache resume {url}"


def _troubles(found: Status) -> str:
    retries = sum(run.retries for run in found.runs)
    died = sum(run.workers_died for run in found.runs)
    return f" ({retries} retries and {died} dead workers so far)" if retries or died else ""


def _last_words(found: Status) -> str:
    """Return how the last run ended, or for how long it has been silent."""
    if found.silent_s is None:
        return "some shards are committed, and there is no log of a run"
    last = max(found.runs, key=lambda run: run.heard_s)
    if last.how == log_lines.STOPPED:
        return f"the last run stopped {_ago(found.silent_s)}: {last.message}"
    if last.how:
        return f"the last run was stopped {_ago(found.silent_s)}"
    return f"nothing has been written for {human_time(found.silent_s)}"


def _ago(seconds: float) -> str:
    return f"{human_time(seconds)} ago"


def _bar(share: float) -> str:
    full = int(share * BAR_WIDTH)
    return f"[{'#' * full}{'-' * (BAR_WIDTH - full)}]"


def _speed(found: Status) -> str:
    assert found.since_s is not None
    peak = max(found.speeds)
    blocks = "".join(BLOCKS[round(s / peak * (len(BLOCKS) - 1))] for s in found.speeds)
    now = f"{found.clips_per_s:.2f} clips/s now, " if found.state == "running" else ""
    since = f"{datetime.fromtimestamp(found.since_s, UTC):%Y-%m-%d %H:%M} UTC"
    return f"{now}{peak:.2f} clips/s at most since {since}  {blocks}"


def _failures(found: Status) -> list[str]:
    if not found.clips_failed:
        return []
    lines = [
        f"  {count:>6} x {reason}: {REASONS[reason]}" for reason, count in found.reasons.items()
    ]
    if found.num_unexplained:
        text = "not looked up; `latentcache report` reads every table"
        lines.append(f"  {found.num_unexplained:>6} x {text}")
    return ["failed:", *lines]


if __name__ == "__main__":
    sys.exit(main())
