"""Caches in chunks of frames: planned, compacted, copied, merged and verified like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

import latentcache
from latentcache.config.files import load_config
from latentcache.errors import ConfigError, RecipeMismatchError
from latentcache.format.manifest import read_manifest
from latentcache.format.shards import get_format
from latentcache.inspecting.verify import verify
from latentcache.storage.folder import Storage
from tests.tools.caches import bits_of, make_config, make_corpus, run_inline
from tests.tools.copied import VIDEOS, clips_of, failed_of, make_fragmented, open_again
from tests.tools.planned import make_cache, plan_cache


def run(job: str, *args: object, status: int = 0) -> None:
    found, printed = run_inline(job, *args)
    assert found == status, printed


def opened(path: Path) -> latentcache.Cache:
    return latentcache.open_cache(str(path))


def check(path: Path, chunk_frames: int | None) -> None:
    """The cache is sound, and a plain Zarr reader sees its chunks and its values."""
    findings = verify(Storage(str(path)))
    assert (findings.problems, findings.notes) == ([], [])
    cache = opened(path)
    assert cache.manifest.chunk_frames == chunk_frames
    array = zarr.open_group(path, mode="r")[f"latents/{VIDEOS}"]
    assert array.chunks[2] == (chunk_frames or 2)
    for shard in [shard for shard in cache.committed if shard.bucket == VIDEOS]:
        rows = cache.rows(*shard)
        for position, chunk in enumerate(rows.chunks):
            key = rows.column("key", [position])[0]
            plain = np.asarray(array[shard.number * cache.manifest.shard_clips + chunk.row])
            assert plain.tobytes() == bits_of(cache)[key]


@pytest.mark.slow
def test_compacting_takes_chunks_along_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_fragmented(tmp_path, chunk_frames=1)
    before, failed = clips_of(open_again(cache.storage)), failed_of(open_again(cache.storage))
    for name in ("encode_shard", "decode", "read"):
        monkeypatch.setattr(type(get_format("zarr")), name, None)  # nothing is decompressed
    run("compact", tmp_path / "cache", "--below", 1)
    monkeypatch.undo()
    assert clips_of(open_again(cache.storage)) == before
    assert failed_of(open_again(cache.storage)) == failed
    check(tmp_path / "cache", 1)


@pytest.mark.slow
def test_copies_keep_the_chunks_and_other_formats_have_none(tmp_path: Path) -> None:
    make_fragmented(tmp_path, chunk_frames=1)
    run("copy", tmp_path / "cache", tmp_path / "copy")
    check(tmp_path / "copy", 1)
    assert clips_of(opened(tmp_path / "copy")) == clips_of(opened(tmp_path / "cache"))
    run("copy", tmp_path / "cache", tmp_path / "parquet", "--format", "parquet")
    manifest = read_manifest(Storage(str(tmp_path / "parquet")))
    assert (manifest.chunk_frames, manifest.config["cache"]["chunk_frames"]) == (None, None)
    assert not verify(Storage(str(tmp_path / "parquet"))).problems
    assert bits_of(opened(tmp_path / "parquet")) == bits_of(opened(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, None])
def test_a_merge_has_the_chunks_of_the_first_cache(first: int | None, tmp_path: Path) -> None:
    halves = []
    for name, chunk_frames, where in (
        ("first", first, "source <= 'v4'"),
        ("last", 1 if first is None else None, "source > 'v4'"),
    ):
        make_cache(tmp_path, name, chunk_frames=chunk_frames)
        halves.append(tmp_path / f"{name}-half")
        run("copy", tmp_path / name, halves[-1], "--where", where)
    run("merge", *halves, "-o", tmp_path / "merged")
    check(tmp_path / "merged", first)
    assert bits_of(opened(tmp_path / "merged")) == bits_of(opened(tmp_path / "first"))


def test_a_cache_goes_on_only_in_chunks_of_the_same_frames(tmp_path: Path) -> None:
    plan_cache(tmp_path, str(tmp_path / "cache"), chunk_frames=1)
    with pytest.raises(RecipeMismatchError, match=r"cache\.chunk_frames: 1 in the cache, 2 now"):
        plan_cache(tmp_path, str(tmp_path / "cache"), chunk_frames=2)
    found, printed = run_inline("resume", tmp_path / "cache", "cache.chunk_frames=2")
    assert found != 0
    assert "cache.chunk_frames cannot be changed" in printed


def test_parquet_has_no_chunks_of_frames(tmp_path: Path) -> None:
    cache = {"format": "parquet", "chunk_frames": 4}
    config = make_config(tmp_path, tmp_path, str(tmp_path / "cache"), cache=cache)
    with pytest.raises(ConfigError, match="`chunk_frames` is for `format: zarr`"):
        load_config(str(config))


@pytest.mark.long
@pytest.mark.slow
def test_a_run_in_chunks_gives_the_latents_of_one_without(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    for name, changes in (("chunked", {"chunk_frames": 1}), ("whole", {})):
        url = str(tmp_path / name)
        config = make_config(tmp_path, corpus, url, cache={"url": url, **changes})
        run("precompute", config, status=3)  # two sources are none
    chunked, whole = opened(tmp_path / "chunked"), opened(tmp_path / "whole")
    assert chunked.manifest.fingerprint == whole.manifest.fingerprint
    assert bits_of(chunked) == bits_of(whole)
    check(tmp_path / "chunked", 1)
    key = chunked.keys()[-1]
    assert (chunked.decode(key) == whole.decode(key)).all()
