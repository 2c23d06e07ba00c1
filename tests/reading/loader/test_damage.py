"""Damaged clips in a loader: they raise, or are left out, with order and states as they were."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from latentcache.errors import ConfigError, CorruptionError
from latentcache.format.paths import sample_path
from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.loader.targets import Arriving
from latentcache.reading.views.window import Window
from tests.tools.fields import cache_of, grow
from tests.tools.synthetic import write_cache

BUCKETS = {"1x32x48": 6, "5x32x32": 11}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cache(str(tmp_path), stored="moments", buckets=BUCKETS)
    return tmp_path


def damage(folder: Path, keys: Iterable[str]) -> None:
    """Change a byte of each of these clips."""
    for key in keys:
        bucket, _, number = key.rpartition("-")
        shard, row = divmod(int(number), 4)
        chunk = open_cache(str(folder)).rows(bucket, shard).chunks[row]
        path = folder / f"latents/{bucket}/c/{shard}/0/0/0/0"
        data = bytearray(path.read_bytes())
        data[chunk.offset + 5] ^= 1
        path.write_bytes(data)


def batches(folder: Path, **options: Any) -> list[dict[str, Any]]:
    return list(LatentLoader(str(folder), **{"batch_size": 3, **options}))


def contents(batch: dict[str, Any]) -> list[tuple[Any, ...]]:
    latents = [latents.float().numpy().tobytes() for latents in batch["latents"]]
    return list(zip(batch["key"], batch["caption"], batch["score"], latents, strict=True))


def without(batch: dict[str, Any], keys: Iterable[str]) -> list[tuple[Any, ...]]:
    return [sample for sample in contents(batch) if sample[0] not in keys]


@pytest.mark.slow
def test_damage_is_raised_unless_it_is_to_be_skipped(folder: Path) -> None:
    damage(folder, ["5x32x32-0002"])
    with pytest.raises(CorruptionError, match=r"^clip '5x32x32-0002'"):
        batches(folder)
    with pytest.raises(ConfigError, match="on_damaged 'ignore' is not one of raise, skip"):
        LatentLoader(str(folder), on_damaged="ignore")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"posterior": "mode", "normalise": False}])
def test_damaged_clips_are_left_out_counted_and_logged(
    options: dict[str, Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound = batches(folder, **options)
    damaged = ["5x32x32-0002", "5x32x32-0009", "1x32x48-0000"]
    damage(folder, damaged)
    loader = LatentLoader(str(folder), batch_size=3, on_damaged="skip", **options)
    with caplog.at_level(logging.WARNING, "latentcache"):
        found = list(loader)
    assert [contents(batch) for batch in found] == [without(batch, damaged) for batch in sound]
    assert loader.stats.num_skipped == len(damaged)
    assert loader.stats.num_samples == sum(BUCKETS.values()) - len(damaged)
    assert len(caplog.messages) == len(damaged)
    assert all(any(f"clip '{key}'" in line for line in caplog.messages) for key in damaged)


@pytest.mark.slow
def test_states_are_as_they_would_be_without_damage(folder: Path) -> None:
    sound = LatentLoader(str(folder), batch_size=3)
    states = [sound.state_dict() for _ in itertools.islice(sound, 4)]
    damage(folder, ["5x32x32-0002", "1x32x48-0000"])
    loader = LatentLoader(str(folder), batch_size=3, on_damaged="skip")
    assert [loader.state_dict() for _ in itertools.islice(loader, 4)] == states
    whole = batches(folder, on_damaged="skip")
    loader.load_state_dict(states[1])
    assert [contents(batch) for batch in loader] == [contents(batch) for batch in whole[2:]]


@pytest.mark.slow
def test_a_batch_without_a_sound_clip_is_replaced_by_the_next_of_its_bucket(folder: Path) -> None:
    """With batches of 1 and several ranks each rank still takes as many steps."""
    sound = batches(folder, batch_size=1)
    damaged = [sound[0]["key"][0], sound[-1]["key"][0]]
    damage(folder, damaged)
    found = batches(folder, batch_size=1, on_damaged="skip")
    assert len(found) == len(sound)
    assert [batch["bucket"] for batch in found] == [batch["bucket"] for batch in sound]
    for number in (0, len(sound) - 1):
        later = itertools.islice(itertools.cycle(sound), number + 1, None)
        expected = next(
            b
            for b in later
            if b["bucket"] == sound[number]["bucket"] and b["key"][0] not in damaged
        )
        assert contents(found[number]) == contents(expected)
    kept = [contents(b) for b, a in zip(found, sound, strict=True) if a["key"][0] not in damaged]
    assert kept == [contents(b) for b in sound if b["key"][0] not in damaged]


@pytest.mark.slow
def test_a_bucket_without_a_sound_clip_ends_the_epoch_with_an_error(folder: Path) -> None:
    damage(folder, [f"1x32x48-{number:04d}" for number in range(BUCKETS["1x32x48"])])
    with pytest.raises(CorruptionError, match="no clip of 1x32x48 can be read"):
        batches(folder, on_damaged="skip")


@pytest.mark.slow
def test_a_lost_table_and_a_lost_object_are_damage_of_all_their_clips(folder: Path) -> None:
    sound = batches(folder)
    (folder / sample_path("5x32x32", 1)).unlink()
    (folder / "latents/1x32x48/c/1/0/0/0/0").unlink()
    lost = [f"5x32x32-{n:04d}" for n in range(4, 8)] + ["1x32x48-0004", "1x32x48-0005"]
    loader = LatentLoader(str(folder), batch_size=3, on_damaged="skip")
    found = list(loader)
    assert loader.stats.num_skipped == len(lost)
    for batch, other in zip(found, sound, strict=True):
        assert contents(batch) == without(other, lost) or not without(other, lost)


@pytest.mark.slow
def test_a_lost_table_of_a_later_generation_is_damage_of_its_clips_only(tmp_path: Path) -> None:
    planned = grow(cache_of(tmp_path, ["a"] * 6), ["b"] * 6)
    (bucket,) = planned.manifest.buckets
    sound = {key for batch in LatentLoader(planned.storage.url) for key in batch["key"]}
    Path(planned.storage.url, sample_path(bucket.name, bucket.parts[1][1].first_shard)).unlink()
    with pytest.raises(CorruptionError):
        list(LatentLoader(planned.storage.url))
    for view in (None, Window(1, middle=True)):
        loader = LatentLoader(planned.storage.url, view=view, on_damaged="skip")
        found = {key for batch in loader for key in batch["key"]}
        lost = sound & {f"g1_{n}#0" for n in range(planned.manifest.shard_clips)}
        assert found == sound - lost
        assert loader.stats.num_skipped == len(lost) > 0


def test_latents_on_a_device_are_left_out_when_they_are_taken() -> None:
    assert Arriving(torch.arange(6).view(3, 2), keep=[0, 2]).take().tolist() == [[0, 1], [4, 5]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_leave_out_the_same(folder: Path) -> None:
    damage(folder, ["5x32x32-0002", "1x32x48-0000"])
    for size in (1, 3):
        expected = batches(folder, batch_size=size, on_damaged="skip")
        loader = LatentLoader(str(folder), batch_size=size, on_damaged="skip")
        found = list(DataLoader(loader, batch_size=None, num_workers=2))
        assert [contents(batch) for batch in found] == [contents(batch) for batch in expected]


def test_an_open_cache_is_read_as_before(folder: Path) -> None:
    cache: Cache = open_cache(str(folder))
    damage(folder, ["5x32x32-0002"])
    assert isinstance(cache["5x32x32-0003"]["latents"], torch.Tensor)
    with pytest.raises(CorruptionError, match=r"^clip '5x32x32-0002'"):
        cache["5x32x32-0002"]


@pytest.mark.slow
def test_a_view_leaves_out_damaged_clips_too(folder: Path) -> None:
    view = Window(1, start="all", middle=True)
    whole = [b for b in LatentLoader(str(folder), view=view) if b["bucket"] == "5x32x32"]
    damage(folder, ["5x32x32-0001"])
    with pytest.raises(CorruptionError, match="5x32x32-0001"):
        list(LatentLoader(str(folder), view=view))
    loader = LatentLoader(str(folder), view=view, on_damaged="skip")
    found = [b for b in loader if b["bucket"] == "5x32x32"]
    expected = [key for b in whole for key in b["key"] if key != "5x32x32-0001"]
    assert [key for b in found for key in b["key"]] == expected
    assert loader.stats.num_skipped == 2  # both windows
    assert loader.stats.num_samples == len(expected) + 6


@pytest.mark.slow
def test_a_view_leaves_out_the_clips_of_a_lost_table_too(folder: Path) -> None:
    view = Window(1, middle=True)
    whole = [key for b in LatentLoader(str(folder), view=view) for key in b["key"]]
    (folder / sample_path("5x32x32", 1)).unlink()
    with pytest.raises(CorruptionError):
        list(LatentLoader(str(folder), view=view))
    loader = LatentLoader(str(folder), view=view, on_damaged="skip")
    found = [key for batch in loader for key in batch["key"]]
    lost = {f"5x32x32-{n:04d}" for n in range(4, 8)}
    assert sorted(found) == sorted(set(whole) - lost)
    assert loader.stats.num_skipped == len(lost)
