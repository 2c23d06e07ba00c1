"""Links in a folder to import: to files and folders, in loops, and to nowhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import latentcache
from latentcache.core.spec import LatentSpec
from latentcache.errors import CorpusError
from latentcache.exchange.files import files_in, names_in
from latentcache.storage.folder import Storage
from tests.tools.exchange import COGVIDEOX, export, make_cache, spec_of, take_in


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def files(folder: Path, suffix: str = ".pt") -> list[str]:
    return files_in(Storage(str(folder)), "", suffix)


def test_a_linked_folder_is_read_as_if_it_were_there(tmp_path: Path) -> None:
    write(tmp_path / "far" / "deep" / "a.pt")
    write(tmp_path / "in" / "b.pt")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    assert files(tmp_path / "in") == ["b.pt", "link/deep/a.pt"]
    assert names_in(Storage(str(tmp_path / "in")), "", ".pt") == ["b.pt"]


@pytest.mark.parametrize("target", [".", "..", "loop", "../../in", "../../in/a"])
def test_a_link_to_a_folder_above_it_ends(target: str, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a" / "b" / "c.pt")
    (tmp_path / "in" / "a" / "b" / "loop").symlink_to(target)
    found = files(tmp_path / "in")
    assert "a/b/c.pt" in found
    assert len(found) <= 2  # `loop` that leads to itself leads nowhere


def test_two_folders_that_lead_to_each_other_end(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a" / "a.pt")
    write(tmp_path / "in" / "b" / "b.pt")
    (tmp_path / "in" / "a" / "to_b").symlink_to("../b")
    (tmp_path / "in" / "b" / "to_a").symlink_to("../a")
    assert files(tmp_path / "in") == ["a/a.pt", "a/to_b/b.pt", "b/b.pt", "b/to_a/a.pt"]


def test_hidden_folders_are_left_out_linked_or_not(tmp_path: Path) -> None:
    write(tmp_path / "far" / "a.pt")
    write(tmp_path / "in" / ".cache" / "b.pt")
    (tmp_path / "in" / ".link").symlink_to(tmp_path / "far")
    assert files(tmp_path / "in") == []


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CorpusError, match=f"cannot list {tmp_path}: Permission denied"):
        files(tmp_path)


@pytest.mark.parametrize(
    ("layout", "inner"),
    [
        ("musubi", None),
        ("finetrainers", "finetrainers-precomputed-data"),
        ("fastvideo", "*.parquet"),
        ("simpletuner", "a"),
        ("cogvideo", "cache/video_latent/cogvideox-t2v"),
        ("hf", "data"),
        ("webdataset", None),
    ],
)
def test_layouts_are_found_behind_links_to_their_folders(
    layout: str, inner: str | None, wan: latentcache.Cache, tmp_path: Path
) -> None:
    """Clips behind links to folders were left out without a word."""
    cache = wan if layout != "cogvideo" else make_cache(tmp_path, _cogvideo())
    folder = tmp_path / "in"
    text = ("--text", "umt5") if layout in ("finetrainers", "fastvideo") else ()
    export(cache, folder, layout, *text)
    (folder / ".latentcache-export.json").unlink()
    if layout == "fastvideo":  # below the folder, as a link only
        (folder / "part").mkdir()
        for path in folder.glob("*.parquet"):
            path.rename(folder / "part" / path.name)
        inner = "part"
    inside = folder / inner if inner else folder
    shutil.move(inside, tmp_path / "moved")
    inside.symlink_to(tmp_path / "moved")
    assert len(take_in(layout, folder, tmp_path / "new", cache)) == len(cache)


def _cogvideo() -> LatentSpec:
    return spec_of(COGVIDEOX, normaliser=spec_of().normaliser)
