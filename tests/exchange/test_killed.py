"""Exports and imports that are killed at random moments and run again are those that nothing disturbed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import latentcache
from latentcache.format.checksum import KEY
from tests.tools.caches import read_files
from tests.tools.exchange import make_cache, run, spec_of
from tests.tools.fields import add, text_field
from tests.tools.killed import killed

pytestmark = pytest.mark.long

LAYOUTS = ("musubi", "finetrainers", "fastvideo", "simpletuner", "rcm", "webdataset", "mds", "hf")
TEXT = {name: ("--text", "umt5") for name in LAYOUTS if name != "simpletuner"}


@pytest.fixture(scope="module", name="cache")
def cache_fixture(tmp_path_factory: pytest.TempPathFactory) -> latentcache.Cache:
    """Many small sources, so that there are many moments between files."""
    names = [f"{n % 7}/video-{n}.mp4" for n in range(40)]
    captions = [f"caption {n}" for n in range(len(names))]
    cache = make_cache(tmp_path_factory.mktemp("many"), names=names, captions=captions)
    add(cache, umt5=text_field(length=24))
    return latentcache.open_cache(cache.storage.url)


def files_of(folder: Path) -> dict[str, object]:
    """All finished files, of generations without the time at which they began to count."""
    found: dict[str, object] = dict(read_files(folder))
    for path in (folder / "generations").glob("*.json"):
        facts = json.loads(path.read_bytes())
        del facts["created_s"], facts[KEY]
        found[str(path.relative_to(folder))] = facts
    return found


def whole_and_killed(seed: int, target: Path, job: str, *args: object) -> None:
    """Run a job undisturbed, and then again to the same place, killed; compare byte for byte."""
    run(job, *args)
    whole = files_of(target)
    shutil.rmtree(target)
    num_killed = killed(job, *args, seed=seed)
    assert num_killed >= 3
    assert files_of(target) == whole


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_killed_again_and_again_ends_as_if_nothing_had_been(
    layout: str, seed: int, cache: latentcache.Cache, tmp_path: Path
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    args = (cache.storage.url, out, "--to", layout, *TEXT.get(layout, ()))
    whole_and_killed(seed, out, "export", *args)
    whole_and_killed(seed, again, "import", layout, out, again, "--like", cache.storage.url)
    run("verify", again)


def test_ids_too(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, spec_of(stored="ids"), clips=20, sizes=((32, 32),))
    out = tmp_path / "out"
    whole_and_killed(0, out, "export", cache.storage.url, out, "--to", "memmap")
