"""Shards of a field that are in hand at once: as many as a budget of bytes holds, and always one."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latentcache.config.fields import parse_field
from latentcache.core.fields import FieldArray
from latentcache.core.records import Bucket
from latentcache.planning.fields.planned import FieldPart, plan_field
from latentcache.planning.planned import PlannedCache
from latentcache.running import part_worker, shards_in_hand
from latentcache.running.clip_worker import ClipWorker
from latentcache.running.part_worker import PartWorker
from latentcache.running.shards_in_hand import ShardsInHand, most_in_hand, part_bytes
from latentcache.running.text_worker import TextWorker
from latentcache.running.worker import SHARDS_IN_HAND
from tests.tools.caches import make_config, make_corpus, run_inline
from tests.tools.fields import add, cache_of, text_field, write_fields

#: Longer than a shard of these tests takes to begin.
WAIT_S = 0.3


def begun(hand: ShardsInHand, num_bytes: int) -> tuple[threading.Event, threading.Event]:
    """Take a shard in hand in a thread; returns what says that it is, and what lets it go."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with hand.hold(num_bytes):
            held.set()
            done.wait()

    threading.Thread(target=hold, daemon=True).start()
    return held, done


def test_shards_that_the_budget_holds_are_in_hand_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_in_hand, "IN_HAND_BYTES", 100)
    hand = ShardsInHand()
    first, second = begun(hand, 60), begun(hand, 40)
    assert first[0].wait(10)
    assert second[0].wait(10)
    third = begun(hand, 1)
    assert not third[0].wait(WAIT_S)
    second[1].set()
    assert third[0].wait(10)
    for _, done in (first, third):
        done.set()


def test_a_shard_larger_than_the_budget_is_in_hand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_in_hand, "IN_HAND_BYTES", 100)
    hand = ShardsInHand()
    first = begun(hand, 500)
    assert first[0].wait(10)
    second = begun(hand, 500)
    assert not second[0].wait(WAIT_S)
    first[1].set()
    assert second[0].wait(10)
    second[1].set()


def test_a_shard_that_fails_leaves_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_in_hand, "IN_HAND_BYTES", 1)
    hand = ShardsInHand()
    with pytest.raises(ValueError, match="shard"), hand.hold(5):
        raise ValueError("shard")
    with hand.hold(5):
        pass


@pytest.fixture(name="texts")
def texts_fixture(tmp_path: Path) -> PlannedCache:
    return cache_of(tmp_path, [f"{n}" for n in range(8)], shard_clips=2)


def most_at_once(
    monkeypatch: pytest.MonkeyPatch, worker: type[PartWorker], budget: int
) -> list[int]:
    """Keep each shard from its commit until another is begun or none comes; returns how many were begun.

    The list grows by a number per commit.
    """
    monkeypatch.setattr(shards_in_hand, "IN_HAND_BYTES", budget)
    made, commit = worker.make_part, part_worker.commit_field_shard
    begun, found, lock = [0], list[int](), threading.Condition()

    def making(*args: Any) -> Any:
        with lock:
            begun[0] += 1
            lock.notify_all()
        return made(*args)

    def committing(*args: Any) -> Any:
        with lock:
            lock.wait_for(lambda: begun[0] > len(found) + 1, WAIT_S)
            found.append(begun[0])
        return commit(*args)

    monkeypatch.setattr(worker, "make_part", making)
    monkeypatch.setattr(part_worker, "commit_field_shard", committing)
    return found


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_a_large_shard_of_texts_is_committed_before_the_next_is_begun(
    texts: PlannedCache, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    found = most_at_once(monkeypatch, TextWorker, budget)
    add(texts, umt5=text_field())
    assert len(found) == 4
    assert (found == [1, 2, 3, 4]) == (budget == 1)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_a_large_shard_of_clips_is_committed_before_the_next_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 6, frames=5)
    cache = {"shard_clips": 2}
    path = make_config(tmp_path, corpus, str(tmp_path / "cache"), cache=cache)
    assert run_inline("precompute", path)[0] in (0, 3)
    found = most_at_once(monkeypatch, ClipWorker, budget)
    fields = write_fields(tmp_path, frame={"kind": "raw", "of": "first"})
    assert run_inline("add_field", tmp_path / "cache", fields, "run.runner=local")[0] in (0, 3)
    assert len(found) > 1
    assert (found == [*range(1, len(found) + 1)]) == (budget == 1)


def test_the_bytes_of_a_part_are_those_of_its_samples(tmp_path: Path) -> None:
    """Padding that is not stored counts, too: it is the most that they can take."""
    texts = [["a", "b", "c"], ["d"], None]
    cache = cache_of(tmp_path, ["x", "y", "z"], texts=texts)
    field = plan_field(cache, "t", parse_field("t", text_field(column="texts", pooled=True))).field
    assert field.choices == 3
    part = FieldPart(version=1, rows=(0, 1, 2), texts=(("a", "b", "c"), ("d",), ()))
    sample = 2 * (32 * 8 + 8)  # bfloat16: states and a pooled vector
    assert part_bytes(field, cache.manifest, Bucket.parse("5x64x96"), part) == 5 * sample
    frames = FieldPart(version=1, rows=(0, 2))
    assert part_bytes(field, cache.manifest, Bucket.parse("5x64x96"), frames) == 2 * sample


@pytest.mark.parametrize(
    ("width", "choices", "shards", "shard_bytes"),
    [
        (4096, 1, SHARDS_IN_HAND, 64 << 22),
        (15360, 2, 2, 64 * 2 * 512 * 15360 * 2),
        (100352, 1, 1, 64 * 512 * 100352 * 2),
    ],
)
def test_what_a_plan_says_is_what_the_budget_holds(
    texts: PlannedCache, width: int, choices: int, shards: int, shard_bytes: int
) -> None:
    array = FieldArray(shape=(512, width), dtype="bfloat16", padding="attended")
    manifest, clips = replace(texts.manifest, shard_clips=64), {Bucket.parse("5x64x96"): 1000}
    assert most_in_hand([array], manifest, clips, choices) == (shards, shard_bytes)
    few = {Bucket.parse("5x64x96"): 3}
    assert most_in_hand([array], manifest, few, 1)[1] == 3 * 512 * width * 2


def test_a_plan_says_how_much_memory_shards_in_hand_take(
    texts: PlannedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "memory of a worker" not in add(texts, small=text_field())
    monkeypatch.setattr("jobs.field_plans.MUCH_BYTES", 0)
    shard_bytes = 2 * 32 * 8 * 2
    assert f"memory of a worker: 3 shards of {shard_bytes / 1024:.1f} KiB" in add(
        texts, umt5=text_field()
    )


@pytest.mark.slow
def test_an_estimate_says_it_too_and_counts_each_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.field_plans.MUCH_BYTES", 0)
    corpus = make_corpus(tmp_path / "corpus", 4, frames=5)
    fields = {"umt5": text_field(max_choices=3)}
    path = make_config(tmp_path, corpus, str(tmp_path / "cache"), fields=fields)
    printed = run_inline("estimate", path, "--clips", 2)[1]
    assert f"memory of a worker: 3 shards of {3 * 3 * 512 / 1024:.1f} KiB" in printed
