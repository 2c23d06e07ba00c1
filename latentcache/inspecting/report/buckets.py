"""The report's table of buckets, the largest of them, which heads sort."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from latentcache.core.units import human_bytes, human_time
from latentcache.inspecting.report.facts import BucketFacts, Facts
from latentcache.inspecting.report.markup import Markup, h
from latentcache.inspecting.report.tables import sortable

#: Rows of the table of buckets, at most: a cache of mixed shapes may have thousands.
MAX_BUCKETS = 500
#: Columns of the table of buckets, and what each is sorted by, the largest first.
BUCKET_COLUMNS: Mapping[str, Callable[[BucketFacts], float]] = {
    "bucket": lambda bucket: bucket.bucket.frames * bucket.bucket.height * bucket.bucket.width,
    "committed": lambda bucket: (bucket.num_ok + bucket.num_failed) / bucket.planned_clips,
    "ok": lambda bucket: bucket.num_ok,
    "failed": lambda bucket: bucket.num_failed,
    "frames": lambda bucket: bucket.num_frames,
    "video": lambda bucket: bucket.duration_s,
    "raw": lambda bucket: bucket.raw_bytes,
    "stored": lambda bucket: bucket.stored_bytes,
    "of raw": lambda bucket: bucket.stored_bytes / max(1, bucket.raw_bytes),
    "of pixels": lambda bucket: bucket.stored_bytes / max(1, bucket.pixel_bytes),
}


def buckets(facts: Facts) -> list[Markup]:
    """Return the heading, the table, and what is left out of it."""
    largest = sorted(facts.buckets, key=lambda bucket: -bucket.planned_clips)[:MAX_BUCKETS]
    kept = {bucket.bucket for bucket in largest}
    shown = [bucket for bucket in facts.buckets if bucket.bucket in kept]
    left_out = [bucket for bucket in facts.buckets if bucket.bucket not in kept]
    head, rows = list(BUCKET_COLUMNS), [_bucket_row(bucket) for bucket in shown]
    keys = [[key(bucket) for key in BUCKET_COLUMNS.values()] for bucket in shown]
    found = [h("h2", "Buckets"), sortable("buckets", head, rows, keys, text=(1,))]
    if left_out:
        clips = sum(bucket.planned_clips for bucket in left_out)
        text = (
            f"{len(left_out):,} buckets of the fewest clips, {clips:,} in all, are left out here."
        )
        found.append(h("p", text, class_="dim"))
    return found


def _bucket_row(bucket: BucketFacts) -> Sequence[object]:
    clips = bucket.num_ok + bucket.num_failed
    committed = (
        f"{clips:,} of {bucket.planned_clips:,} clips, "
        f"{bucket.committed_shards:,} of {bucket.planned_shards:,} shards"
    )
    return (
        bucket.bucket.name,
        [committed, _bar(clips / bucket.planned_clips)],
        f"{bucket.num_ok:,}",
        f"{bucket.num_failed:,}",
        f"{bucket.num_frames:,}",
        human_time(bucket.duration_s) if bucket.duration_s else "-",
        human_bytes(bucket.raw_bytes),
        human_bytes(bucket.stored_bytes),
        _ratio(bucket.stored_bytes, bucket.raw_bytes),
        _ratio(bucket.stored_bytes, bucket.pixel_bytes),
    )


def _bar(share: float) -> Markup:
    return h("div", h("i", style=f"width: {100 * share:.1f}%"), class_="bar")


def _ratio(part: float, whole: float) -> str:
    return f"{part / whole:.3f}" if whole else "-"
