"""Planning: which clips a corpus gives, in which bucket, shard and row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentcache.config.clips import ClipsConfig
from latentcache.core.records import Bucket
from latentcache.core.spec import FrameRule, LatentSpec
from latentcache.errors import GeometryError
from latentcache.format.schemas import PROBE_SCHEMA, SOURCE_SCHEMA
from latentcache.planning.plan import Plan, check_geometry, make_plan, select_starts, to_shard

SPEC = LatentSpec(
    encoder="test",
    model_class="Causal",
    channels=16,
    stride=(4, 8, 8),
    frame_rule=FrameRule(multiple=4, remainders=(1,)),
    stored="mean",
    dtype="bfloat16",
)


def source(name: str, frames: int | None = 50, **facts: Any) -> dict[str, Any]:
    defaults = {
        "name": name, "url": f"/videos/{name}", "kind": "video", "caption": f"about {name}",
        "frames": frames, "fps": 25.0, "height": 480, "width": 720, "duration_s": (frames or 0) / 25.0,
        "identity": f"id-{name}",
    }  # fmt: skip
    return {**defaults, **facts}


def table(*rows: dict[str, Any], keep: tuple[pa.Field, ...] = ()) -> pa.Table:
    return pa.Table.from_pylist(
        list(rows), schema=pa.schema([*SOURCE_SCHEMA, *PROBE_SCHEMA, *keep])
    )


def clips(**changes: Any) -> ClipsConfig:
    return ClipsConfig(**{"frames": 17, "size": (480, 720), **changes})


def plan(*rows: dict[str, Any], shard_clips: int = 4, **changes: Any) -> Plan:
    return make_plan(table(*rows), clips(**changes), SPEC, shard_clips=shard_clips)


def starts(result: Plan) -> list[int]:
    (only,) = result.buckets.values()
    return only["start"].to_pylist()


def test_first_takes_one_clip_a_source_and_rows_follow_the_corpus() -> None:
    result = plan(*(source(f"{i}.mp4") for i in range(6)))
    only = result.buckets[Bucket(frames=17, height=480, width=720)]
    assert only["key"].to_pylist() == [f"{i}.mp4#0" for i in range(6)]
    assert only["shard"].to_pylist() == [0, 0, 0, 0, 1, 1]
    assert only["row"].to_pylist() == [0, 1, 2, 3, 0, 1]
    assert only["caption"][5].as_py() == "about 5.mp4"


def test_all_takes_clips_one_after_the_other() -> None:
    assert starts(plan(source("a", 52), select="all")) == [0, 17, 34]


def test_stride_overlaps_clips() -> None:
    assert starts(plan(source("a", 33), select="all", stride=8)) == [0, 8, 16]


@pytest.mark.parametrize("select", ["all", "uniform:100", "random:100", "first"])
@pytest.mark.parametrize("stride", [None, 1])
def test_a_source_gives_no_more_clips_than_it_has_frames(select: str, stride: int | None) -> None:
    """Six frames that are shown for a week are sampled ten million times."""
    week = source("a", 6, duration_s=7 * 86400.0)
    stride = stride if select == "all" else None
    found = starts(plan(week, select=select, stride=stride, fps=16.0))
    assert len(found) == (1 if select == "first" else 6)
    assert len(set(found)) == len(found)


def test_a_slow_source_still_gives_clips_one_after_the_other() -> None:
    """Repeated frames are no fault: 60 frames at 6 per second, sampled at 24."""
    found = starts(plan(source("a", 60, duration_s=10.0), select="all", fps=24.0))
    assert found == list(range(0, 240 - 16, 17))


def test_uniform_spreads_from_the_first_start_to_the_last() -> None:
    assert starts(plan(source("a", 57), select="uniform:3")) == [0, 20, 40]
    assert starts(plan(source("a", 57), select="uniform:1")) == [20]


def test_uniform_gives_distinct_clips_where_there_are_fewer() -> None:
    assert starts(plan(source("a", 19), select="uniform:9")) == [0, 1, 2]


def test_random_depends_on_seed_and_name_alone() -> None:
    one = starts(plan(source("a", 500), select="random:4"))
    among_others = plan(source("z", 500), source("a", 500), select="random:4")
    (both,) = among_others.buckets.values()
    assert both.filter(pa.compute.equal(both["source"], "a"))["start"].to_pylist() == one
    assert starts(plan(source("a", 500), select="random:4", seed=1)) != one
    assert starts(plan(source("b", 500), select="random:4")) != one


@given(
    select=st.sampled_from(["first", "all", "uniform:5", "random:5"]),
    available=st.integers(17, 400),
    stride=st.none() | st.integers(1, 40),
)
def test_every_clip_lies_inside_its_source(select: str, available: int, stride: int | None) -> None:
    config = clips(select=select, stride=stride if select == "all" else None)
    chosen = select_starts(config, available, 17, "name", available)
    assert len(chosen) >= 1
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] + 17 <= available


def test_the_longest_number_of_frames_that_fits_is_used() -> None:
    result = plan(source("long", 60), source("mid", 30), source("short", 8), frames=[9, 49, 25])
    assert {b.frames: t["source"].to_pylist() for b, t in result.buckets.items()} == {
        49: ["long"],
        25: ["mid"],
    }
    assert result.rejected["reason"].to_pylist() == ["too_short"]
    assert result.rejected["message"].to_pylist() == ["8 frames in 0.320 s"]


def test_too_short_sources_can_be_shortened_to_a_legal_number() -> None:
    result = plan(source("short", 8), too_short="shorten")
    assert [b.frames for b in result.buckets] == [5]


def test_sampling_at_a_lower_rate_counts_sampled_frames() -> None:
    result = plan(source("a", 50), frames=17, fps=8.0, select="all")
    assert result.num_clips == 0
    assert result.rejected["reason"].to_pylist() == ["too_short"]
    assert starts(plan(source("a", 50), frames=5, fps=8.0, select="all")) == [0, 5, 10]


def test_images_are_one_frame_clips() -> None:
    image = source("i.png", 1, kind="image", fps=None, duration_s=0.0)
    result = plan(image, source("v.mp4"), fps=8.0, frames=9)
    assert [b.frames for b in result.buckets] == [1, 9]
    assert result.buckets[Bucket(frames=1, height=480, width=720)]["fps"].to_pylist() == [None]


def test_images_are_refused_where_one_frame_is_illegal() -> None:
    spec = LatentSpec(
        **{**vars(SPEC), "frame_rule": FrameRule(multiple=8, remainders=(1,), minimum=9)}
    )
    image = source("i.png", 1, kind="image", fps=None, duration_s=0.0)
    result = make_plan(table(image), clips(), spec, shard_clips=4)
    assert result.rejected["reason"].to_pylist() == ["illegal_frames"]


def test_sources_go_to_the_nearest_aspect_ratio() -> None:
    buckets = {"area": 128 * 128, "multiple": 16, "aspect_ratios": ["1:1", "16:9", "9:16"]}
    wide, tall = source("w", height=1080, width=1920), source("t", height=1920, width=1080)
    square = source("s", height=500, width=520)
    result = plan(wide, tall, square, size=None, buckets=buckets)
    names = {b.name: t["source"].to_pylist() for b, t in result.buckets.items()}
    assert names == {"17x128x128": ["s"], "17x96x176": ["w"], "17x176x96": ["t"]}


def test_unusable_sources_are_rows_with_their_reasons() -> None:
    broken = source("broken", reason="unreadable", message="no moov atom", frames=None, height=None)
    result = plan(broken, source("fine"))
    (row,) = result.rejected.to_pylist()
    assert (row["key"], row["status"], row["reason"]) == ("broken#0", "failed", "unreadable")
    assert row["message"] == "no moov atom"
    assert row["bucket"] is None


def test_kept_columns_reach_clips_and_rejected_sources() -> None:
    keep = (pa.field("score", pa.float64()),)
    rows = table(source("a", score=0.5), source("b", 3, score=0.25), keep=keep)
    result = make_plan(rows, clips(), SPEC, shard_clips=4)
    ((bucket, only),) = result.buckets.items()
    assert only["score"].to_pylist() == [0.5]
    assert result.rejected["score"].to_pylist() == [0.25]
    shard = to_shard(only, bucket, 0)
    assert shard.kept.to_pylist() == [{"score": 0.5}]
    assert (shard.clips[0].height, shard.clips[0].frames) == (480, 17)


def test_illegal_frames_and_sizes_name_the_nearest_legal_ones() -> None:
    with pytest.raises(GeometryError, match=r"takes 4k\+1 frames per clip, not 16.*13 or 17"):
        check_geometry(clips(frames=16), SPEC)
    with pytest.raises(GeometryError, match=r"484x720 is not a multiple.*Use 480x720"):
        check_geometry(clips(size=(484, 720)), SPEC)


@pytest.mark.parametrize("chunk_rows", [1, 7, 64])
def test_a_plan_does_not_depend_on_how_much_is_planned_at_a_time(
    chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [source(f"{n}.mp4", frames=[3, 50, 400][n % 3], height=480 + n) for n in range(30)]
    rows[4]["reason"] = "corrupt"

    def make() -> Plan:
        return plan(*rows, select="all", frames=[17, 33])

    whole = make()
    assert whole.rejected.num_rows == 11
    monkeypatch.setattr("latentcache.planning.plan.CHUNK_ROWS", chunk_rows)
    parts = make()
    assert [*parts.buckets.items()] == [*whole.buckets.items()]
    assert parts.rejected == whole.rejected


def test_where_sources_are_is_not_in_the_digest_and_what_they_give_is() -> None:
    gone = {"frames": None, "reason": "missing", "message": "no such file: /videos/b"}
    old = plan(source("a"), source("b", **gone))
    moved = plan(
        source("a", url="/new/a"), source("b", **{**gone, "message": "no such file: /new/b"})
    )
    assert moved.digest() == old.digest()
    assert plan(source("a", caption="x"), source("b", **gone)).digest() != old.digest()
    assert plan(source("a"), source("b", **{**gone, "reason": "corrupt"})).digest() != old.digest()


def test_the_same_input_gives_the_same_digest_however_it_is_chunked() -> None:
    rows = [source(f"{i}", 100 + i) for i in range(40)]
    whole = make_plan(table(*rows), clips(select="random:2"), SPEC, shard_clips=8)
    pieces = pa.concat_tables([table(*rows[:7]), table(*rows[7:])])
    again = make_plan(pieces, clips(select="random:2"), SPEC, shard_clips=8)
    assert whole.digest() == again.digest()
    rows[3]["identity"] = "other"
    changed = make_plan(table(*rows), clips(select="random:2"), SPEC, shard_clips=8)
    assert whole.digest() != changed.digest()


def test_each_length_that_fits_gives_clips_of_its_own_with_keys_of_their_own() -> None:
    result = plan(source("a.mp4", 20), frames=[5, 9, 33], lengths="each", select="chunk")
    found = {
        bucket.frames: list(zip(t["key"].to_pylist(), t["start"].to_pylist(), strict=True))
        for bucket, t in result.buckets.items()
    }
    assert found == {
        9: [("a.mp4#0", 0), ("a.mp4#1", 9)],
        5: [("a.mp4#2", 0), ("a.mp4#3", 5), ("a.mp4#4", 10), ("a.mp4#5", 15)],
    }
