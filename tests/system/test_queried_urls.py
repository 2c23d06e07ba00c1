"""Sources whose URLs only their queries tell apart: a retry on a copy reads what the original reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import latentcache
from tests.tools.caches import make_config, run_inline
from tests.tools.http_files import Server, serve
from tests.tools.videos import moving_pattern, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

pytest.importorskip("aiohttp", reason="fsspec reads http with it")

#: Clips of 5 frames that each of the videos has.
NUM_CLIPS = 2


@pytest.fixture(name="server")
def server_fixture(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    for n in range(4):
        write_video(folder / f"good{n}.mp4", moving_pattern(10, 64, 96, seed=n))
    (folder / "bad.mp4").write_text("<html>not found</html>")
    data = (folder / "good1.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) - 200])
    with serve(folder) as facts:
        facts.has_tags = True
        yield facts


class Lab:
    """A table of URLs that the server gives, and the configuration of its cache."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server = folder, server
        columns = {"video": "video", "key": "key", "caption": "caption"}
        self.config = make_config(
            folder,
            folder / "t.jsonl",
            str(folder / "cache"),
            corpus={"columns": columns},
            cache={"shard_clips": 2},
            run={"max_failed_fraction": 1.0},
        )
        self.cache = folder / "cache"

    def write(self, name: str) -> None:
        """Write the table. name: of each source's file, with {n} for its number, and its query."""
        rows = [
            {"video": f"{self.server.url}/{name.format(n=n)}", "key": f"s{n}", "caption": f"c{n}"}
            for n in range(4)
        ]
        (self.folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def precompute(self, cache: Path, *args: object, status: int = 0) -> str:
        return run("precompute", self.config, f"cache.url={cache}", *args, status=status)


@pytest.fixture(name="lab")
def lab_fixture(tmp_path: Path, server: Server) -> Lab:
    return Lab(tmp_path, server)


def run(job: str, *args: object, status: int = 0) -> str:
    found, printed = run_inline(job, *args)
    assert found == status, printed
    return printed


def latents_of(cache: Path) -> dict[str, torch.Tensor]:
    opened = latentcache.open_cache(str(cache))
    keys = opened.keys()
    return {key: opened.stored(key) for key in keys}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("job", ["copy", "merge"])
def test_a_retry_on_a_copy_asks_for_what_the_original_asks_for(
    job: str, lab: Lab, server: Server
) -> None:
    files = {"0": "good0.mp4", "1": "cut.mp4", "2": "bad.mp4", "3": "good3.mp4"}
    server.by_id |= {**files, "": "good0.mp4"}  # a request that lacks its id gets another video
    lab.write("get.mp4?id={n}")
    lab.precompute(lab.cache, status=3)
    copied = lab.folder / "copied"
    into = ["-o", copied] if job == "merge" else [copied]
    others = []
    if job == "merge":
        others = [lab.folder / "other"]
        shutil.copytree(lab.cache, others[0])
    run(job, lab.cache, *others, *into)
    server.by_id |= {"1": "good1.mp4", "2": "good2.mp4"}
    for cache in (copied, lab.cache):
        run("resume", cache, "--retry-failed", "run.max_failed_fraction=1")
    whole = latents_of(lab.cache)
    assert len(whole) == 4 * NUM_CLIPS
    assert same(latents_of(copied), whole)
    run("verify", copied, "--sample", 8)
