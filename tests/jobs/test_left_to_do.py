"""Dry runs on caches that are not finished say what the real run would do first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tools.caches import make_config, make_corpus, read_files, run_inline

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]


def lose_shards(cache: Path, number: int) -> None:
    """Leave a cache as a run leaves it that was stopped before its last shards."""
    tables = sorted(cache.glob("samples/*/*.parquet"))[-number:]
    assert len(tables) == number
    for table in tables:
        table.unlink()
        bucket, shard = table.parent.name, str(int(table.stem))
        (found,) = [
            path
            for path in (cache / "latents" / bucket / "c").rglob("*")
            if path.is_file()
            and path.relative_to(cache / "latents" / bucket / "c").parts[0] == shard
        ]
        found.unlink()


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path) -> Path:
    make_config(tmp_path, make_corpus(tmp_path / "corpus"), str(tmp_path / "cache"))
    run_inline("precompute", tmp_path / "config.yaml")
    return tmp_path / "cache"


def dry(cache: Path, job: str, *args: object) -> str:
    """Return what a dry run says, which leaves the cache as it is."""
    before = read_files(cache)
    status, printed = run_inline(job, *args, "--dry-run")
    assert (status, read_files(cache)) == (0, before), printed
    return printed


def test_precompute_says_what_is_still_to_be_encoded(cache: Path) -> None:
    config = cache.parent / "config.yaml"
    assert "left " not in dry(cache, "precompute", config)
    lose_shards(cache, 2)
    (line,) = re.findall("left .*", dry(cache, "precompute", config))
    assert re.fullmatch(r"left     6 clips in 2 shards of before are still to be encoded", line)
    assert line in run_inline("precompute", config)[1]
    assert "left " not in dry(cache, "precompute", config)


def test_copy_and_compact_say_what_is_still_to_be_copied(cache: Path) -> None:
    copy = cache.parent / "copy"
    run_inline("copy", cache, copy)
    lose_shards(copy, 2)
    line = "left     6 clips in 2 shards of before are still to be copied"
    again = dry(copy, "copy", cache, copy)
    assert line in again
    compact = dry(copy, "compact", copy)
    assert line in compact
    assert "is looked at again" in compact
    assert line in run_inline("compact", copy)[1]
    assert "left " not in dry(copy, "compact", copy)
    assert "left " not in dry(copy, "copy", cache, copy)
