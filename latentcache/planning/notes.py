"""What a plan should be told of before it costs anything: one line each. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.config.clips import ClipsConfig
from latentcache.core.names import NameIndex
from latentcache.core.records import Bucket
from latentcache.planning.masks import CHUNK_ROWS, chosen, no_names
from latentcache.storage.spill import Spill

Lengths = npt.NDArray[np.int32]

#: Batches hold clips of one bucket; smaller ones than this are rare.
SMALL_BATCH = 8
#: Rates that are as near are the same: containers round times.
RATE_TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Note:
    """A line of a plan. what: its first word; names: sources that it is about, all of them."""

    what: str
    text: str
    names: pa.ChunkedArray = field(default_factory=no_names)


def notes(
    sources: pa.Table, clips: Mapping[Bucket, pa.Table], config: ClipsConfig, shard_clips: int
) -> list[Note]:
    """Return what is to be said of new clips. sources: probed ones; clips: their plan, by bucket."""
    heights, widths = _bucket_sizes(sources["name"], clips)
    planned = heights > 0
    if not planned.any():
        return []
    names = ["name", "kind", "caption", "fps", "height", "width"]
    rows = chosen(sources.select(names), planned, Spill().put)
    return [
        _captions(rows),
        *_repeats(rows, config),
        *_enlarged(rows, heights[planned], widths[planned]),
        *_buckets(clips, shard_clips),
    ]


def _bucket_sizes(
    names: pa.ChunkedArray, clips: Mapping[Bucket, pa.Table]
) -> tuple[Lengths, Lengths]:
    """Return the heights and widths of the sources' buckets, 0 where a source has no clip."""
    heights, widths = np.zeros(len(names), np.int32), np.zeros(len(names), np.int32)
    index = NameIndex(names)
    for bucket, table in clips.items():
        is_there = index.find(table["source"])
        heights[is_there], widths[is_there] = bucket.height, bucket.width
    return heights, widths


def repeats(fps: float | None, wanted: float | None) -> bool:
    """Tell whether sampling a source at a rate repeats its frames."""
    return fps is not None and wanted is not None and fps < _lowest(wanted)


def _lowest(wanted: float) -> float:
    """Return the rate below which sources have too few frames for a rate."""
    return wanted * (1 - RATE_TOLERANCE)


def enlargement(height: Any, width: Any, bucket_height: Any, bucket_width: Any) -> Any:
    """Return by how much a source is enlarged to cover a bucket; at most 1: it is not.

    Of numbers, or of arrays of them.
    """
    return np.maximum(bucket_height / height, bucket_width / width)


def _captions(rows: pa.Table) -> Note:
    missing = rows["name"].filter(pc.is_null(rows["caption"]))
    return Note(
        what="captions",
        text=f"{rows.num_rows - len(missing)} found, {len(missing)} missing",
        names=missing,
    )


def _repeats(rows: pa.Table, config: ClipsConfig) -> Iterator[Note]:
    if config.fps is None or config.sampling == "accumulate":  # which takes each frame once
        return
    is_slow = pc.and_(pc.equal(rows["kind"], "video"), pc.less(rows["fps"], _lowest(config.fps)))
    slow = rows.select(["name", "fps"]).filter(is_slow)
    if slow.num_rows:
        yield Note(
            what="fps",
            text=f"{slow.num_rows} sources have fewer frames per second than clips.fps={config.fps:g} "
            f"(the lowest {pc.min(slow['fps']).as_py():.3g}), so frames repeat; "
            "clips.too_slow=record leaves them out",
            names=slow["name"],
        )


def _enlarged(rows: pa.Table, bucket_heights: Lengths, bucket_widths: Lengths) -> Iterator[Note]:
    is_enlarged, most = np.zeros(rows.num_rows, bool), 1.0
    for start in range(0, rows.num_rows, CHUNK_ROWS):
        here, some = slice(start, start + CHUNK_ROWS), rows.slice(start, CHUNK_ROWS)
        height, width = some["height"].to_numpy(), some["width"].to_numpy()
        factors = enlargement(height, width, bucket_heights[here], bucket_widths[here])
        is_enlarged[here] = factors > 1
        most = max(most, factors.max())
    if is_enlarged.any():
        yield Note(
            what="size",
            text=f"{is_enlarged.sum()} sources are enlarged to cover their buckets, by up to "
            f"{most:.2f}; clips.too_small=record leaves them out",
            names=chosen(rows["name"], is_enlarged),
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
