"""What an import says of folders that hold nothing for it, or one name twice: where, and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import latentcache
from jobs.parsers import LAYOUTS
from latentcache.exchange.layouts import LOOKS_FOR
from tests.tools.exchange import COGVIDEOX, export, make_cache, run, spec_of


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("musubi", "NAME_00000-081_0480x0832_wan.safetensors, directly in the folder"),
        ("finetrainers", "finetrainers-precomputed-data/latent-NUMBER.pt"),
        ("fastvideo", "rows of Parquet files (*.parquet) at any depth"),
        ("simpletuner", "torch files (*.pt) at any depth"),
        ("rcm", "NAME.latent.pt in tar files directly in the folder"),
        ("cogvideo", "cache/video_latent/MODEL/BUCKET/NAME.safetensors"),
    ],
)
def test_a_folder_without_a_clip_is_named_with_the_files_that_are_looked_for(
    layout: str, says: str, wan: latentcache.Cache, tmp_path: Path
) -> None:
    cache = make_cache(tmp_path, spec_of(COGVIDEOX)) if layout == "cogvideo" else wan
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    printed = run("import", layout, folder, tmp_path / "n", "--like", cache.storage.url, status=2)
    assert f"{folder}: no clip of the layout {layout} is there; they are " in printed
    assert says in printed
    assert "Check the path and the layout." in printed


@pytest.mark.parametrize("layout", ["webdataset", "hf", "mds", "memmap"])
def test_a_folder_without_the_files_that_say_what_it_is_is_named(
    layout: str, wan: latentcache.Cache, tmp_path: Path
) -> None:
    ids = make_cache(tmp_path / "ids", spec_of(stored="ids"), sizes=((32, 32),))
    like = ids if layout == "memmap" else wan
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")
    printed = run("import", layout, folder, tmp_path / "n", "--like", like.storage.url, status=2)
    assert f"{folder}" in printed
    if layout in ("webdataset", "hf"):
        assert "there is no latent_spec.json" in printed
        assert "run the export again" in printed
    assert "Nothing was imported" in printed


def test_every_layout_says_what_it_looks_for() -> None:
    assert tuple(LOOKS_FOR) == LAYOUTS


@pytest.mark.parametrize(("layout", "pattern"), [("rcm", "*.tar"), ("fastvideo", "*.parquet")])
def test_one_name_in_two_files_is_said_with_both(
    layout: str, pattern: str, wan: latentcache.Cache, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    export(wan, folder, layout, "--text", "umt5")
    (path,) = folder.glob(pattern)
    again = folder / f"z{path.suffix}"
    shutil.copy(path, again)
    printed = run("import", layout, folder, tmp_path / "n", "--like", wan.storage.url, status=2)
    assert f"{folder}: 3 names of clips are there twice: " in printed
    assert f" in '{path.name}', '{again.name}'; " in printed
    assert "Rename or remove one of each two" in printed
    assert not (tmp_path / "n").exists()
