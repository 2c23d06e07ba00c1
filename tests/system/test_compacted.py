"""Every job on a compacted cache: it is a cache as any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import latentcache
from latentcache.format.shards import get_format
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config, make_corpus, run_inline, run_job
from tests.tools.copied import clips_of
from tests.tools.fault_lab import KeptPool, quick_runs
from tests.tools.faulty import FAULTS, Faults
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.slow
OK, SOME_FAILED = 0, 3


@pytest.fixture(scope="module", name="pool", autouse=True)
def pool_fixture() -> Iterator[KeptPool]:
    FAULTS["default"] = Faults()
    with quick_runs() as pool:
        yield pool


@pytest.fixture(scope="module", name="made")
def made_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that grew twice, with other captions since, and its cache, compacted."""
    folder = tmp_path_factory.mktemp("made")
    corpus = make_corpus(folder / "corpus", 2)
    config = make_config(folder, corpus, str(folder / "cache"))
    assert run_inline("precompute", config)[0] == SOME_FAILED
    for number in (2, 3):
        write_video(corpus / f"v{number}.mp4", moving_pattern(5, 64, 96, seed=number))
        assert run_inline("precompute", config)[0] == SOME_FAILED
    (corpus / "v1.txt").write_text("another caption")
    assert run_inline("precompute", config)[0] == SOME_FAILED
    status, printed = run_inline("compact", folder / "cache")
    assert (status, "copied   1 of 1 shards" in printed) == (OK, True), printed
    return folder


@pytest.fixture(name="folder")
def folder_fixture(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed; its configuration names the copy."""
    shutil.copytree(made, tmp_path / "copy")
    make_config(tmp_path / "copy", tmp_path / "copy/corpus", str(tmp_path / "copy/cache"))
    return tmp_path / "copy"


def clips(folder: Path) -> dict[str, Any]:
    return clips_of(latentcache.open_cache(str(folder / "cache")))


def test_status_says_that_it_is_finished(made: Path) -> None:
    status, printed = run_inline("status", made / "cache", "--json")
    found = json.loads(printed)
    assert status == OK
    assert (found["state"], found["clips_ok"], found["clips_failed"]) == ("finished", 7, 0)


def test_verify_finds_it_sound_and_encodes_the_same_bits(made: Path) -> None:
    status, printed = run_inline("verify", made / "cache", "--sample", 4)
    assert status == OK, printed
    assert "4 of 4 clips encoded again: 4 equal bit for bit" in printed


def test_growing_knows_its_sources_and_adds_new_ones(folder: Path) -> None:
    before = clips(folder)
    write_video(folder / "corpus/new.mp4", moving_pattern(5, 64, 96, seed=50))
    (folder / "corpus/v0.txt").write_text("v0 has another caption, too")
    status, printed = run_inline("precompute", folder / "config.yaml")
    assert status == SOME_FAILED
    assert "new      1 sources: new.mp4" in printed
    assert "captions 2 clips with other captions" in printed
    after = clips(folder)
    assert after.keys() - before.keys() == {"new.mp4#0"}
    captions = {key: clip[0].get("caption") for key, clip in after.items()}
    assert captions["v0.mp4#1"] == "'v0 has another caption, too'"
    assert captions["v1.mp4#0"] == "'another caption'"


def test_a_changed_source_retires_its_copied_rows(folder: Path) -> None:
    before = clips(folder)
    write_video(folder / "corpus/v2.mp4", moving_pattern(5, 64, 96, seed=60))
    assert run_inline("precompute", folder / "config.yaml")[0] == SOME_FAILED
    after = clips(folder)
    assert {key for key in before if before[key] != after[key]} == {"v2.mp4#0"}


def test_damaged_copies_are_repaired(folder: Path) -> None:
    before = clips(folder)
    cache = latentcache.open_cache(str(folder / "cache"))
    shard = max(cache.committed)
    path = get_format("zarr").path(cache.manifest.layouts()[shard.bucket], shard.number)
    data = bytearray((folder / "cache" / path).read_bytes())
    data[100] ^= 1
    (folder / "cache" / path).write_bytes(bytes(data))
    assert run_inline("verify", folder / "cache", "--repair")[0] == SOME_FAILED
    assert run_inline("resume", folder / "cache")[0] == SOME_FAILED
    assert clips(folder) == before


def test_failed_clips_are_tried_again(folder: Path, pool: KeptPool) -> None:
    write_video(folder / "corpus/late.mp4", moving_pattern(5, 64, 96, seed=70))
    pool.broken = {"late.mp4"}
    assert run_inline("precompute", folder / "config.yaml")[0] == SOME_FAILED
    pool.broken = set()
    write_video(folder / "corpus/later.mp4", moving_pattern(5, 64, 96, seed=71))
    assert run_inline("precompute", folder / "config.yaml")[0] == SOME_FAILED
    before = clips(folder)
    status, printed = run_inline("compact", folder / "cache", "--below", 1)
    assert (status, "copied   1 of 1 shards" in printed) == (OK, True), printed
    assert "1 failed" in run_inline("status", folder / "cache")[1]
    assert run_inline("resume", folder / "cache", "--retry-failed")[0] == SOME_FAILED
    after = clips(folder)
    assert after.keys() - before.keys() == {"late.mp4#0"}
    assert {key: after[key] for key in before} == before


def test_a_lost_copy_is_encoded_where_its_old_rows_are_gone(folder: Path) -> None:
    before = clips(folder)
    assert run_inline("clean", folder / "cache", "--yes", "--retired-days", 0)[0] == OK
    cache = latentcache.open_cache(str(folder / "cache"))
    shard = max(cache.committed)
    storage = Storage(str(folder / "cache"))
    for path in (
        get_format("zarr").path(cache.manifest.layouts()[shard.bucket], shard.number),
        f"samples/{shard.bucket}/{shard.number:06d}.parquet",
    ):
        storage.delete(path)
    status, printed = run_inline("resume", folder / "cache")
    assert status == SOME_FAILED, printed
    assert f"shard {shard.name} cannot be copied" in printed
    assert clips(folder) == before


@pytest.mark.long
def test_a_report_shows_it(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "report.html"
    run_job("report", made / "cache", "-o", page, "--clips", 2)
    assert "5x64x96" in page.read_text()
