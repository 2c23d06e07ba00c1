"""Fields are added to a cache that is there, finished, updated and dropped; the rest of it stays."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tensorstore
import zarr

import latentcache
from latentcache.core.dtypes import as_numpy
from latentcache.format.fields.manifest import field_names
from latentcache.format.fields.paths import FIELDS
from latentcache.format.manifest import read_manifest
from latentcache.planning.create import repair_cache
from latentcache.planning.planned import PlannedCache
from tests.tools.caches import read_files, run_inline
from tests.tools.encoders.hashed_text import states
from tests.tools.fields import (
    CAPTIONS,
    add,
    cache_of,
    encoded,
    grow,
    grow_by,
    padded,
    relabel,
    sources_of,
    text_field,
    texts_of,
)
from tests.tools.planned import FAILED, fill_cache

pytestmark = pytest.mark.usefixtures("kept_pools")


def outside(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if not name.startswith(f"{FIELDS}/")}


@pytest.mark.slow
def test_a_field_is_added_beside_what_is_there(cache: PlannedCache, counted: Path) -> None:
    url = cache.storage.url
    before = read_files(Path(url))
    add(cache, umt5=text_field())
    after = read_files(Path(url))
    assert outside(after) == before
    assert encoded(counted) == sorted(set(CAPTIONS))
    ok = {f"v{n}#0": CAPTIONS[n] for n in range(10) if n not in FAILED}
    assert texts_of(url) == ok


@pytest.mark.slow
def test_what_is_done_is_not_done_again(cache: PlannedCache, counted: Path) -> None:
    add(cache, umt5=text_field())
    before = read_files(Path(cache.storage.url))
    encoded(counted)
    add(cache, umt5=text_field())
    run_inline("resume", cache.storage.url)
    assert encoded(counted) == []
    assert read_files(Path(cache.storage.url)) == before


@pytest.mark.slow
def test_an_array_beside_the_states_comes_with_them(cache: PlannedCache) -> None:
    add(cache, clip=text_field(pooled=True))
    sample = latentcache.open_cache(cache.storage.url)[0]
    expected = states(sample["caption"], 32).mean(axis=0)
    np.testing.assert_allclose(sample["clip.pooled"].float().numpy(), expected, rtol=0.01)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [8, 128])
def test_padding_is_not_stored_and_comes_back(tmp_path: Path, side: str, length: int) -> None:
    cache = cache_of(tmp_path, ["", "short", "x" * 100])
    add(cache, umt5=text_field(length=length, side=side, padding="mask", missing="empty"))
    opened = latentcache.open_cache(cache.storage.url)
    for n in range(len(opened)):
        expected = padded(opened[n]["caption"] or "", length, side=side)
        np.testing.assert_array_equal(as_numpy(opened[n]["umt5"]), expected)
        assert opened[n]["umt5_tokens"] == min(length, len(opened[n]["caption"] or "") + 1)
    table = pq.read_table(next(Path(cache.storage.url).glob("fields/umt5/samples/*/*/*.parquet")))
    lost = [max(0, len(text) + 1 - length) for text in ("", "short", "x" * 100)]
    assert table["lost_tokens"].to_pylist() == lost


def test_other_readers_see_padded_arrays(tmp_path: Path) -> None:
    captions = ["one", "two words", None, "x" * 300]
    cache = cache_of(tmp_path, captions, shard_clips=4)
    add(cache, status=3, umt5=text_field(length=192))
    expected = np.stack([padded(c, 192) if c else np.zeros_like(padded("", 192)) for c in captions])
    array = "fields/umt5/000001/5x64x96"
    zarred = zarr.open_array(Path(cache.storage.url) / array, mode="r")
    np.testing.assert_array_equal(zarred[:], expected)
    store = {"driver": "file", "path": str(Path(cache.storage.url) / array)}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": store}).result()
    np.testing.assert_array_equal(opened.read().result(), expected)


@pytest.mark.slow
def test_other_readers_see_tables_and_parquet_shards(tmp_path: Path) -> None:
    captions = ["one", "two words", "x" * 300]
    cache = cache_of(tmp_path, captions, format="parquet")
    add(cache, umt5=text_field(length=64))
    folder = Path(cache.storage.url) / "fields/umt5"
    table = pq.read_table(folder / "000001/5x64x96").sort_by("row")
    rows = [np.frombuffer(b"".join(row), "<u2") for row in table["latents"].to_pylist()]
    expected = [padded(caption, 64).view("<u2").reshape(-1) for caption in captions]
    np.testing.assert_array_equal(np.stack(rows), np.stack(expected))
    tokens = [min(64, len(caption) + 1) for caption in captions]
    assert pq.read_table(folder / "samples/000001").sort_by("row")["tokens"].to_pylist() == tokens
    duckdb = pytest.importorskip("duckdb")
    query = f"SELECT tokens, lost_tokens FROM '{folder}/samples/000001/*/*.parquet' ORDER BY row"
    assert duckdb.sql(query).fetchall() == [
        (n, max(0, len(c) - 63)) for n, c in zip(tokens, captions, strict=True)
    ]


@pytest.mark.slow
def test_equal_texts_share_their_bytes(tmp_path: Path) -> None:
    once, often = (
        cache_of(tmp_path / name, captions, shard_clips=8)
        for name, captions in (("once", ["a" * 30]), ("often", ["a" * 30] * 8))
        if not (tmp_path / name).mkdir()
    )
    sizes = []
    for cache in (once, often):
        add(cache, umt5=text_field(length=64))
        table = pq.read_table(next(Path(cache.storage.url).glob("fields/umt5/samples/*/*/*")))
        sizes.append(pc.max(pc.add(table["offset"], table["length"])).as_py())
    assert sizes[0] == sizes[1]


@pytest.mark.slow
def test_only_texts_that_changed_are_encoded_again(cache: PlannedCache, counted: Path) -> None:
    add(cache, umt5=text_field())
    before = read_files(Path(cache.storage.url))
    encoded(counted)
    changed = {"v0#0": "another", "v7#0": "one more"}
    relabel(cache, changed)
    with pytest.raises(KeyError, match="captions changed since"):
        latentcache.open_cache(cache.storage.url).sample("v0#0")["umt5"]
    add(cache, "--update", umt5=text_field())
    assert encoded(counted) == sorted(changed.values())
    assert texts_of(cache.storage.url)["v0#0"] == "another"
    after = read_files(Path(cache.storage.url))
    replaced = {name for name in before if after[name] != before[name]}
    assert replaced == {"index.parquet", "fields/umt5/index.parquet"}


@pytest.mark.slow
def test_what_a_cache_has_grown_by_is_encoded_and_nothing_else(
    cache: PlannedCache, counted: Path
) -> None:
    add(cache, umt5=text_field())
    encoded(counted)
    grow(cache, ["new one", "new two"])
    run_inline("resume", cache.storage.url)
    assert encoded(counted) == ["new one", "new two"]
    assert {"new one", "new two"} <= set(texts_of(cache.storage.url).values())


def test_clips_that_were_replaced_are_no_failures_of_a_field_that_is_added_later(
    tmp_path: Path, counted: Path
) -> None:
    cache = cache_of(tmp_path, CAPTIONS[:6])
    first = cache.planned_shards()[0]
    repair_cache(cache.storage, {first: [0, 2]})
    cache = replace(cache, manifest=read_manifest(cache.storage))
    fill_cache(cache, seed=1)
    printed = add(cache, "run.max_failed_fraction=0", umt5=text_field())
    assert "field    umt5: 6 clips ok, 0 failed" in printed
    assert "failed:" not in printed
    assert len(encoded(counted)) == 6
    assert run_inline("verify", cache.storage.url)[0] == 0


def test_a_shard_is_encoded_before_the_next_is_begun(tmp_path: Path, counted: Path) -> None:
    captions = [f"{n}" for n in range(12)]
    cache = cache_of(tmp_path, captions, shard_clips=4)
    add(cache, umt5=text_field(takes_s=0.002))
    _, *texts = counted.read_text().splitlines()
    shards = [shard.number for shard in cache.planned_shards()]
    tables = [pq.read_table(path) for path in sample_tables(cache)]
    shard_of = {t["key"][n].as_py(): t["shard"][n].as_py() for t in tables for n in range(len(t))}
    order = [shard_of[f"v{text}#0"] for text in texts]
    assert [number for number, _ in itertools.groupby(order)] == sorted(shards, key=order.index)


def sample_tables(cache: PlannedCache) -> list[Path]:
    return sorted(Path(cache.storage.url).glob("fields/umt5/samples/*/*/*.parquet"))


def test_a_field_that_holds_fewer_texts_than_clips_have_now_says_so(tmp_path: Path) -> None:
    """The number is fixed when a field is made, as its arrays have an axis of it."""
    cache = cache_of(tmp_path, [None] * 2, texts=[["a", "b"], ["c"]], shard_clips=2)
    many = text_field(column="texts", calm=True)
    printed = add(cache, many=many)
    assert "2 texts per clip at most" in printed
    assert "warning" not in printed
    new = sources_of([None], [["d", "e", "f"]], name="g")
    cache = grow_by(cache, new)
    printed = add(cache, "--update", many=many)
    assert "2 texts per clip at most" in printed
    assert "clips have up to 3 texts now. The field many was made for 2, so" in printed


def test_a_line_on_a_field_names_the_axes_that_follow_from_the_clips(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS[:2], clip=(5, 96, 96))
    fields = {
        "half": {"kind": "visual", "of": "clip", "scale": 0.5},
        "more": {"kind": "visual", "of": "clip", "scale": 0.667},
        "first": {"kind": "visual", "of": "first"},
        "whole": {"kind": "raw", "of": "clip"},
        "umt5": text_field(pooled=True),
    }
    printed = add(cache, "--dry-run", **fields)
    lines = re.findall(r"^field    (.*\])", printed, re.MULTILINE)
    assert lines == [
        "first: [16, 1, h, w]",
        "half: [16, t, h/2, w/2]",
        "more: [16, t, 2h/3, 2w/3]",
        "umt5: [32, 8]",
        "umt5.pooled: [8]",
        "whole: [T, H, W, 3]",
    ]


def test_a_field_of_another_recipe_is_refused(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field())
    before = read_files(Path(cache.storage.url))
    printed = add(cache, status=2, umt5=text_field(length=16))
    assert "encoder.length: 32 in the cache, 16 now" in printed
    assert read_files(Path(cache.storage.url)) == before


@pytest.mark.slow
def test_a_dropped_field_leaves_nothing_and_can_be_made_again(cache: PlannedCache) -> None:
    before = read_files(Path(cache.storage.url))
    assert field_names(cache.storage) == []
    add(cache, umt5=text_field())
    assert field_names(cache.storage) == ["umt5"]
    status, printed = run_inline("drop_field", cache.storage.url, "umt5")
    assert (status, "can go" in printed) == (0, True)
    assert run_inline("drop_field", cache.storage.url, "umt5", "--yes")[0] == 0
    assert read_files(Path(cache.storage.url)) == before
    add(cache, umt5=text_field(length=16))
    assert texts_of(cache.storage.url, length=16)


@pytest.mark.slow
def test_a_model_that_expects_another_field_is_told_with_both_numbers(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field())
    latentcache.open_cache(
        cache.storage.url, expect={"fields": {"umt5": {"length": 32, "width": 8}}}
    )
    with pytest.raises(latentcache.CacheError, match="length: 512 expected, 32 in the cache"):
        latentcache.open_cache(cache.storage.url, expect={"fields": {"umt5": {"length": 512}}})
    with pytest.raises(latentcache.ConfigError, match=r"no 'lenght'\. Did you mean 'length'"):
        latentcache.open_cache(cache.storage.url, expect={"fields": {"umt5": {"lenght": 512}}})
    with pytest.raises(latentcache.ConfigError, match=r"no field 'umt'\. Did you mean 'umt5'"):
        latentcache.open_cache(cache.storage.url, expect={"fields": {"umt": {}}})


@pytest.mark.slow
def test_texts_that_changed_are_named_without_update(tmp_path: Path, counted: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    add(cache, umt5=text_field())
    cache = relabel(cache, {"v0#0": "another", "v7#0": "one more"})
    encoded(counted)
    printed = add(cache, umt5=text_field())
    assert "2 clips have other texts than the field umt5 encodes" in printed
    assert encoded(counted) == []


def test_a_field_is_not_named_as_a_column(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    assert "has a column of that name" in add(cache, status=2, texts=text_field())
