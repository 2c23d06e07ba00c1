"""Runs whose bits differ, as on GPUs of two kinds: one sound cache, of which every clip is one run's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import latentcache
from latentcache.core.records import ClipResult, ShardId
from latentcache.format.commit import commit_shard
from latentcache.format.paths import INDEX
from latentcache.format.shards import get_format
from latentcache.format.snapshot import read_index
from latentcache.inspecting.verify import verify
from latentcache.running.driver import Run
from latentcache.storage.folder import Storage
from tests.tools.caches import (
    finish,
    make_config,
    make_corpus,
    objects_in,
    read_files,
    samples_of,
)
from tests.tools.planned import planned_from
from tests.tools.proxy import serve_proxy
from tests.tools.s3 import new_bucket, s3_server_fixture  # noqa: F401 fixture
from tests.tools.synthetic import random_sample

pytestmark = pytest.mark.slow

ROUNDS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("noisy") / "corpus", 6, frames=41)


@pytest.fixture(params=["zarr", pytest.param("parquet", marks=pytest.mark.long)])
def shard_format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def noisy_config(
    folder: Path, corpus: Path, name: str, shard_format: str, url: str = "", **options: object
) -> Path:
    url = url or str(folder / name)
    cache = {"url": url, "format": shard_format, **options}
    (folder / f"{name}.d").mkdir()
    encoder = {"kind": "tests.tools.encoders.noisy"}
    return make_config(folder / f"{name}.d", corpus, url, cache=cache, encoder=encoder)


def test_two_runs_whose_bits_differ_make_one_sound_cache(
    corpus: Path, shard_format: str, tmp_path: Path
) -> None:
    """As on GPUs of two kinds: who comes second adopts what is there, and mixes nothing."""
    cache = tmp_path / "cache"
    config = noisy_config(tmp_path, corpus, "cache", shard_format)
    finish(("precompute", config), ("precompute", config))
    findings = verify(Storage(str(cache)))
    assert not findings.problems
    assert not findings.notes
    found = samples_of(cache)
    table = latentcache.open_cache(str(cache)).table(["key", "status"]).to_pylist()
    keys = [row["key"] for row in table if row["status"] == "ok"]
    assert sorted(keys) == sorted(found)
    # A third run, alone, has other bits: the encoder is as noisy as it should be.
    alone = noisy_config(tmp_path, corpus, "alone", shard_format)
    finish(("precompute", alone))
    assert all(data != found[key] for key, data in samples_of(tmp_path / "alone").items())


def test_who_comes_second_throws_its_own_bits_away(
    corpus: Path, shard_format: str, tmp_path: Path
) -> None:
    """Of every shard: object, sample table and report are those of the first."""
    prepared = planned_from(noisy_config(tmp_path, corpus, "cache", shard_format))
    list(Run(prepared, prepared.missing_shards()).events())
    before = read_files(tmp_path / "cache")
    manifest, published = prepared.manifest, read_index(prepared.storage).to_pylist()
    rng = np.random.default_rng(0)
    for row in published:
        shard = prepared.plan.shard(ShardId(row["bucket"], row["shard"]))
        layout = manifest.layouts()[row["bucket"]]
        rows = [random_sample(layout, rng) for _ in shard.clips]
        results = [ClipResult(start_s=0.0)] * len(shard.clips)
        report = commit_shard(
            prepared.storage,
            get_format(manifest.format),
            layout,
            shard,
            rows,
            results,
            manifest.fingerprint,
        )
        assert report.committed_before
        assert {name: getattr(report, name) for name in row} == row
    assert read_files(tmp_path / "cache") == before
    assert not verify(prepared.storage).problems


@pytest.mark.long
def test_an_object_whose_run_was_stopped_before_its_table_keeps_its_bits(
    corpus: Path, shard_format: str, tmp_path: Path
) -> None:
    """The run that goes on has other bits: it writes the table of what is there, and encodes nothing."""
    cache = tmp_path / "cache"
    finish(("precompute", noisy_config(tmp_path, corpus, "cache", shard_format)))
    before = objects_in(cache)
    for table in cache.glob("samples/*/*.parquet"):
        table.unlink()
    (cache / INDEX).unlink()
    (out,) = finish(("resume", cache))
    assert "shards   0 written" in out
    assert objects_in(cache) == before
    assert not verify(Storage(str(cache))).problems


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_three_runs_at_once_on_slow_object_storage(
    corpus: Path, s3_server: str, tmp_path: Path
) -> None:
    """Twenty rounds. Every clip once, and nothing left for a fourth run."""
    with serve_proxy(s3_server) as proxy:
        proxy.latency_s = 0.02
        for number in range(ROUNDS):
            s3 = new_bucket(proxy.url)
            url, name = f"{s3.url}/cache", f"round{number}"
            shard_format = ("zarr", "parquet")[number % 2]
            config = noisy_config(
                tmp_path, corpus, name, shard_format, url, storage_options=s3.options
            )
            finish(*[("precompute", config)] * 3)
            storage = Storage(url, s3.options)
            findings = verify(storage)
            assert not findings.problems, findings.problems
            found = samples_of(url, s3.options)
            table = latentcache.open_cache(url, s3.options).table(["key", "status"]).to_pylist()
            assert sorted(found) == sorted(r["key"] for r in table if r["status"] == "ok")
            options = [f"cache.storage_options.{k}={json.dumps(v)}" for k, v in s3.options.items()]
            finish(("resume", url, *options))
            assert samples_of(url, s3.options) == found
