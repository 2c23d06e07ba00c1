"""Compacting: what is rewritten, that every chunk and what is said of it comes along, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from jobs import progress
from latentcache.copying.compact import choose_shards
from latentcache.core.records import ShardId
from latentcache.format.shards import get_format
from latentcache.inspecting.verify import verify
from latentcache.planning.planned import PlannedCache
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.caches import read_files, run_inline
from tests.tools.copied import (
    VIDEOS,
    clips_of,
    failed_of,
    make_fragmented,
    open_again,
    reopened,
)
from tests.tools.planned import make_cache

FORMATS = ("zarr", "parquet")


def row(
    shard: int, num_clips: int, *, num_ok: int | None = None, retired: int = 0
) -> dict[str, Any]:
    """A row of the snapshot."""
    return {
        "bucket": VIDEOS,
        "shard": shard,
        "num_clips": num_clips,
        "num_ok": num_clips if num_ok is None else num_ok,
        "retired": list(range(retired)) or None,
    }


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> PlannedCache:
    return make_cache(tmp_path_factory.mktemp("choose"), shard_clips=4)


@pytest.mark.parametrize(
    ("rows", "below", "shards", "num_new"),
    [
        ([row(0, 4), row(1, 1)], 0.75, [], 0),  # the last one is short, and stays so
        ([row(0, 4), row(1, 1), row(2, 2)], 0.75, [1, 2], 1),
        ([row(0, 3), row(1, 3), row(2, 3)], 0.75, [], 0),  # nearly full
        ([row(0, 3), row(1, 3), row(2, 2)], 1, [0, 1, 2], 2),
        ([row(0, 3), row(1, 3), row(2, 3)], 1, [], 0),  # as many afterwards
        ([row(0, 3), row(1, 3, retired=1), row(2, 3)], 1, [1], 1),
        ([row(0, 2, retired=2)], 0.75, [0], 1),
        ([row(0, 2), row(1, 2, retired=2)], 0.75, [0, 1], 1),
        ([row(0, 2, num_ok=0)], 0.75, [], 0),
    ],
)
def test_shards_are_rewritten_where_there_is_something_to_gain(
    planned: PlannedCache,
    rows: list[dict[str, Any]],
    below: float,
    shards: list[int],
    num_new: int,
) -> None:
    chosen = choose_shards(planned.manifest, rows, below=below, drop_failed=False)
    assert [row["shard"] for rewritten in chosen for row in rewritten.shards] == shards
    assert sum(rewritten.num_new for rewritten in chosen) == num_new


def test_failed_rows_count_unless_they_are_dropped(planned: PlannedCache) -> None:
    rows = [row(0, 4, num_ok=1), row(1, 4)]
    assert choose_shards(planned.manifest, rows, below=0.75, drop_failed=False) == []
    (rewritten,) = choose_shards(planned.manifest, rows, below=0.75, drop_failed=True)
    assert (rewritten.num_clips, rewritten.num_new) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("shard_format", FORMATS)
def test_every_clip_comes_along_as_it_is_stored(
    shard_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_fragmented(tmp_path, format=shard_format)
    before, files = open_again(cache.storage), read_files(tmp_path / "cache")
    clips, failed = clips_of(before), failed_of(before)
    assert clips["v8#0"][0]["caption"] == "'new 0'"
    member = type(get_format(shard_format))
    for name in (
        ("encode_shard", "decode", "read") if shard_format == "zarr" else ("read", "decode")
    ):
        monkeypatch.setattr(member, name, None)  # nothing is compressed or decompressed
    status, printed = run_inline("compact", tmp_path / "cache", "--below", 1)
    monkeypatch.undo()
    assert status == 0, printed
    after = open_again(cache.storage)
    assert clips_of(after) == clips
    assert failed_of(after) == failed
    now = read_files(tmp_path / "cache")
    pointers = ("index.parquet", "zarr.json")
    assert [n for n, d in files.items() if now[n] != d and not n.endswith(pointers)] == []
    assert clips_of(before) == clips, "a reader keeps what it opened"
    assert not verify(cache.storage).problems
    counts = [row["num_clips"] for row in after._index.to_pylist() if row["bucket"] == VIDEOS]
    assert counts == [3, 3, 1]
    assert after._index["retired"].null_count == after._index.num_rows
    assert "Nothing to compact" in run_inline("compact", tmp_path / "cache", "--below", 1)[1]
    assert read_files(tmp_path / "cache") == now


@pytest.mark.slow
def test_zarr_python_reads_a_compacted_array(tmp_path: Path) -> None:
    cache = make_fragmented(tmp_path)
    run_inline("compact", tmp_path / "cache", "--below", 1)
    after = open_again(cache.storage)
    array = zarr.open_group(tmp_path / "cache", mode="r")[f"latents/{VIDEOS}"]
    for n, sample in enumerate(after):
        if sample["bucket"] != VIDEOS:
            continue
        place, position = after._locate(n)
        shard = after._places["shard"][place]
        at = shard * after.manifest.shard_clips + after.rows(VIDEOS, shard).chunks[position].row
        np.testing.assert_array_equal(
            np.asarray(array[at]).view(np.uint16), after.stored(n).view(torch.uint16).numpy()
        )


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    make_fragmented(tmp_path)
    before = read_files(tmp_path / "cache")
    status, printed = run_inline("compact", tmp_path / "cache", "--below", 1, "--dry-run")
    assert (status, read_files(tmp_path / "cache")) == (0, before)
    assert printed.splitlines()[1].split() == [VIDEOS, "5", "2", "7", "3"]
    assert "Dry run: nothing was written." in printed


@pytest.mark.slow
def test_failed_clips_are_dropped_where_that_is_asked_for(tmp_path: Path) -> None:
    cache = make_fragmented(tmp_path)
    clips = clips_of(open_again(cache.storage))
    assert run_inline("compact", tmp_path / "cache", "--below", 1, "--drop-failed")[0] == 0
    after = open_again(cache.storage)
    assert clips_of(after) == clips
    assert {key for key, _ in failed_of(after)} == {"v9#0"}, "which is a source that gave no clip"
    assert after.manifest.num_clips == len(clips)
    assert not verify(cache.storage).problems


@pytest.mark.slow
def test_a_training_run_goes_on_in_its_own_order(tmp_path: Path) -> None:
    cache = make_fragmented(tmp_path)

    def loader() -> LatentLoader:
        return LatentLoader(cache.storage.url, batch_size=2, seed=3)

    def keys(batches: Any) -> list[list[str]]:
        return [batch["key"] for batch in batches]

    whole = keys(loader())
    first = loader()
    batches = iter(first)
    begun = [next(batches)["key"]]
    state = first.state_dict()
    assert run_inline("compact", tmp_path / "cache", "--below", 1)[0] == 0
    assert begun + keys(batches) == whole
    later = loader()
    later.load_state_dict(state)
    assert begun + keys(later) == whole


@pytest.mark.slow
def test_old_shards_are_cleaned_once_they_were_replaced_long_ago(tmp_path: Path) -> None:
    cache = make_fragmented(tmp_path)
    clips = clips_of(open_again(cache.storage))
    run_inline("compact", tmp_path / "cache", "--below", 1)
    assert "Nothing to remove" in run_inline("clean", tmp_path / "cache", "--yes")[1]
    status, printed = run_inline("clean", tmp_path / "cache", "--yes", "--retired-days", 0)
    assert (status, printed.count("of a retired shard")) == (0, 10)
    assert clips_of(open_again(cache.storage)) == clips
    assert not verify(cache.storage).problems
    assert reopened(cache).missing_shards() == []


@pytest.mark.slow
def test_a_shard_whose_old_rows_are_damaged_waits_for_their_repair(tmp_path: Path) -> None:
    cache = make_fragmented(tmp_path)
    clips = clips_of(open_again(cache.storage))
    path = tmp_path / "cache" / get_format("zarr").path(cache.manifest.layouts()[VIDEOS], 3)
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(bytes(data))
    status, printed = run_inline("compact", tmp_path / "cache", "--below", 1)
    assert status == 1
    assert "1 shards cannot be copied, such as" in printed
    assert "--repair; then encode them, and copy the others: latentcache resume" in printed
    planned = reopened(cache)
    (missing,) = planned.missing_shards()
    keys = open_again(cache.storage).keys()
    assert sorted(keys) == sorted(clips), "the old rows still count"
    assert progress.copy_missing(planned, [missing]) == [], "encoding might lose the sound rows"
    status, printed = run_inline("resume", tmp_path / "cache")
    assert status == 1
    assert "1 shards wait for damaged clips that they are copied from" in printed
    assert "another run" not in printed
    # The damaged row is retired: the others are copied, and it is planned again.
    assert run_inline("verify", tmp_path / "cache", "--repair")[0] == 3
    assert run_inline("compact", tmp_path / "cache", "--below", 1)[0] == 0
    after = clips_of(open_again(cache.storage))
    assert len(after) == len(clips) - 1
    assert all(clips[key] == clip for key, clip in after.items())
    assert missing not in reopened(cache).missing_shards()


@pytest.mark.parametrize("below", ["0", "1.5", "-1"])
def test_a_part_that_makes_no_sense_is_refused(below: str, tmp_path: Path) -> None:
    status, printed = run_inline("compact", tmp_path, f"--below={below}")
    assert status == 2
    assert "--below is a part of a full shard" in printed


@pytest.mark.slow
def test_shards_that_are_not_encoded_yet_stay_planned(tmp_path: Path) -> None:
    cache = make_fragmented(tmp_path)
    for name in (f"samples/{VIDEOS}/000000.parquet", f"latents/{VIDEOS}/c/0/0/0/0/0"):
        (tmp_path / "cache" / name).unlink()
    assert run_inline("compact", tmp_path / "cache", "--below", 1)[0] == 0
    assert reopened(cache).missing_shards() == [ShardId(VIDEOS, 0)]


@pytest.mark.slow
def test_batches_have_the_kept_columns_of_all_their_shards(tmp_path: Path) -> None:
    """Shards that have kept other columns are read in any order, and give the same batch."""
    cache = make_fragmented(tmp_path)
    wanted = {"v8#0": 0}
    for batch in LatentLoader(cache.storage.url, batch_size=6, num_threads=4):
        if batch["bucket"] == VIDEOS:
            found = dict(zip(batch["key"], batch["extra"], strict=True))
            assert found == {key: wanted.get(key) for key in found}
            assert len(found) == 6
