"""A corpus that changes: what is new is taken in, nothing that is committed is written or encoded again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

import latentcache
from latentcache.config.files import load_config
from latentcache.format.tables import from_parquet
from latentcache.inspecting.verify import verify
from latentcache.planning.grow import Difference
from latentcache.planning.planner import Hooks, grow_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.storage.folder import Storage
from tests.tools.caches import bits_of, make_config, make_corpus, read_files, run_inline, samples_of
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

SOME_FAILED = 3


@pytest.fixture(params=["zarr", pytest.param("parquet", marks=pytest.mark.long)])
def grown(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A corpus of five videos of two clips, a picture and two bad files; its configuration; its cache."""
    corpus = make_corpus(tmp_path / "corpus", 5)
    cache = tmp_path / "cache"
    config = make_config(
        tmp_path, corpus, str(cache), cache={"url": str(cache), "format": request.param}
    )
    assert run_inline("precompute", config)[0] == SOME_FAILED
    return corpus, config, cache


def fresh(config: Path, folder: Path) -> dict[str, bytes]:
    """What a new cache of the corpus as it is now would hold."""
    url = folder / "fresh"
    assert run_inline("precompute", config, f"cache.url={url}")[0] in (0, SOME_FAILED)
    found = samples_of(url)
    shutil.rmtree(url)
    return found


def assert_nothing_replaced(before: dict[str, bytes], cache: Path) -> None:
    """Every object but the two pointers, the snapshot and the arrays' metadata, is as it was."""
    after = read_files(cache)
    pointers = {name for name in before if name == "index.parquet" or name.endswith("zarr.json")}
    changed = [name for name in before.keys() - pointers if after.get(name) != before[name]]
    assert not changed, changed


def grow(config: Path, *arguments: str) -> str:
    status, printed = run_inline("precompute", config, *arguments)
    assert status in (0, SOME_FAILED), printed
    return printed


def test_the_same_corpus_is_nothing_to_do(grown: tuple[Path, Path, Path]) -> None:
    _, config, cache = grown
    before = read_files(cache)
    printed = grow(config)
    assert "Nothing to encode: all 11 clips are committed." in printed
    assert read_files(cache) == before


def test_new_sources_become_a_generation(grown: tuple[Path, Path, Path], tmp_path: Path) -> None:
    corpus, config, cache = grown
    before, opened = read_files(cache), latentcache.open_cache(str(cache))
    write_video(corpus / "w.mp4", moving_pattern(13, 64, 96, seed=50))
    old = bits_of(opened)
    printed = grow(config)
    assert "new      1 sources: w.mp4" in printed
    assert "same     8 sources; 3 were opened" in printed  # the new one, and two that were rejected
    assert_nothing_replaced(before, cache)
    assert samples_of(cache) == fresh(config, tmp_path)
    assert bits_of(opened) == old
    assert not verify(Storage(str(cache))).problems


def test_a_changed_source_replaces_its_clips(
    grown: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    corpus, config, cache = grown
    before, opened = read_files(cache), latentcache.open_cache(str(cache))
    old = bits_of(opened)
    write_video(corpus / "v1.mp4", moving_pattern(18, 64, 96, seed=51))
    assert "changed  1 sources, whose old clips are retired: v1.mp4" in grow(config)
    assert_nothing_replaced(before, cache)
    now = samples_of(cache)
    assert now == fresh(config, tmp_path)
    assert now["v1.mp4#0"] != old["v1.mp4#0"]
    assert bits_of(opened) == old
    table = latentcache.open_cache(str(cache)).table(["key", "source"])
    assert pc.sum(pc.equal(table["source"], "v1.mp4")).as_py() == 3


def test_a_touched_source_is_the_same(grown: tuple[Path, Path, Path]) -> None:
    corpus, config, cache = grown
    before = read_files(cache)
    (corpus / "v0.mp4").touch()
    printed = grow(config)
    assert "touched  1 sources, whose content is the same: v0.mp4" in printed
    assert "same     8 sources; 3 were opened" in printed
    assert "Nothing to encode" in printed
    assert_nothing_replaced(before, cache)
    printed = grow(config)
    assert "touched  1" not in printed
    assert "same     8 sources; 2 were opened" in printed  # those that were rejected


def test_a_repaired_source_is_taken_in(grown: tuple[Path, Path, Path], tmp_path: Path) -> None:
    corpus, config, cache = grown
    write_video(corpus / "page.mp4", moving_pattern(13, 64, 96, seed=52))
    assert "repaired 1 sources, which were rejected before: page.mp4" in grow(config)
    opened = latentcache.open_cache(str(cache))
    assert bits_of(opened) == fresh(config, tmp_path)
    reasons = opened.table(["source", "reason"]).filter(pc.is_valid(opened.table()["reason"]))
    assert reasons["source"].to_pylist() == ["short.mp4"]


def test_sources_that_are_gone_stay_unless_pruned(grown: tuple[Path, Path, Path]) -> None:
    corpus, config, cache = grown
    before = samples_of(cache)
    (corpus / "v2.mp4").unlink()
    (corpus / "v2.txt").unlink()
    assert "gone     1 sources, which stay; --prune retires them: v2.mp4" in grow(config)
    assert samples_of(cache) == before
    assert "gone     1 sources, which are retired: v2.mp4" in grow(config, "--prune")
    left = {key: data for key, data in before.items() if not key.startswith("v2.mp4")}
    assert samples_of(cache) == left
    assert "gone     " not in grow(config, "--prune")


def test_a_changed_caption_touches_no_latent(grown: tuple[Path, Path, Path]) -> None:
    corpus, config, cache = grown
    before, opened = read_files(cache), latentcache.open_cache(str(cache))
    (corpus / "v3.txt").write_text("another caption")
    (corpus / "v4.txt").unlink()
    assert "captions 4 clips with other captions or kept columns" in grow(config)
    assert_nothing_replaced(before, cache)
    new = set(read_files(cache)) - set(before)
    assert {name.split("/")[0] for name in new} == {"columns", "generations"}
    captions = dict(
        zip(
            *latentcache.open_cache(str(cache)).table(["key", "caption"]).to_pydict().values(),
            strict=True,
        )
    )
    assert captions["v3.mp4#1"] == "another caption"
    assert captions["v4.mp4#0"] is None
    assert captions["v0.mp4#0"] == "pattern number 0"
    assert opened.sample("v3.mp4#1")["caption"] == "pattern number 3"
    assert latentcache.open_cache(str(cache)).sample("v3.mp4#1")["caption"] == "another caption"
    assert "captions" not in grow(config)


def test_a_dry_run_says_the_same_and_writes_nothing(grown: tuple[Path, Path, Path]) -> None:
    corpus, config, cache = grown
    write_video(corpus / "w.mp4", moving_pattern(13, 64, 96, seed=50))
    (corpus / "v3.txt").write_text("another caption")
    before = read_files(cache)
    dry = grow(config, "--dry-run")
    assert read_files(cache) == before
    wet = grow(config)
    said = [line for line in dry.splitlines() if line and "Dry run" not in line]
    assert said == wet.splitlines()[: len(said)] or set(said) <= set(wet.splitlines())


def test_only_another_recipe_is_refused(grown: tuple[Path, Path, Path]) -> None:
    _, config, cache = grown
    before = read_files(cache)
    status, printed = run_inline("precompute", config, "clips.frames=9", "cache.shard_clips=3")
    assert status == 2
    assert "clips.frames: 5 in the cache, 9 now" in printed
    assert read_files(cache) == before


def test_failed_clips_are_tried_again_as_new_rows(
    grown: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    corpus, config, cache = grown
    whole = write_and_break(corpus / "x.mp4")
    grow(config)
    failed = latentcache.open_cache(str(cache)).table()
    assert pc.sum(pc.equal(failed["source"], "x.mp4")).as_py() >= 1
    before, opened = read_files(cache), latentcache.open_cache(str(cache))
    old = bits_of(opened)
    (corpus / "x.mp4").write_bytes(whole)
    status, printed = run_inline("resume", cache, "--retry-failed", "--skip-changed")
    assert status == SOME_FAILED, printed  # page.mp4 and short.mp4 are what they were
    assert_nothing_replaced(before, cache)
    assert samples_of(cache) == fresh(config, tmp_path)
    assert bits_of(opened) == old
    assert not verify(Storage(str(cache))).problems


def write_and_break(path: Path) -> bytes:
    """Write a video whose middle is damaged; returns its whole bytes."""
    write_video(path, moving_pattern(33, 64, 96, seed=60))
    whole = path.read_bytes()
    at = len(whole) // 2
    path.write_bytes(whole[:at] + bytes(200) + whole[at + 200 :])
    return whole


def test_damaged_clips_are_repaired_as_new_rows(
    grown: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, config, cache = grown
    opened = latentcache.open_cache(str(cache))
    old = bits_of(opened)
    table = from_parquet((cache / "samples/5x64x96/000001.parquet").read_bytes())
    paths = [
        p for p in (cache / "latents/5x64x96").rglob("*") if p.is_file() and p.name != "zarr.json"
    ]
    path = sorted(paths, key=str)[1]
    data = bytearray(path.read_bytes())
    data[table["offset"][1].as_py() + 5] ^= 1
    path.write_bytes(bytes(data))
    status, printed = run_inline("verify", cache, "--repair")
    assert status == SOME_FAILED
    assert "repaired 1 clips are planned again" in printed
    key = table["key"][1].as_py()
    left = {k: v for k, v in old.items() if k != key}
    assert samples_of(cache) == left
    run_inline("resume", cache)
    assert samples_of(cache) == old == fresh(config, tmp_path)


def test_a_trainer_goes_on_in_its_order_while_the_cache_grows(
    grown: tuple[Path, Path, Path],
) -> None:
    corpus, config, cache = grown
    expected = keys_of(LatentLoader(latentcache.open_cache(str(cache)), batch_size=2, seed=3))
    loader = LatentLoader(latentcache.open_cache(str(cache)), batch_size=2, seed=3)
    batches = iter(loader)
    got = [list(next(batches)["key"]) for _ in range(3)]
    state = loader.state_dict()
    write_video(corpus / "v1.mp4", moving_pattern(18, 64, 96, seed=51))
    (corpus / "v3.txt").write_text("another caption")
    grow(config)
    assert [*got, *(list(batch["key"]) for batch in batches)] == expected
    again = LatentLoader(latentcache.open_cache(str(cache)), batch_size=2, seed=3)
    again.load_state_dict(state)
    rest = [list(batch["key"]) for batch in again]
    assert [*got, *rest] == expected


def keys_of(loader: LatentLoader) -> list[list[Any]]:
    return [list(batch["key"]) for batch in loader]


def test_plain_readers_read_a_grown_cache(grown: tuple[Path, Path, Path]) -> None:
    corpus, config, cache = grown
    write_video(corpus / "w.mp4", moving_pattern(23, 64, 96, seed=50))
    grow(config)
    opened = latentcache.open_cache(str(cache))
    table = opened.table().filter(pc.equal(opened.table()["status"], "ok"))
    if not (cache / "latents/5x64x96/zarr.json").exists():
        pytest.skip("zarr only")
    import zarr

    array = zarr.open(str(cache), mode="r")["latents/5x64x96"]
    for row in table.filter(pc.equal(table["bucket"], "5x64x96")).to_pylist():
        number = row["shard"] * 3 + row["row"]
        expected = opened.stored(row["key"]).view(torch.uint16).numpy()
        assert np.array_equal(array[number].view("u2"), expected)


def test_of_many_sources_only_new_ones_are_opened(tmp_path: Path) -> None:
    videos = make_corpus(tmp_path / "videos", 3)
    rows = [f"{videos}/v{n % 3}.mp4,key{n},13,24,64,96,caption {n}" for n in range(2010)]
    head, table = "video,key,frames,fps,height,width,caption", tmp_path / "corpus.csv"
    columns = {name: name for name in head.split(",")}
    path = make_config(
        tmp_path, table, str(tmp_path / "cache"), corpus={"source": str(table), "columns": columns}
    )
    config = load_config(str(path))
    found: list[Difference] = []
    hooks = Hooks(on_step=lambda _planned, _step, difference: found.append(difference))
    table.write_text("\n".join([head, *rows[:2000]]))
    grow_cache(config, hooks=hooks)
    before = read_files(tmp_path / "cache")
    changed = [row.replace("caption", "other") if n < 7 else row for n, row in enumerate(rows)]
    table.write_text("\n".join([head, *changed]))
    grown = grow_cache(config, hooks=hooks)
    assert [difference.num_probed for difference in found] == [2000, 10]
    assert len(found[1].new) == 10
    assert found[1].num_relabelled == 14  # two clips of each of seven
    assert grown.manifest.num_clips == 2 * 2010
    assert_nothing_replaced(before, tmp_path / "cache")
