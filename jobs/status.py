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
from latentcache.errors import CacheError, ConfigError
from latentcache.format.fields.snapshot import FieldCounts
from latentcache.inspecting.status import Status
from latentcache.inspecting.status_words import behind_lines, state_in_words
from latentcache.inspecting.watch import Watch, is_about_to_be
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

from . import parsers
from .cli import OK, print_error, run_job, storage_options
from .output import redraw

#: Watching spends at most this part of its time on looking, so that a huge cache is not listed all day.
LOOKING = 0.1
BAR_WIDTH = 30
BLOCKS = "▁▂▃▄▅▆▇█"
#: For output that has no such characters.
PLAIN_BLOCKS = ".:-=+*#@"


def main() -> int:
    """Parse the command line and run."""
    return run_job(status, parsers.status())


def status(args: argparse.Namespace) -> int:
    """Look once, or until the cache is finished; returns the exit status."""
    if args.watch is not None and not (0 < args.watch < math.inf):
        raise ConfigError(f"--watch takes a number of seconds above 0, not {args.watch:g}")
    storage, screen = Storage(args.cache, storage_options(args.overrides)), _Screen()
    watch = Watch(storage) if args.watch is None else _awaited(storage, args.watch)
    for found in _looks(watch, args.watch):
        if args.json:
            print(json.dumps(_to_json(found)), flush=True)
        else:
            screen.show(_lines(found, watch, args.cache))
    return OK


def _awaited(storage: Storage, interval_s: float) -> Watch:
    """Wait until there is a cache with a plan; say what is there until then. Raises CacheError."""
    said = ""
    while True:
        try:
            return Watch(storage)
        except CacheError as error:
            if not is_about_to_be(storage):
                raise
            if said != (said := str(error)):
                print_error(error)
                print(
                    f"Waiting for it; looking every {interval_s:g} s.", file=sys.stderr, flush=True
                )
        time.sleep(interval_s)


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
            redraw(self._num_lines)
        elif self._num_lines:
            print()
        print("\n".join(lines), flush=True)
        self._num_lines = len(lines)


def _to_json(found: Status) -> dict[str, Any]:
    data = dataclasses.asdict(found)
    for run in data["runs"]:
        del run["done"]
    for name, behind in data.pop("behind").items():
        data["fields"][name] |= behind
    return data


def _lines(found: Status, watch: Watch, url: str) -> list[str]:
    planned, manifest = found.planned, watch.manifest
    left = planned.num_clips - found.clips_ok - found.clips_failed
    lines = [
        f"cache    {redact(url)} ({manifest.format}, {manifest.fingerprint[:12]})",
        f"state    {state_in_words(found, shlex.quote(redact(url)), manifest)}",
        f"shards   {_bar(found.shards_committed / max(1, planned.num_shards))} {_shards(found)}",
        f"clips    {found.clips_ok:,} ok, {found.clips_failed:,} failed, {max(0, left):,} left; "
        f"{planned.rejected:,} sources rejected",
        f"bytes    {human_bytes(found.stored_bytes)} stored",
    ]
    if found.since_s is not None and any(found.speeds):
        lines.append(f"speed    {_speed(found)}")
    if found.left_s is not None:
        lines.append(f"left     {human_time(found.left_s)}")
    behind = [f"behind   {line}" for line in behind_lines(found.behind, redact(url))]
    return [*lines, *_failures(found), *map(_field, found.fields.items()), *behind]


def _field(item: tuple[str, FieldCounts]) -> str:
    name, counts = item
    texts = (
        f", {counts.num_failed_texts:,} texts of ok clips failed" if counts.num_failed_texts else ""
    )
    lost = f", {counts.num_lost:,} with lost tokens" if counts.num_lost else ""
    return (
        f"field    {name}: {counts.num_committed:,} of {counts.num_shards:,} shards committed, "
        f"{counts.num_ok:,} clips ok, {counts.num_failed:,} failed{texts}{lost}, "
        f"{human_bytes(counts.stored_bytes)}"
    )


def _shards(found: Status) -> str:
    """Return what has become of the planned shards; those that were given up have no latents."""
    total, given_up = found.planned.num_shards, found.shards_given_up
    left = max(0, total - found.shards_committed - given_up - found.shards_in_hand)
    return (
        f"{found.shards_committed:,} of {total:,} encoded and committed, {given_up:,} given up, "
        f"{found.shards_in_hand:,} running, {left:,} left"
    )


def _bar(share: float) -> str:
    full = int(share * BAR_WIDTH)
    return f"[{'#' * full}{'-' * (BAR_WIDTH - full)}]"


def _speed(found: Status) -> str:
    assert found.since_s is not None
    peak = max(found.speeds)
    known = _blocks(getattr(sys.stdout, "encoding", None) or "ascii")
    blocks = "".join(known[round(s / peak * (len(known) - 1))] for s in found.speeds)
    now = f"{found.clips_per_s:.2f} clips/s now, " if found.state == "running" else ""
    since = f"{datetime.fromtimestamp(found.since_s, UTC):%Y-%m-%d %H:%M} UTC"
    return f"{now}{peak:.2f} clips/s at most since {since}  {blocks}"


def _blocks(encoding: str) -> str:
    """Return the characters of growing height that an encoding has."""
    try:
        BLOCKS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return PLAIN_BLOCKS
    return BLOCKS


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
