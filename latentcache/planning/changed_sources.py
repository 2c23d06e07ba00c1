"""Sources that are not the files that were planned, found before a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from latentcache.core.records import ShardId
from latentcache.decoders.identity import absence, identify_url
from latentcache.errors import ClipError, ConfigError, RecipeMismatchError
from latentcache.format.changes import without_rows
from latentcache.planning.planned import PlannedCache
from latentcache.planning.planner import NAMED
from latentcache.redaction import printable, redact
from latentcache.storage.cache_urls import is_cache_url
from latentcache.storage.urls import redact_url, refused_scheme

#: Clips whose sources are looked at before a run goes on: of remote ones, some 30 s.
MAX_CHECKED = 10_000
#: Sources that are asked for on http, to tell one that is gone from a server that is down.
NUM_NEIGHBOURS = 8


def check_sources(planned: PlannedCache, shards: Sequence[ShardId]) -> int | None:
    """Refuse where a source of these shards is gone, is not the planned file, or is where none may be.

    Of many clips, every k-th shard is looked at, for MAX_CHECKED clips or so; decoding looks at each.
    Returns how many sources were looked at, None where it was all. Raises SourceError where they cannot
    be read.
    """
    if is_cache_url(planned.config.corpus.source):
        return None  # each clip is compared when it is read
    expected: dict[str, str] = {}
    clips = planned.num_clips(shards)
    for shard in shards[:: max(1, -(-clips // MAX_CHECKED))]:
        # Of the rows that count: of others, the file may have been replaced since, or removed.
        table = without_rows(planned.plan.table(shard), planned.plan.standing.rows(shard))
        expected.update(zip(table["url"].to_pylist(), table["identity"].to_pylist(), strict=True))
    corpus = planned.config.corpus
    options, neighbours = corpus.storage_options, list(expected)[:NUM_NEIGHBOURS]
    for url in expected:
        if why := refused_scheme(url, corpus.schemes):
            raise ConfigError(
                f"{redact(planned.storage.url)} cannot be resumed: in its plan "
                f"{redact_url(url)!r} {why}. Nothing was opened."
            )

    def changed(item: tuple[str, str]) -> str | None:
        try:
            found = identify_url(item[0], options)
        except ClipError as error:
            if error.reason != "missing":
                return str(error)
            gone = absence(error, item[0], options, neighbours)
            if not isinstance(gone, ClipError):
                raise gone from error
            return str(gone)
        where = printable(redact_url(item[0]))
        return None if found == item[1] else f"{where}: {item[1]} in the plan, {found} now"

    with ThreadPoolExecutor(16) as pool:
        lines = [line for line in pool.map(changed, expected.items()) if line]
    if lines:
        more = [f"  and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
        raise RecipeMismatchError(
            f"{redact(planned.storage.url)} cannot be resumed: {len(lines)} of {len(expected)} source "
            "files are not the ones that were planned (size and digest differ). Nothing was changed.\n"
            + "\n".join([*(f"  {line}" for line in lines[:NAMED]), *more])
            + "\nIf the corpus has changed or moved, run precompute with it as it is now: it plans files "
            "again that were replaced, and keeps what is committed where sources have the names that they "
            "had. Else restore them; or add --skip-changed to record their clips as failed."
        )
    return len(expected) if clips > MAX_CHECKED else None
