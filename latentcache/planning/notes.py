"""What a plan should be told of before it costs anything: one line each. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from latentcache.config.sections import ClipsConfig
from latentcache.core.records import Bucket

#: Batches hold clips of one bucket; smaller ones than this are rare.
SMALL_BATCH = 8
#: Rates that are as near are the same: containers round times.
RATE_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Note:
    """A line of a plan. what: its first word; names: sources that it is about, all of them."""

    what: str
    text: str
    names: tuple[str, ...] = ()


def notes(
    sources: pa.Table, clips: Mapping[Bucket, pa.Table], config: ClipsConfig, shard_clips: int
) -> list[Note]:
    """Return what is to be said of new clips. sources: probed ones; clips: their plan, by bucket."""
    size_of = {
        name: bucket for bucket, table in clips.items() for name in table["source"].to_pylist()
    }
    rows = [
        row
        for row in sources.select(["name", "kind", "caption", "fps", "height", "width"]).to_pylist()
        if row["name"] in size_of
    ]
    if not rows:
        return []
    return [
        _captions(rows),
        *_repeats(rows, config),
        *_enlarged(rows, size_of),
        *_buckets(clips, shard_clips),
    ]


def repeats(fps: float | None, wanted: float | None) -> bool:
    """Tell whether sampling a source at a rate repeats its frames."""
    return fps is not None and wanted is not None and fps < wanted * (1 - RATE_TOLERANCE)


def enlargement(height: int, width: int, bucket_height: int, bucket_width: int) -> float:
    """Return by how much a source is enlarged to cover a bucket; at most 1: it is not."""
    return max(bucket_height / height, bucket_width / width)


def _captions(rows: list[dict[str, Any]]) -> Note:
    missing = tuple(row["name"] for row in rows if row["caption"] is None)
    return Note(
        what="captions",
        text=f"{len(rows) - len(missing)} found, {len(missing)} missing",
        names=missing,
    )


def _repeats(rows: list[dict[str, Any]], config: ClipsConfig) -> Iterator[Note]:
    if config.sampling == "accumulate":  # which takes each frame once
        return
    slow = [row for row in rows if row["kind"] == "video" and repeats(row["fps"], config.fps)]
    if slow:
        yield Note(
            what="fps",
            text=f"{len(slow)} sources have fewer frames per second than clips.fps={config.fps:g} (the "
            f"lowest {min(row['fps'] for row in slow):.3g}), so frames repeat; clips.too_slow=record "
            "leaves them out",
            names=tuple(row["name"] for row in slow),
        )


def _enlarged(rows: list[dict[str, Any]], size_of: Mapping[str, Bucket]) -> Iterator[Note]:
    factors = {}
    for row in rows:
        bucket = size_of[row["name"]]
        factor = enlargement(row["height"], row["width"], bucket.height, bucket.width)
        if factor > 1:
            factors[row["name"]] = factor
    if factors:
        yield Note(
            what="size",
            text=f"{len(factors)} sources are enlarged to cover their buckets, by up to "
            f"{max(factors.values()):.2f}; clips.too_small=record leaves them out",
            names=tuple(factors),
        )


def _buckets(clips: Mapping[Bucket, pa.Table], shard_clips: int) -> Iterator[Note]:
    counts = {bucket.name: table.num_rows for bucket, table in clips.items()}
    few = {name: count for name, count in sorted(counts.items()) if count < SMALL_BATCH}
    if few and len(counts) > 1:
        said = ", ".join(f"{name} ({count})" for name, count in few.items())
        yield Note(
            what="buckets",
            text=f"batches hold clips of one bucket, and these have few: {said}; use fewer aspect_ratios "
            "or frame counts",
        )
    largest = max(counts.values())
    if largest > 1 and all(count <= shard_clips for count in counts.values()):
        yield Note(
            what="shards",
            text=f"one per bucket: at most {len(counts)} GPUs work at once, and a stop costs up to "
            f"{largest} clips; a smaller cache.shard_clips gives more",
        )
