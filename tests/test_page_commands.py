"""The commands of pages run in their order, with small caches where the page's own would be."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.tools.caches import make_config, run_job
from tests.tools.doc_blocks import PAGES, blocks
from tests.tools.videos import moving_pattern, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

#: What a page calls the configuration, and caches that are there.
CONFIGS = ("CONFIG.yaml", "wan.yaml")
CACHES = ("CACHE_URL", "s3://bucket/latents")
OTHERS = ("CACHE_A", "CACHE_B")
#: What its commands make: each has a place of its own.
MADE = ("CACHE_C", "TARGET_URL", "TRAIN_URL", "VAL_URL", "report.html", "preview")


def commands_of(page: str) -> list[list[str]]:
    """The words of each command to latentcache in a page's blocks."""
    lines = [line for block in blocks(PAGES[page], "bash") for line in block.text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [each[1:] for each in words if each and each[0] == "latentcache"]


def cache_of(folder: Path, sources: list[str]) -> tuple[Path, Path]:
    """A finished cache of some videos, and its configuration."""
    for number, source in enumerate(sources):
        video = folder / "corpus" / source
        video.parent.mkdir(parents=True, exist_ok=True)
        write_video(video, moving_pattern(13, 64, 96, seed=number))
    config = make_config(folder, folder / "corpus", str(folder / "cache"))
    run_job("precompute", config)
    return config, folder / "cache"


@pytest.mark.parametrize("page", ["docs/changing-corpora.md", "docs/watching.md"])
def test_the_commands_of_a_page_run(page: str, tmp_path: Path) -> None:
    config, cache = cache_of(tmp_path / "own", ["train/a.mp4", "train/b.mp4", "val/c.mp4"])
    places = {**dict.fromkeys(CONFIGS, config), **dict.fromkeys(CACHES, cache)}
    for name in OTHERS:
        _, places[name] = cache_of(tmp_path / name, [f"{name}.mp4"])
    commands = commands_of(page)
    assert len(commands) > 4
    for number, (job, *words) in enumerate(commands):
        (tmp_path / str(number)).mkdir()
        made = {name: tmp_path / str(number) / name for name in MADE}
        run_job(job, *(places.get(word, made.get(word, word)) for word in words))
        assert all(path.exists() for name, path in made.items() if name in words)
