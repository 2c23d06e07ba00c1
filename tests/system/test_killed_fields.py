"""kill -9 of runs that make fields, at a hundred moments: nothing differs, and nothing is written twice."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.tools.caches import (
    assert_same_cache,
    make_config,
    printed_by,
    written_once,
)
from tests.tools.fields import text_field, write_fields
from tests.tools.killed import killed
from tests.tools.videos import moving_pattern

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

NUM_IMAGES, NUM_KILLS = 48, 100
FIELDS = {
    "umt5": text_field(pooled=True, takes_s=0.01, nulls={"bad": "worst quality"}),
    "clip": text_field(length=16, takes_s=0.01),
    "frame0": {"kind": "raw", "of": "first"},
    "first": {"kind": "visual", "of": "first"},
}


def config_of(folder: Path, name: str, **sections: object) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return make_config(
        folder / name,
        folder / "corpus",
        str(folder / name / "cache"),
        clips={"frames": 1, "select": "first", "size": [32, 48]},
        cache={"shard_clips": 4},
        **sections,
    )


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    """A folder with a corpus of images, and a cache of them in `bare`."""
    (tmp_path / "corpus").mkdir()
    for n in range(NUM_IMAGES):
        path = tmp_path / "corpus" / f"p{n}.png"
        Image.fromarray(moving_pattern(1, 32, 48, seed=n)[0]).save(path)
        path.with_suffix(".txt").write_text(f"picture {n % 40}")
    printed_by("precompute", config_of(tmp_path, "bare"))
    return tmp_path


def test_fields_that_are_added_by_killed_runs_are_those_of_one_run(folder: Path) -> None:
    fields, bare = write_fields(folder, **FIELDS), folder / "bare" / "cache"
    shutil.copytree(bare, folder / "whole")
    printed_by("add_field", folder / "whole", fields, "run.runner=local")
    num_killed = 0
    for seed in itertools.count():
        cache = folder / f"killed{seed}"
        shutil.copytree(bare, cache)
        before = written_once(cache)
        num_killed += killed("add_field", cache, fields, "run.runner=local", seed=seed, cache=cache)
        assert_same_cache(cache, folder / "whole")
        outside = {n: f for n, f in written_once(cache).items() if not n.startswith("fields/")}
        assert outside == before
        assert "0 problems" in printed_by("verify", cache)
        if num_killed >= NUM_KILLS:
            break
        shutil.rmtree(cache)


def test_latents_and_fields_that_killed_runs_make_are_those_of_one_run(folder: Path) -> None:
    printed_by("precompute", config_of(folder, "whole", fields=FIELDS))
    num_killed = 0
    for seed in itertools.count():
        config = config_of(folder, "killed", fields=FIELDS)
        cache = folder / "killed" / "cache"
        num_killed += killed("precompute", config, seed=seed, cache=cache)
        assert_same_cache(cache, folder / "whole" / "cache")
        if num_killed >= NUM_KILLS:
            break
        shutil.rmtree(cache)
