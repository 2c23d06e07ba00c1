"""Planning: sources and configuration to clips, buckets and shards. Pure: same input, same bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.config.clips import ClipsConfig
from latentcache.core.records import Bucket, Clip, Shard
from latentcache.core.spec import LatentSpec
from latentcache.decoders.frames import num_sampled_frames
from latentcache.decoders.sampling import clip_frames, sampled_frames
from latentcache.format import per_frame
from latentcache.format.per_frame import PER_FRAME
from latentcache.format.planned_rows import kept_columns
from latentcache.format.schemas import PLAN_SCHEMA, PROBE_SCHEMA, SAMPLE_SCHEMA, SOURCE_SCHEMA
from latentcache.planning.notes import enlargement, repeats
from latentcache.storage.cache_urls import is_cache_url
from latentcache.storage.spill import Spill

Starts = npt.NDArray[np.int64]
#: The row of a source, the starts of its clips in a bucket, and the ordinal of the first of them.
Picked = tuple[int, Starts, int]

#: Rows that are Python's objects at a time.
CHUNK_ROWS = 1 << 14
#: Rows that are hashed together, on which the digest of a plan depends.
DIGESTED_ROWS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every clip of a corpus, by bucket, and the sources that give none.

    buckets: PLAN_SCHEMA and the kept columns, in row order. rejected: SAMPLE_SCHEMA and the kept columns.
    """

    buckets: Mapping[Bucket, pa.Table]
    rejected: pa.Table

    @property
    def num_clips(self) -> int:
        """Clips to encode."""
        return sum(table.num_rows for table in self.buckets.values())

    def digest(self) -> str:
        """Return the SHA-256 of everything in the plan but where the sources are: a corpus may move.

        Messages name files, too.
        """
        digest = hashlib.sha256()
        for bucket, table in sorted(self.buckets.items()):
            digest.update(f"{bucket.name}\n".encode())
            _update(digest, table)
        digest.update(b"rejected\n")
        _update(digest, self.rejected)
        return digest.hexdigest()


def _update(digest: Any, table: pa.Table) -> None:
    """Hash a table's values, whatever its chunks and buffers look like."""
    table = table.select([name for name in table.column_names if name not in ("url", "message")])
    for start in range(0, table.num_rows, DIGESTED_ROWS):
        digest.update(repr(table.slice(start, DIGESTED_ROWS).to_pydict()).encode())


def check_geometry(clips: ClipsConfig, spec: LatentSpec) -> None:
    """Raise GeometryError, naming the nearest legal ones, for frames or sizes that the encoder refuses."""
    for frames in clips.frame_counts:
        spec.check_frames(frames)
    for height, width in clips.sizes():
        spec.check_size(height, width)


def make_plan(
    sources: pa.Table,
    clips: ClipsConfig,
    spec: LatentSpec,
    *,
    shard_clips: int,
    keep: Callable[[pa.Table], pa.Table] = lambda table: table,
    widths: dict[str, int] | None = None,
) -> Plan:
    """Plan a probed corpus: SOURCE_SCHEMA, PROBE_SCHEMA and kept columns, one row a source.

    Clips keep the order of the sources; every `shard_clips` clips of a bucket are a shard.
    keep: takes some of them and returns the same rows, from where they need no memory. widths: of vectors
    per frame that are there already, see `per_frame.problem`.
    """
    check_geometry(clips, spec)
    chooser = _Chooser(clips, spec)
    facts = ("name", "kind", "frames", "duration_s", "fps", "height", "width", "reason")
    picked: dict[Bucket, list[pa.Table]] = {}
    num_clips: Counter[Bucket] = Counter()
    rejected: list[pa.Table] = []
    num_rejected = 0
    widths = {} if widths is None else widths
    has_values = PER_FRAME in sources.column_names
    for first in range(0, max(1, sources.num_rows), CHUNK_ROWS):
        chunk = sources.slice(first, CHUNK_ROWS)
        chosen: dict[Bucket, list[Picked]] = {}
        refused: list[tuple[int, str | None, str | None]] = []
        for row, source in enumerate(chunk.select(list(facts)).to_pylist()):
            choice = chooser.choose(source)
            if isinstance(choice, str):
                refused.append((row, *_rejection(source, choice)))
                continue
            if has_values and (
                wrong := per_frame.problem(chunk[PER_FRAME][row], source["frames"], widths)
            ):
                refused.append((row, *wrong))
                continue
            ordinal = 0
            for bucket, starts in choice:
                chosen.setdefault(bucket, []).append((row, starts, ordinal))
                ordinal += len(starts)
        for bucket, of_bucket in chosen.items():
            for some in _at_a_time(of_bucket):
                table = _clips(chunk, bucket, clips, some, num_clips[bucket], shard_clips)
                picked.setdefault(bucket, []).append(keep(table))
                num_clips[bucket] += table.num_rows
        rejected.append(_rejected_table(chunk, refused, num_rejected, clips.fps))
        num_rejected += len(refused)
    buckets = {bucket: pa.concat_tables(picked[bucket]) for bucket in sorted(picked)}
    return Plan(buckets=buckets, rejected=pa.concat_tables(rejected))


def _at_a_time(picked: Sequence[Picked]) -> Iterator[Sequence[Picked]]:
    """Cut into parts of CHUNK_ROWS clips or so: Arrow cannot gather more than 2 GB of text at once."""
    first = count = 0
    for number, (_, starts, _) in enumerate(picked):
        count += len(starts)
        if count >= CHUNK_ROWS:
            yield picked[first : number + 1]
            first, count = number + 1, 0
    if first < len(picked):
        yield picked[first:]


class _Chooser:
    """Decides buckets and starts of one source."""

    def __init__(self, clips: ClipsConfig, spec: LatentSpec) -> None:
        self._clips = clips
        self._spec = spec

    def choose(self, source: Mapping[str, Any]) -> list[tuple[Bucket, Starts]] | str:
        """Return the clips' first sampled frames by bucket, or the reason why there are none."""
        if source["reason"] is not None:
            return str(source["reason"])
        height, width = self._clips.size_of(source["height"], source["width"])
        if self._is_too_small(source, height, width):
            return "too_small"
        if source["kind"] == "image":
            if not self._spec.frame_rule.is_legal(1):
                return "illegal_frames"
            return [(Bucket(frames=1, height=height, width=width), np.zeros(1, dtype=np.int64))]
        if self._clips.too_slow == "record" and repeats(source["fps"], self._clips.fps):
            return "too_slow"
        available = num_available(self._clips, source)
        counts = self._counts(available)
        if not counts:
            return "too_short"
        name, frames = source["name"], source["frames"]
        return [
            (
                Bucket(frames=count, height=height, width=width),
                select_starts(self._clips, available, count, name, frames),
            )
            for count in counts
        ]

    def _counts(self, available: int) -> list[int]:
        """Return the numbers of frames of a source's clips; none if it is too short."""
        fitting = self._clips.counts_that_fit(available)
        if self._clips.lengths == "each":
            return fitting
        if not fitting and self._clips.too_short == "shorten":
            longest = self._spec.frame_rule.longest(available)
            return [] if longest is None else [longest]
        return fitting[:1]

    def _is_too_small(self, source: Mapping[str, Any], height: int, width: int) -> bool:
        allowed = self._clips.too_small == "enlarge"
        factor = enlargement(source["height"], source["width"], height, width)
        return not allowed and bool(factor > 1)


def num_available(clips: ClipsConfig, source: Mapping[str, Any]) -> int:
    """Return how many sampled frames a video gives."""
    frames = int(source["frames"])
    if clips.sampling == "nearest":
        return num_sampled_frames(frames, source["duration_s"], clips.fps)
    if clips.sampling == "spread":
        return frames
    assert clips.fps is not None
    source_fps = clips.source_fps or source["fps"]
    return len(sampled_frames(clips.sampling, frames, source_fps, clips.fps))


def select_starts(
    clips: ClipsConfig, available: int, frames: int, name: str, source_frames: int
) -> Starts:
    """Return the first sampled frame of every clip of a source, ascending and distinct.

    first: 0. middle: as much before as after. all, slide: every `stride` frames. uniform:K: evenly from the
    first possible start to the last, and the middle one for K = 1. linspace:K: the same rounded down, and
    the first for K = 1. random:K: drawn by (seed, name), whatever else the corpus holds. spread: 0.

    There are never more than source_frames, the frames that the source has: six frames that are shown
    for a week are sampled millions of times, and are six pictures.
    """
    last = available - frames
    method, _, count = clips.select.partition(":")
    if method == "first":
        return np.zeros(1, dtype=np.int64)
    if method == "middle":
        return np.array([last // 2], dtype=np.int64)
    if method in ("all", "slide"):
        stride = max(clips.stride or frames, -(-available // source_frames))
        return np.arange(0, last + 1, stride, dtype=np.int64)
    wanted = min(int(count), last + 1, source_frames)
    if method == "uniform":
        spread = np.linspace(0, last, wanted) if wanted > 1 else np.array([last / 2])
        return np.unique(np.floor(spread + 0.5).astype(np.int64))
    if method == "linspace":
        return np.unique(np.linspace(0, last, wanted).astype(np.int64))
    seed = hashlib.blake2b(f"{clips.seed}\n{name}".encode("utf-8", "surrogatepass"), digest_size=8)
    generator = np.random.Generator(np.random.Philox(int.from_bytes(seed.digest(), "little")))
    return np.sort(generator.choice(last + 1, size=wanted, replace=False))


def kept_names(table: pa.Table) -> list[str]:
    """Return the columns of a table of sources or clips that were kept from the corpus."""
    known = {*SOURCE_SCHEMA.names, *PROBE_SCHEMA.names, *PLAN_SCHEMA.names, "bucket", "stamp"}
    return [name for name in table.column_names if name not in known]


def _clips(
    sources: pa.Table,
    bucket: Bucket,
    clips: ClipsConfig,
    picked: Sequence[Picked],
    first: int,
    shard_clips: int,
) -> pa.Table:
    """Return the clips of these sources in a bucket that has `first` clips already."""
    counts = np.array([len(starts) for _, starts, _ in picked])
    rows = np.repeat(np.array([row for row, _, _ in picked]), counts)
    before = np.array([ordinal for _, _, ordinal in picked]) - (np.cumsum(counts) - counts)
    ordinal = np.arange(len(rows)) + np.repeat(before, counts)
    position = np.arange(first, first + len(rows))
    taken = sources.drop_columns(
        [name for name in (PER_FRAME, "times_s") if name in sources.column_names]
    ).take(pa.array(rows))
    images = pc.equal(taken["kind"], "image")
    columns = {
        "key": _keys(taken, ordinal, clips),
        "source": taken["name"],
        "url": taken["url"],
        "kind": taken["kind"],
        "identity": taken["identity"],
        "start": pa.array(np.concatenate([starts for _, starts, _ in picked])),
        "frames": pa.array(np.full(len(rows), bucket.frames, dtype=np.int32)),
        "fps": pc.if_else(
            images, pa.scalar(None, pa.float64()), pa.scalar(clips.fps, pa.float64())
        ),
        "caption": taken["caption"],
        "shard": pa.array(position // shard_clips),
        "row": pa.array((position % shard_clips).astype(np.int32)),
    }
    kept = [sources.schema.field(name) for name in kept_names(sources)]
    columns.update({field.name: taken[field.name] for field in kept if field.name != PER_FRAME})
    if PER_FRAME in sources.column_names:
        columns[PER_FRAME] = _per_frame(sources, bucket, clips, picked)
    return pa.table(columns, schema=pa.schema([*PLAN_SCHEMA, *kept]))


def _per_frame(
    sources: pa.Table, bucket: Bucket, clips: ClipsConfig, picked: Sequence[Picked]
) -> pa.Array:
    """Return the values per frame of clips: those of the frames of the source that each samples."""
    values, numbers = [], []
    for row, starts, _ in picked:
        fps = None if sources["kind"][row].as_py() == "image" else clips.fps
        times_s, duration_s = _times_s(sources, row), sources["duration_s"][row].as_py()
        source_fps = clips.source_fps or sources["fps"][row].as_py()
        for start in starts.tolist():
            found = clip_frames(
                clips.sampling, times_s, duration_s, start, bucket.frames, fps, source_fps
            )
            values.append(sources[PER_FRAME][row])
            numbers.append(found)
    return per_frame.cut(values, numbers, sources.schema.field(PER_FRAME).type)


def _times_s(sources: pa.Table, row: int) -> Any:
    """Return when the frames of a source are shown: as probed; else the table says its rate."""
    times_s = sources["times_s"][row] if "times_s" in sources.column_names else None
    if times_s is not None and times_s.is_valid:
        return times_s.values.to_numpy()
    frames, duration_s = (sources[name][row].as_py() for name in ("frames", "duration_s"))
    return np.arange(frames) * (duration_s / frames)


def _keys(taken: pa.Table, ordinal: Starts, clips: ClipsConfig) -> pa.ChunkedArray:
    """Return the clips' keys; of clips of a cache their own, where each gives one."""
    if clips.select == "first" and is_cache_url(taken["url"][0].as_py()):
        return taken["name"]
    return pc.binary_join_element_wise(taken["name"], pa.array(ordinal).cast(pa.string()), "#")


def _rejection(source: Mapping[str, Any], reason: str) -> tuple[str, str | None]:
    if reason == "too_short":
        return reason, f"{source['frames']} frames in {source['duration_s']:.3f} s"
    if reason == "too_slow":
        return reason, f"{source['fps']:.3g} frames per second"
    if reason == "too_small":
        return reason, f"{source['width']} x {source['height']} as shown"
    if reason == "illegal_frames":
        return reason, "an image is one frame, and the encoder does not take one"
    return reason, None  # probing has said why


def _rejected_table(
    sources: pa.Table,
    rejected: Sequence[tuple[int, str | None, str | None]],
    first: int,
    fps: float | None,
) -> pa.Table:
    """Return rows of sources that give no clip. first: how many there were before these."""
    kept = [sources.schema.field(name) for name in kept_names(sources)]
    schema = pa.schema([*SAMPLE_SCHEMA, *kept])
    taken = sources.take(pa.array([row for row, _, _ in rejected], type=pa.int64()))
    count = len(rejected)
    messages = pa.array([message for _, _, message in rejected], type=pa.string())
    columns: dict[str, Any] = {
        "key": pc.binary_join_element_wise(taken["name"], pa.scalar("0"), "#"),
        "source": taken["name"],
        "row": pa.array(range(first, first + count), type=pa.int32()),
        "status": pa.array(["failed"] * count, type=pa.string()),
        "reason": pa.array([reason for _, reason, _ in rejected], type=pa.string()),
        "message": pc.coalesce(messages, taken["message"]),
        "caption": taken["caption"],
        "fps": pa.array([fps] * count, type=pa.float64()),
        "source_height": taken["height"],
        "source_width": taken["width"],
    }
    columns.update({field.name: taken[field.name] for field in kept})
    empty = {f.name: pa.nulls(count, f.type) for f in schema if f.name not in columns}
    return pa.table({**columns, **empty}).select(schema.names).cast(schema)


def to_shard(
    rows: pa.Table, bucket: Bucket, index: int, retired: frozenset[int] = frozenset()
) -> Shard:
    """Return the shard that these rows of a bucket's plan describe, with its clips as records."""
    kept = kept_columns(rows)
    names = ("key", "source", "url", "kind", "identity", "start", "frames", "fps", "caption")
    per_clip = [name for name in kept if name == PER_FRAME]
    clips = tuple(
        Clip(
            **{name: row[name] for name in names},
            height=bucket.height,
            width=bucket.width,
            keep={name: row[name] for name in per_clip},
        )
        for row in rows.select([*names, *per_clip]).to_pylist()
    )
    # A copy, for a slice would take all of its plan along to another machine.
    columns = rows.select(kept).take(pa.array(range(len(clips)))).combine_chunks() if kept else None
    return Shard(bucket=bucket, index=index, clips=clips, retired=retired, kept=columns)


def place_rows(table: pa.Table, first_shard: int, shard_clips: int) -> pa.Table:
    """Return a bucket's clips with their places: row after row, in shards from `first_shard` on."""
    spill = Spill()

    def positions() -> Iterator[npt.NDArray[np.int64]]:
        for start in range(0, table.num_rows, CHUNK_ROWS):
            yield np.arange(start, min(start + CHUNK_ROWS, table.num_rows))

    places = {
        "shard": (pa.array(first_shard + some // shard_clips) for some in positions()),
        "row": (pa.array((some % shard_clips).astype(np.int32)) for some in positions()),
    }
    for name, parts in places.items():
        field = PLAN_SCHEMA.field(name)
        values = spill.joined(parts, field.type)
        table = table.set_column(table.column_names.index(name), field, values)
    return table
