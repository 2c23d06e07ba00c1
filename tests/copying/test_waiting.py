"""Copies of caches that are not finished: clips that wait come later, and no others, or it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import latentcache
from tests.tools.caches import make_config, run_inline
from tests.tools.videos import moving_pattern, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three videos of 4 clips each, and a cache `half` with every other shard encoded."""
    folder = tmp_path_factory.mktemp("unfinished")
    (folder / "corpus").mkdir()
    for n in range(3):
        write_video(folder / f"corpus/v{n}.mp4", moving_pattern(21, 32, 32, seed=n))
    make_config(folder, folder / "corpus", str(folder / "half"), clips={"size": [32, 32]})
    run("precompute", folder / "config.yaml")
    for n in (1, 3):
        for path in (folder / "half").glob(f"latents/*/c/{n}/0/0/0/0"):
            path.unlink()
        for path in (folder / "half").glob(f"samples/*/{n:06d}.parquet"):
            path.unlink()
    (folder / "half/index.parquet").unlink()
    assert "2 left" in run("status", folder / "half")
    return folder


def run(job: str, *args: object, status: int = 0) -> str:
    found, printed = run_inline(job, *args)
    assert found == status, printed
    return printed


def keys_of(cache: Path) -> set[str]:
    return set(latentcache.open_cache(str(cache)).keys())


@pytest.mark.parametrize(
    "selection",
    [
        [],
        ["--where", "source like 'v%'"],
        ["--where", "frames >= 5 and status = 'ok' and height = 32"],
    ],
)
def test_precompute_takes_in_what_a_copy_lacks(
    selection: Sequence[str], folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    printed = run("copy", folder / "half", target, "--allow-unfinished", *selection)
    assert "waiting  6 clips are still to be encoded and are not copied" in printed
    assert len(keys_of(target)) == 6
    printed = run("precompute", folder / "config.yaml", f"cache.url={target}")
    assert "partial  3 sources, of which some clips were there; all are planned again" in printed
    assert "changed" not in printed
    assert keys_of(target) == {f"v{n}.mp4#{start}" for n in range(3) for start in range(4)}


def test_precompute_on_a_copy_of_some_sources_takes_in_the_rest_of_these(
    folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    where = ("--where", "source != 'v0.mp4'")
    assert "waiting  5 clips" in run("copy", folder / "half", target, "--allow-unfinished", *where)
    for n in (1, 2):
        (tmp_path / f"v{n}.mp4").symlink_to(folder / f"corpus/v{n}.mp4")
    run("precompute", folder / "config.yaml", f"cache.url={target}", f"corpus.source={tmp_path}")
    assert keys_of(target) == {f"v{n}.mp4#{start}" for n in (1, 2) for start in range(4)}


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("start > 0", "it leaves out other clips of their sources: v0.mp4, v1.mp4, v2.mp4."),
        ("key = 'v0.mp4#0' or key = 'v0.mp4#3'", "of their sources: v0.mp4."),
        ("start_s >= 0", "--where names what is known only of clips that are encoded"),
        ("duration_s > 0", "--where names what is known only of clips that are encoded"),
    ],
)
def test_a_condition_that_precompute_could_not_complete_is_refused(
    where: str, what: str, folder: Path, tmp_path: Path
) -> None:
    command = ("copy", folder / "half", tmp_path / "copy", "--allow-unfinished", "--where", where)
    printed = run(*command, status=2)
    assert what in printed
    assert f"Finish it first: latentcache resume {folder / 'half'}" in printed
    assert not (tmp_path / "copy").exists()


def test_what_is_selected_and_there_is_copied(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("v0.mp4#0\n")
    for number, selection in enumerate(
        (["--where", "key = 'v0.mp4#0'"], ["--keys", tmp_path / "keys"])
    ):
        target = tmp_path / f"copy{number}"
        printed = run("copy", folder / "half", target, "--allow-unfinished", *selection)
        assert "waiting" not in printed
        assert keys_of(target) == {"v0.mp4#0"}
        assert "same     1 sources" in run(
            "precompute", folder / "config.yaml", f"cache.url={target}", "--dry-run"
        )


def test_a_key_that_waits_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("v0.mp4#0\nv0.mp4#3\n")
    command = ("copy", folder / "half", tmp_path / "copy", "--allow-unfinished")
    printed = run(*command, "--keys", tmp_path / "keys", status=2)
    assert "the cache has no ok clip with 1 of 2 keys: 'v0.mp4#3'" in printed
