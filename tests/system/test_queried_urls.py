"""Sources whose URLs only their queries tell apart, or let in: copies, retries, signatures that expire."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import latentcache
from latentcache.format.generations import read_generations
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config, run_inline
from tests.tools.copied import run
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

    def write(self, name: str, **others: list[str]) -> None:
        """Write the table. name: of each source's file, with {n} for its number, and its query.

        others: further columns, with a value per source.
        """
        rows = [
            {"video": f"{self.server.url}/{name.format(n=n)}", "key": f"s{n}", "caption": f"c{n}"}
            | {column: values[n] for column, values in others.items()}
            for n in range(4)
        ]
        (self.folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def precompute(self, cache: Path, *args: object, status: int = 0) -> str:
        return run("precompute", self.config, f"cache.url={cache}", *args, status=status)

    def sign_again(self) -> None:
        """Make the cache of signed URLs, which end then, and write the table with fresh ones."""
        self.server.signature = "one"
        self.write("good{n}.mp4?sig=one")
        self.precompute(self.cache)
        self.server.signature = "two"
        self.write("good{n}.mp4?sig=two")


@pytest.fixture(name="lab")
def lab_fixture(tmp_path: Path, server: Server) -> Lab:
    return Lab(tmp_path, server)


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


def lose(cache: Path, *shards: int) -> None:
    """Make it as if some shards were still to be encoded."""
    for number in shards:
        (cache / f"samples/5x64x96/{number:06d}.parquet").unlink()
        (cache / f"latents/5x64x96/c/{number}/0/0/0/0").unlink()
    (cache / "index.parquet").unlink(missing_ok=True)


def generations(cache: Path) -> list[tuple[str, int]]:
    """What kind each generation of a cache is, and how many sources it says have moved."""
    return [(each.kind, each.num_moved) for each in read_generations(Storage(str(cache)))]


def test_a_run_whose_signatures_expired_goes_on_with_fresh_ones(lab: Lab, server: Server) -> None:
    server.signature = "one"
    lab.write("good{n}.mp4?sig=one")
    lab.precompute(lab.cache)
    whole = latents_of(lab.cache)
    lose(lab.cache, 1, 2)
    server.signature = "two"
    printed = run("resume", lab.cache, status=1)
    assert "403" in printed
    assert "signed" in printed
    lab.write("good{n}.mp4?sig=two")
    assert "moved    2 sources: s1, s2" in lab.precompute(lab.cache, "--dry-run")
    printed = lab.precompute(lab.cache)
    assert "moved    2 sources: s1, s2" in printed
    assert "same     4 sources; 0 were opened" in printed
    assert same(latents_of(lab.cache), whole)
    assert generations(lab.cache) == [("plan", 0), ("grow", 2)]


def test_fresh_signatures_of_what_is_done_write_nothing_unless_that_is_asked_for(lab: Lab) -> None:
    lab.sign_again()
    assert "moved" not in lab.precompute(lab.cache)
    assert generations(lab.cache) == [("plan", 0)]
    assert "moved    4 sources" in lab.precompute(lab.cache, "--check-content")
    assert run("verify", lab.cache, "--sample", 8)
    assert generations(lab.cache) == [("plan", 0), ("grow", 4)]


def test_failed_clips_and_rejected_sources_are_tried_again_with_fresh_signatures(
    lab: Lab, server: Server
) -> None:
    server.signature = "one"
    served = lab.folder / "served"
    shutil.copy(served / "bad.mp4", served / "good2.mp4")
    shutil.copy(served / "cut.mp4", served / "good1.mp4")
    lab.write("good{n}.mp4?sig=one")
    lab.precompute(lab.cache, status=3)
    server.signature = "two"
    lab.write("good{n}.mp4?sig=two")
    assert "moved    2 sources: s1, s2" in lab.precompute(lab.cache, status=3)
    write_video(served / "good1.mp4", moving_pattern(10, 64, 96, seed=1))
    write_video(served / "good2.mp4", moving_pattern(10, 64, 96, seed=2))
    run("resume", lab.cache, "--retry-failed", "run.max_failed_fraction=1")
    assert len(latents_of(lab.cache)) == 4 * NUM_CLIPS


def test_a_field_that_is_to_be_made_takes_fresh_signatures(lab: Lab) -> None:
    lab.sign_again()
    field = "fields.pixels={kind: raw}"
    assert "moved    4 sources" in lab.precompute(lab.cache, field)
    assert "moved" not in lab.precompute(lab.cache, field)
    assert latentcache.open_cache(str(lab.cache)).field_names == ["pixels"]


MASKED = [
    "corpus.keep=[mask]",
    "fields.kept={kind: visual, of: masked, masks: mask, encoder: latents}",
]


@pytest.fixture(name="masks")
def masks_fixture(tmp_path: Path) -> list[str]:
    """Paths of one mask per source, and of one more."""
    paths = [tmp_path / f"mask{n}.mp4" for n in range(5)]
    for n, path in enumerate(paths):
        write_video(path, moving_pattern(10, 64, 96, seed=9 + n))
    return [*map(str, paths)]


def other_mask(masks: list[str]) -> list[str]:
    """The masks after that of the source s1 has become another."""
    return [masks[0], masks[4], *masks[2:4]]


def test_a_field_that_is_made_again_takes_the_signatures_that_came_with_its_columns(
    lab: Lab, server: Server, masks: list[str]
) -> None:
    server.signature = "one"
    lab.write("good{n}.mp4?sig=one", mask=masks)
    lab.precompute(lab.cache, *MASKED)
    server.signature = "two"
    lab.write("good{n}.mp4?sig=two", mask=other_mask(masks))
    assert "moved    1 sources: s1" in lab.precompute(lab.cache, *MASKED)
    server.signature = "three"
    lab.write("good{n}.mp4?sig=three", mask=other_mask(masks))
    assert "moved" not in lab.precompute(lab.cache, *MASKED)


def test_a_field_that_an_earlier_step_left_behind_takes_fresh_signatures(
    lab: Lab, server: Server, masks: list[str]
) -> None:
    server.signature = "one"
    lab.write("good{n}.mp4?sig=one", mask=masks)
    lab.precompute(lab.cache, *MASKED)
    lab.write("good{n}.mp4?sig=one", mask=other_mask(masks))
    lab.precompute(lab.cache, MASKED[0])
    server.signature = "two"
    lab.write("good{n}.mp4?sig=two", mask=other_mask(masks))
    assert "moved    1 sources: s1" in lab.precompute(lab.cache, *MASKED)


def test_columns_that_no_field_of_sources_reads_note_no_signatures(
    lab: Lab, server: Server, masks: list[str]
) -> None:
    server.signature = "one"
    lab.write("good{n}.mp4?sig=one", mask=masks, other=["a"] * 4)
    keep = "corpus.keep=[mask, other]"
    lab.precompute(lab.cache, keep, MASKED[1])
    server.signature = "two"
    lab.write("good{n}.mp4?sig=two", mask=masks, other=["b"] * 4)
    printed = lab.precompute(lab.cache, keep, MASKED[1])
    assert "captions" in printed
    assert "moved" not in printed


def test_who_reads_sources_of_finished_clips_is_told_how_their_new_urls_are_noted(lab: Lab) -> None:
    lab.sign_again()
    for job in (
        ("verify", lab.cache, "--sample", 1),
        ("preview", lab.cache, "s0#0", "-o", lab.folder / "p"),
    ):
        _, printed = run_inline(*job)
        assert "403" in printed
        assert "--check-content" in printed


def test_a_corpus_in_a_folder_with_a_question_mark_moves_as_any_other(
    lab: Lab, tmp_path: Path
) -> None:
    folder = tmp_path / "w?1"
    shutil.copytree(tmp_path / "served", folder)
    config = make_config(tmp_path, folder, str(lab.cache), run={"max_failed_fraction": 1.0})
    run("precompute", config, status=3)
    moved = folder.rename(tmp_path / "w?2")
    printed = run("precompute", config, f"corpus.source={moved}", status=3)
    assert "moved    6 sources" in printed
    run("resume", lab.cache, "--retry-failed", "run.max_failed_fraction=1", status=3)
    run("verify", lab.cache, "--sample", 2)
