"""Fields that are made along with latents, from the driver's side; frames that are kept for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentcache.config.fields import parse_field
from latentcache.core.records import Bucket, Shard, ShardReport
from latentcache.planning.fields.planned import create_field, plan_field
from latentcache.planning.planned import PlannedCache
from latentcache.running.events import Died, GaveUp, Progress, Retried, Task
from latentcache.running.one_decode import Kept, SharedShard
from latentcache.running.shared_fields import DEATHS_PER_WORKER, SharedFields, can_share
from tests.tools.fields import cache_of, text_field

FRAME = {"kind": "raw", "of": "first"}


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path) -> PlannedCache:
    return cache_of(tmp_path, ["a"] * 6, filled=False, shard_clips=2)


def shared_of(cache: PlannedCache, **fields: dict[str, Any]) -> SharedFields:
    configs = {name: parse_field(name, field) for name, field in fields.items()}
    planned = [create_field(plan_field(cache, name, c)) for name, c in configs.items()]
    return SharedFields(planned, cache.config.run)


def tasks_of(cache: PlannedCache, shared: SharedFields) -> list[list[str]]:
    """Of each shard, the fields that its worker is asked for."""
    tasks = [shared.with_parts(cache.plan.shard(shard)) for shard in cache.planned_shards()]
    return [list(task.parts) if isinstance(task, SharedShard) else [] for task in tasks]


def report(num_ok: int = 2, **fields: ShardReport) -> ShardReport:
    facts = {"bucket": "b", "shard": 0, "num_clips": 2, "num_ok": num_ok, "num_frames": 0}
    return ShardReport(**facts, stored_bytes=0, table_bytes=0, raw_bytes=0, fields=fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "shares"),
    [
        (FRAME, True),
        ({"kind": "raw", "of": "clip"}, True),
        ({"kind": "visual", "of": "first_then_zeros"}, True),
        ({"kind": "raw", "of": "clip", "column": "texts"}, False),
        ({"kind": "view"}, False),
        (text_field(), False),
    ],
)
def test_fields_of_the_clips_own_frames_are_made_with_the_latents(
    cache: PlannedCache, field: dict[str, Any], shares: bool
) -> None:
    assert can_share(parse_field("x", field), cache.manifest) == shares


def test_fields_have_a_snapshot_as_soon_as_a_run_begins(cache: PlannedCache) -> None:
    shared = shared_of(cache, one=FRAME)
    assert not cache.storage.exists("fields/one/index.parquet")
    shared.publish()
    assert cache.storage.exists("fields/one/index.parquet")


def test_a_shard_that_failed_is_tried_again_without_fields(cache: PlannedCache) -> None:
    shared = shared_of(cache, one=FRAME, other=FRAME)
    assert tasks_of(cache, shared) == [["one", "other"]] * 3
    first, second, _ = cache.planned_shards()
    shared.take(Retried(task=Task(shard=first)))
    shared.take(GaveUp(task=Task(shard=second)))
    assert tasks_of(cache, shared) == [[], [], ["one", "other"]]


def test_fields_are_suspected_if_workers_die_more_often_than_shards_are_done(
    cache: PlannedCache,
) -> None:
    shared = shared_of(cache, one=FRAME)
    shared.take(Died(name="", error="it did not start, so it had loaded no field"))
    assert tasks_of(cache, shared) == [["one"]] * 3
    shared.take(report(one=report()))
    shared.take(Died(name="host/gpu0", error="killed"))
    assert tasks_of(cache, shared) == [["one"]] * 3
    shared.take(Died(name="host/gpu0", error="killed"))
    assert tasks_of(cache, shared) == [[]] * 3


def test_machines_that_come_and_go_do_not_end_it(cache: PlannedCache) -> None:
    shared = shared_of(cache, one=FRAME)
    shared.take(Progress(clips_done=0, workers=3))
    for _ in range(DEATHS_PER_WORKER * 3):
        shared.take(report(one=report()))
        shared.take(Died(name="host/gpu0", error="preempted"))
    assert tasks_of(cache, shared) == [["one"]] * 3
    shared.take(report(one=report()))
    shared.take(Died(name="host/gpu0", error="preempted"))
    assert tasks_of(cache, shared) == [[]] * 3


def test_a_field_whose_clips_fail_is_left_to_a_run_that_judges_it(cache: PlannedCache) -> None:
    shared = shared_of(cache, good=FRAME, bad=FRAME)
    num_shards = -(-cache.config.run.judged_clips // 2)
    for n in range(num_shards):
        assert tasks_of(cache, shared) == [["good", "bad"]] * 3, n
        shared.take(report(good=report(), bad=report(num_ok=0)))
    assert tasks_of(cache, shared) == [["good"]] * 3
    assert shared.summaries["bad"].clips_failed == 2 * num_shards
    assert shared.summaries["good"].clips_ok == 2 * num_shards


@pytest.mark.parametrize("piece", [1, 2, 3, 5])
def test_frames_are_kept_of_clips_that_come_in_pieces(piece: int) -> None:
    frames, rng = 5, np.random.default_rng(0)
    shard = Shard(bucket=Bucket(frames=frames, height=16, width=16), index=0, clips=())
    pixels = rng.integers(0, 256, (frames, 16, 16, 3), np.uint8)
    ends, whole = Kept(shard, ["first", "first_last"]), Kept(shard, ["last", "clip"])
    for first in range(0, frames, piece):
        part = pixels[first : first + piece].copy()
        for kept in (ends, whole):
            assert kept.pixels(7, "first") is None
            kept.add(7, first, part)
        part[:] = 0  # the buffer is used for something else
    for kept, of, expected in [
        (ends, "first", pixels[:1]),
        (ends, "first_last", pixels[[0, -1]]),
        (whole, "clip", pixels),
        (whole, "last", pixels[-1:]),
    ]:
        found = kept.pixels(7, of)
        assert found is not None
        np.testing.assert_array_equal(np.concatenate(found()), expected)
    assert ends.pixels(8, "first") is None
