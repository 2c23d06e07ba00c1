"""`resume` as a user runs it: after a stop, after failures, and where sources or places changed."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import latentcache
from latentcache.planning import changed_sources
from tests.tools.caches import (
    assert_same_cache,
    committed,
    make_config,
    make_corpus,
    objects_of,
    printed_by,
    read_files,
    run_apart,
    run_inline,
    run_job,
    samples_of,
    start_job,
)
from tests.tools.encoders import slow
from tests.tools.videos import read_with_pyav, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]


def uncommit(cache: Path, pattern: str) -> None:
    """Take shards out of a cache of Zarr arrays: their sample tables, and their objects."""
    for table in [*cache.glob(f"samples/{pattern}.parquet")]:
        table.unlink()
        (cache / f"latents/{table.parent.name}/c/{int(table.stem)}/0/0/0/0").unlink()


def test_resume_encodes_what_is_missing_bit_for_bit(
    corpus: Path, clean: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    run_job("precompute", make_config(tmp_path, corpus, str(cache)), status=3)
    uncommit(cache, "5x64x96/000001")
    (cache / "samples/1x64x96/000000.parquet").unlink()  # its object is there, and is adopted
    before = committed(cache)
    out, _ = run_job("resume", cache, status=3)
    assert "5 shards, 3 committed, 2 to encode" in out
    after = committed(cache)
    assert {name: after[name] for name in before} == before
    assert_same_cache(cache, clean)


def test_retry_failed_plans_failed_clips_again_and_keeps_the_others(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 3)
    cache, hidden = tmp_path / "cache", corpus / "v1.mp4"
    printed_by("precompute", make_config(tmp_path, corpus, str(cache)), status=3)
    whole = samples_of(cache)
    uncommit(cache, "5x64x96/*")
    away = hidden.rename(tmp_path / "away.mp4")
    out = printed_by("resume", cache, "--skip-changed", status=3)
    assert "2 x missing: the file is not there" in out
    assert "latentcache resume" in out
    assert "--retry-failed" in out
    assert len(latentcache.open_cache(str(cache))) == 5
    before = read_files(cache)
    away.rename(hidden)
    out = printed_by("resume", cache, status=3)
    assert "0 to encode" in out
    out = printed_by("resume", cache, "--retry-failed", status=3)
    assert (
        "retry    2 failed clips and 2 rejected sources were looked at; 2 clips are planned" in out
    )
    assert "cache    7 clips ok, 0 failed" in out
    assert samples_of(cache) == whole
    pointers = {"index.parquet", *(path for path in before if path.endswith("zarr.json"))}
    after = read_files(cache)
    assert not [path for path in before.keys() - pointers if after[path] != before[path]]


def test_resume_refuses_sources_that_changed(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    cache = tmp_path / "cache"
    printed_by("precompute", make_config(tmp_path, corpus, str(cache)), status=3)
    uncommit(cache, "5x64x96/000000")
    write_video(corpus / "v0.mp4", read_with_pyav(corpus / "v1.mp4"))
    err = printed_by("resume", cache, status=2)
    assert "1 of 2 source files are not the ones that were planned" in err
    assert "v0.mp4" in err
    assert "--skip-changed" in err


@pytest.mark.long
def test_resume_looks_at_some_sources_of_many_and_decoding_at_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 8)
    cache = tmp_path / "cache"
    printed_by("precompute", make_config(tmp_path, corpus, str(cache)), status=3)
    uncommit(cache, "5x64x96/*")
    seen: list[str] = []
    identify = changed_sources.identify_url

    def spy(url: str, options: Mapping[str, Any]) -> str:
        seen.append(url)
        return identify(url, options)

    monkeypatch.setattr(changed_sources, "identify_url", spy)
    monkeypatch.setattr(changed_sources, "MAX_CHECKED", 4)
    changed = corpus / "v2.mp4"
    write_video(changed, read_with_pyav(corpus / "v1.mp4"))
    status, printed = run_inline("resume", cache)
    assert 0 < len(set(seen)) < 8
    assert str(changed) not in seen
    assert f"{len(set(seen))} of the source files were looked at" in printed
    assert status == 3
    assert "source_changed: the file is not the one that was planned" in printed
    rows = latentcache.open_cache(str(cache)).table().to_pylist()
    assert {r["source"] for r in rows if r["reason"] == "source_changed"} == {"v2.mp4"}


@pytest.mark.long
def test_a_corpus_that_has_moved_is_planned_again_and_nothing_is_lost(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    cache, shard = tmp_path / "cache", "5x64x96/000000"
    config = make_config(tmp_path, corpus, str(cache))
    (corpus / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    printed_by("precompute", config, status=3)
    before = read_files(cache)
    uncommit(cache, shard)
    kept = committed(cache)
    moved = corpus.rename(tmp_path / "moved")
    err = printed_by("resume", cache, status=1)
    assert "with the new corpus.source" in err
    printed_by("precompute", config, f"corpus.source={moved}", status=3)
    assert {name: facts for name, facts in committed(cache).items() if name in kept} == kept
    assert objects_of(read_files(cache)).items() >= objects_of(before).items()
    uncommit(cache, shard)
    assert "1 to encode" in printed_by("resume", cache, status=3)
    printed_by("verify", cache, "--sample", "2")


def test_resume_without_a_cache_says_so(tmp_path: Path) -> None:
    err = printed_by("resume", tmp_path, status=2)
    assert "there is no cache here" in err
    assert "latentcache precompute" in err


@pytest.mark.long
@pytest.mark.parametrize(
    ("runner", "signal_number"),
    [("local", signal.SIGINT), ("ray", signal.SIGTERM)],
)
def test_an_interrupt_says_how_to_resume_and_what_is_committed_stays(
    tmp_path: Path, runner: str, signal_number: signal.Signals
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 12, frames=81)
    cache = tmp_path / "cache"
    config = make_config(
        tmp_path, corpus, str(cache), encoder={"kind": slow.__name__}, run={"runner": runner}
    )
    process = start_job("precompute", config)
    while len(committed(cache)) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "shards were committed and are safe" in err
    assert f"Go on with:  latentcache resume {cache}" in err
    assert "Traceback" not in err
    kept = committed(cache)
    shards = [name for name in kept if "5x64x96" in name]
    assert len(latentcache.open_cache(str(cache))) == 3 * len(shards) + len(kept) - len(shards)
    run_apart("resume", cache, status=3, env={slow.ENCODE_S: "0"})
    assert len(latentcache.open_cache(str(cache))) == 12 * 16 + 1
    assert {name: facts for name, facts in committed(cache).items() if name in kept} == kept
