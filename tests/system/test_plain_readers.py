"""A cache that was grown, recaptioned, retried, repaired and compacted, read without latentcache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import tensorstore
import torch
import zarr

import latentcache
from latentcache.format.tables import from_parquet
from tests.tools.caches import ROOT, make_config, make_corpus, run_inline
from tests.tools.videos import moving_pattern, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

BUCKET = "5x64x96"
SOME_FAILED = 3
#: The queries of the page, in their order: rows that count, and rows with their newest captions.
QUERIES = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "format.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module", params=["zarr", pytest.param("parquet", marks=pytest.mark.long)])
def lived_in(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache after every kind of step."""
    folder = tmp_path_factory.mktemp("plain")
    corpus, cache = make_corpus(folder / "corpus", 5), folder / "cache"
    whole = (corpus / "v4.mp4").read_bytes()
    middle = len(whole) // 2
    (corpus / "v4.mp4").write_bytes(whole[:middle] + bytes(200) + whole[middle + 200 :])
    settings = {"url": str(cache), "format": request.param}
    config = make_config(folder, corpus, str(cache), cache=settings)
    assert run_inline("precompute", config)[0] == SOME_FAILED
    write_video(corpus / "w.mp4", moving_pattern(23, 64, 96, seed=50))
    write_video(corpus / "v1.mp4", moving_pattern(18, 64, 96, seed=51))
    (corpus / "v3.txt").write_text("another caption")
    (corpus / "v2.txt").unlink()
    assert run_inline("precompute", config)[0] == SOME_FAILED
    (corpus / "v4.mp4").write_bytes(whole)
    assert run_inline("resume", cache, "--retry-failed", "--skip-changed")[0] == SOME_FAILED
    flip_a_clip(cache)
    assert run_inline("verify", cache, "--repair")[0] == SOME_FAILED
    assert run_inline("resume", cache)[0] == SOME_FAILED
    assert run_inline("compact", cache)[0] == 0
    steps = latentcache.open_cache(str(cache)).manifest.generations
    assert [step.kind for step in steps] == ["plan", "grow", "retry", "repair", "compact"]
    return cache


def flip_a_clip(cache: Path) -> None:
    files = [path for path in (cache / "latents" / BUCKET).rglob("*") if path.is_file()]
    path = min((file for file in files if file.name != "zarr.json"), key=str)
    rows = from_parquet((cache / "samples" / BUCKET / "000000.parquet").read_bytes()).to_pylist()
    data = bytearray(path.read_bytes())
    data[next(row["offset"] for row in rows if row["status"] == "ok") + 5] ^= 1
    path.write_bytes(bytes(data))


def rows_of(cache: Path) -> dict[str, dict[str, Any]]:
    """What latentcache says: the ok rows by key."""
    table = latentcache.open_cache(str(cache)).table()
    return {row["key"]: row for row in table.to_pylist() if row["status"] == "ok"}


def ask(query: str, cache: Path) -> dict[str, dict[str, Any]]:
    rows = duckdb.sql(query.replace("'cache/", f"'{cache}/")).to_arrow_table().to_pylist()
    found = {row["key"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_duckdb_finds_the_rows_that_count(lived_in: Path) -> None:
    expected, found = rows_of(lived_in), ask(QUERIES[0], lived_in)
    assert found.keys() == expected.keys()
    for key, row in found.items():
        for name in ("bucket", "shard", "row", "offset", "length", "crc32c"):
            assert row[name] == expected[key][name]


def test_duckdb_finds_the_newest_captions(lived_in: Path) -> None:
    expected, found = rows_of(lived_in), ask(QUERIES[1], lived_in)
    assert {key: row["caption"] for key, row in found.items()} == {
        key: row["caption"] for key, row in expected.items()
    }
    assert {"another caption", None} <= {row["caption"] for row in found.values()}


def test_pyarrow_finds_the_rows_that_count(lived_in: Path) -> None:
    samples = pyarrow.dataset.dataset(str(lived_in / "samples"), format="parquet").to_table()
    index = pq.read_table(lived_in / "index.parquet")
    joined = samples.append_column("n", pa.array(range(samples.num_rows))).select(
        ["n", "bucket", "shard", "row", "status", "key"]
    )
    retired = {
        (row["bucket"], row["shard"]): set(row["retired"] or ()) for row in index.to_pylist()
    }
    kept = {
        row["key"]
        for row in joined.to_pylist()
        if row["status"] == "ok"
        and (row["bucket"], row["shard"]) in retired
        and row["row"] not in retired[row["bucket"], row["shard"]]
    }
    assert kept == rows_of(lived_in).keys()


def test_zarr_and_tensorstore_read_the_latents(lived_in: Path) -> None:
    if not (lived_in / "zarr.json").exists():
        pytest.skip("the shards are Parquet files")
    opened = latentcache.open_cache(str(lived_in))
    array = zarr.open_array(str(lived_in / "latents" / BUCKET), mode="r")
    store = tensorstore.open(
        {"driver": "zarr3", "kvstore": f"file://{lived_in}/latents/{BUCKET}/"}
    ).result()
    per_shard = opened.manifest.shard_clips
    wanted = [row for row in rows_of(lived_in).values() if row["bucket"] == BUCKET]
    assert wanted
    for row in wanted:
        number = row["shard"] * per_shard + row["row"]
        expected = opened.stored(row["key"]).view(torch.uint16).numpy()
        assert np.array_equal(np.asarray(array[number]).view("u2"), expected)
        assert np.array_equal(np.asarray(store[number].read().result()).view("u2"), expected)


def test_pyarrow_reads_the_latents_of_parquet_shards(lived_in: Path) -> None:
    if (lived_in / "zarr.json").exists():
        pytest.skip("the shards are of a Zarr array")
    opened = latentcache.open_cache(str(lived_in))
    wanted = [row for row in rows_of(lived_in).values() if row["bucket"] == BUCKET]
    assert wanted
    for row in wanted:
        name = f"{BUCKET}/{row['shard']:06d}.parquet"
        rows = from_parquet((lived_in / "samples" / name).read_bytes()).to_pylist()
        group = [r["row"] for r in rows if r["status"] == "ok"].index(row["row"])
        table = pq.ParquetFile(lived_in / "latents" / name).read_row_group(group)
        assert table["row"].to_pylist() == [row["row"]]
        (found,) = table["latents"]
        expected = opened.stored(row["key"]).view(torch.uint8).numpy().tobytes()
        assert b"".join(found.as_py()) == expected
