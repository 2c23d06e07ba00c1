"""What a plan says before it costs anything, and the sources that a configuration leaves out for it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from latentcache.config.clips import ClipsConfig
from latentcache.config.sections import CacheConfig
from latentcache.core.records import REASONS
from latentcache.planning.notes import enlargement, notes, repeats
from latentcache.planning.plan import make_plan
from tests.planning.test_plan import SPEC, source, table
from tests.tools.caches import lines_of, make_config, make_corpus, run_inline
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

RATIOS = {"area": 480 * 720, "multiple": 16, "aspect_ratios": [1.5, 1.0]}


def said(*rows: dict[str, Any], shard_clips: int = 64, **changes: Any) -> dict[str, Any]:
    clips = ClipsConfig(**{"frames": 17, "size": (480, 720), "select": "all", **changes})
    sources = table(*rows)
    plan = make_plan(sources, clips, SPEC, shard_clips=shard_clips)
    return {note.what: note for note in notes(sources, plan.buckets, clips, shard_clips)}


def rejected(*rows: dict[str, Any], **changes: Any) -> list[tuple[str, str, str]]:
    clips = ClipsConfig(**{"frames": 17, "size": (480, 720), **changes})
    found = make_plan(table(*rows), clips, SPEC, shard_clips=4).rejected.to_pylist()
    return [(row["source"], row["reason"], row["message"]) for row in found]


def test_captions_are_counted_per_source() -> None:
    found = said(source("a"), source("b", caption=None), source("c", caption=None, frames=3))
    assert found["captions"].text == "1 found, 1 missing"
    assert found["captions"].names.to_pylist() == ["b"]  # c gives no clip


def test_frames_that_repeat_are_said() -> None:
    rows = [
        source("a", fps=25.0),
        source("b", fps=12.5, duration_s=4.0),
        source("p", 1, kind="image"),
    ]
    rows[2]["fps"] = None
    found = said(*rows, fps=24.0)
    assert found["fps"].names.to_pylist() == ["b"]
    assert "1 sources have fewer frames per second than clips.fps=24 (the lowest 12.5)" in (
        found["fps"].text
    )
    assert "fps" not in said(*rows)
    assert "fps" not in said(source("a", fps=23.976), fps=24.0)


def test_enlargement_is_said_by_the_size_as_shown() -> None:
    found = said(
        source("a"), source("b", height=240, width=360), source("c", height=480, width=719)
    )
    assert found["size"].names.to_pylist() == ["b", "c"]
    assert "by up to 2.00" in found["size"].text
    assert "size" not in said(source("a"), source("d", height=2160, width=3840))


@pytest.mark.parametrize("seed", range(3))
def test_notes_are_what_each_source_by_itself_gives(seed: int) -> None:
    """Of sources with and without clips, in several buckets, of one length or each."""
    draw = random.Random(seed)
    rows = [
        source(
            f"v{n}", draw.choice((5, 17, 40, 200)), fps=draw.choice((None, 12.5, 23.976, 25.0)),
            kind=draw.choice(("video", "image")), height=draw.choice((240, 480, 721)),
            width=draw.choice((240, 719, 1280)), caption=draw.choice((None, "a caption")),
            duration_s=3.0,
        )
        for n in range(200)
    ]  # fmt: skip
    config = ClipsConfig(fps=24.0, frames=[5, 17], lengths="each", buckets=RATIOS)
    plan = make_plan(table(*rows), config, SPEC, shard_clips=4)
    found = {note.what: note for note in notes(table(*rows), plan.buckets, config, 4)}
    bucket_of = {
        name: bucket
        for bucket, clips in plan.buckets.items()
        for name in clips["source"].to_pylist()
    }
    rows = [row for row in rows if row["name"] in bucket_of]
    slow = [row for row in rows if row["kind"] == "video" and repeats(row["fps"], 24.0)]
    factors = {
        row["name"]: enlargement(
            row["height"], row["width"], bucket_of[row["name"]].height, bucket_of[row["name"]].width
        )
        for row in rows
    }
    large = [name for name, factor in factors.items() if factor > 1]
    assert 0 < len(slow) < len(rows) > len(large) > 0
    assert found["captions"].names.to_pylist() == [r["name"] for r in rows if r["caption"] is None]
    assert found["fps"].names.to_pylist() == [row["name"] for row in slow]
    assert found["size"].names.to_pylist() == large
    assert f"by up to {max(factors.values()):.2f};" in found["size"].text


def test_small_buckets_and_lone_shards_are_said() -> None:
    many = [source(f"{n}", 17 * 9) for n in range(3)]
    few = source("square", height=720, width=720)
    found = said(*many, few, size=None, buckets=RATIOS)
    assert "these have few: 17x592x592 (2)" in found["buckets"].text
    assert "at most 2 GPUs work at once, and a stop costs up to 27 clips" in found["shards"].text
    alone = said(*many, shard_clips=4)
    assert not {"buckets", "shards"} & alone.keys()


def test_a_configuration_leaves_out_slow_and_small_sources() -> None:
    slow = source("slow", fps=12.5, duration_s=4.0)
    small = source("small", height=240, width=360)
    fine = source("fine")
    assert not rejected(slow, small, fine, fps=24.0)
    assert rejected(slow, small, fine, fps=24.0, too_slow="record") == [
        ("slow", "too_slow", "12.5 frames per second")
    ]
    assert rejected(slow, small, fine, too_slow="record") == []
    assert rejected(slow, small, fine, too_small="record") == [
        ("small", "too_small", "360 x 240 as shown")
    ]
    assert {"too_slow", "too_small"} <= REASONS.keys()


def test_the_measures() -> None:
    assert repeats(12.0, 24.0)
    assert not repeats(24.0, None)
    assert not repeats(None, 24.0)
    assert enlargement(480, 720, 480, 832) == 832 / 720
    assert enlargement(1080, 1920, 480, 832) < 1


@pytest.mark.parametrize(
    ("num_clips", "workers", "expected"),
    [(35, "auto", 1), (320, "auto", 10), (10**6, "auto", 64), (35, 1, 8), (3, 4, 1), (0, 2, 1)],
)
def test_automatic_shards_give_every_worker_several(
    num_clips: int, workers: Any, expected: int
) -> None:
    cache = CacheConfig(url="/c", shard_clips="auto")
    assert cache.shard_clips_of(num_clips, workers) == expected
    assert CacheConfig(url="/c", shard_clips=7).shard_clips_of(num_clips, workers) == 7


@pytest.mark.slow
def test_a_cache_with_automatic_shards_is_made_and_grows(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 4)
    sections: dict[str, Any] = {"cache": {"shard_clips": "auto"}, "run": {"workers": 1}}
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"), **sections)
    status, printed = run_inline("precompute", config)
    assert status == 3, printed  # the corpus has bad files
    assert "GPUs work at once" not in printed
    (made,) = lines_of(tmp_path / "cache", ["shard_clips"])
    assert made == 2  # 9 clips for one worker
    assert len(list((tmp_path / "cache" / "samples").rglob("*.parquet"))) > 4
    write_video(corpus / "new.mp4", moving_pattern(100, 64, 96, seed=9))
    status, printed = run_inline("precompute", config, "run.workers=3")
    assert status == 3, printed
    assert lines_of(tmp_path / "cache", ["shard_clips"]) == [made]
    assert run_inline("verify", tmp_path / "cache")[0] == 0
