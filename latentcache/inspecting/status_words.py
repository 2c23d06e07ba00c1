"""How far a cache is, in words: for `latentcache status` and for the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from latentcache.core.units import human_time, plural
from latentcache.format.manifest import Manifest
from latentcache.inspecting.behind import Behind
from latentcache.inspecting.status import Status
from latentcache.running import log_lines

#: What the values of a field are of, by its kind; of other kinds it is files.
_INPUTS = {"text": "captions", "joint": "captions or files"}


def state_in_words(found: Status, url: str, manifest: Manifest) -> str:
    """Return how far a cache is, and how to go on. url: as it is given to a shell."""
    go_on = import_command(manifest, url)
    if found.state == "running":
        return f"running: {plural(found.workers, 'worker')} up{_troubles(found)}"
    if found.state == "not started":
        if go_on:
            return f"not finished: planned, and nothing is imported. Go on with:  {go_on}"
        return f"not started: planned, and nothing is encoded. Start with: latentcache resume {url}"
    if found.state == "finished":
        retry = f". Try the failed ones again:  latentcache resume {url} --retry-failed"
        return "finished" + (retry if found.clips_failed and not go_on else "")
    if go_on:
        return f"interrupted: some shards are imported. Go on with:  {go_on}"
    return f"interrupted: {_last_words(found)}. Go on with:  latentcache resume {url}"


def import_command(manifest: Manifest, url: str) -> str | None:
    """Return the command that goes on with an import, which `resume` cannot; None for other caches."""
    first = manifest.generations[0] if manifest.generations else None
    if first is None or first.kind != "import":
        return None
    layout, _, source = first.selection.partition(" of ")
    return (
        f"latentcache import {layout} {shlex.quote(source)} {url} --like LIKE, with the options of the "
        "first time"
    )


def behind_lines(behind: Mapping[str, Behind], url: str) -> list[str]:
    """Return which fields are behind, how far, what follows, and what makes up for it; a line for each."""
    return [
        f"{name}: {_behind_in_words(name, found, shlex.quote(url))}"
        for name, found in behind.items()
        if found
    ]


def _behind_in_words(name: str, found: Behind, url: str) -> str:
    parts = []
    if found.num_former:
        have = plural(found.num_former, "ok clip has a value", "ok clips have values")
        parts.append(f"{have} of former {_INPUTS.get(found.kind, 'files')}")
    if found.num_missing:
        parts.append(f"{plural(found.num_missing, 'ok clip has', 'ok clips have')} no value")
    how = f"If no run is making them:  latentcache resume {url} --field {name}"
    if found.kind == "given":
        how = "They come from a program of yours: run it again, and latentcache.write_field goes on"
    return f"{' and '.join(parts)}, so loaders leave them out. {how}"


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
