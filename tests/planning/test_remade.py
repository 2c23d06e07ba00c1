"""A cache that is removed and made again with the same recipe, while shards of the old one are there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import latentcache
from tests.tools.caches import make_config, make_corpus, run_inline

pytestmark = pytest.mark.slow
SOME_FAILED = 3


@pytest.fixture
def remade(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a cache, the configuration of another one with the same recipe, and where that is to be."""
    old = make_corpus(tmp_path / "old", 1)
    assert run_inline("precompute", make_config(tmp_path, old, str(tmp_path / "a")))[0] in (0, 3)
    new = make_corpus(tmp_path / "new", 2)
    (new / "v0.mp4").unlink()
    return tmp_path / "a", make_config(tmp_path, new, str(tmp_path / "b")), tmp_path / "b"


def test_shards_of_other_clips_are_not_taken_for_those_of_a_new_cache(
    remade: tuple[Path, Path, Path],
) -> None:
    old, config, url = remade
    shutil.copytree(old, url)
    (url / "cache.json").unlink()
    for part in ("plan", "generations", "logs", "index.parquet"):
        shutil.rmtree(url / part, ignore_errors=True)
        (url / part).unlink(missing_ok=True)
    before = sorted(url.rglob("*"))
    status, printed = run_inline("precompute", config)
    assert status == 2
    assert "is of other clips than this corpus has" in printed
    assert sorted(url.rglob("*")) == before


def test_an_old_run_that_still_commits_stops_the_new_one(remade: tuple[Path, Path, Path]) -> None:
    old, config, url = remade
    for path in (old / "latents").glob("*/c/*/*/*/*/*"):
        place = url / path.relative_to(old)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    status, printed = run_inline("precompute", config)
    assert status == 1
    assert "removed and made again while a run still worked" in printed
    assert "--repair" in printed
    run_inline("verify", url, "--repair")
    assert run_inline("resume", url)[0] in (0, SOME_FAILED)
    assert run_inline("verify", url)[0] == 0
    sources = latentcache.open_cache(str(url)).table()["source"].to_pylist()
    assert "v1.mp4" in sources
    assert "v0.mp4" not in sources
