"""Names survive: cache to layout to cache, and once more, come to the same files, keys and sources."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import latentcache
from latentcache.core.spec import IdSpec
from latentcache.exchange.clips import source_of, stem_of
from tests.tools.caches import read_files
from tests.tools.exchange import COGVIDEOX, export, make_cache, spec_of, take_in
from tests.tools.fields import add, text_field

NAMES = (
    *("a/scene.1.mp4", "b/scene.2.mov", "v1.2/with space.mp4", "ünï 日本.webm", 'it\'s "x"\\y.mp4'),
    *(
        "clip.mp4.mp4",
        "no suffix",
        "key.1",
        "%20#1.mp4",
        "last_00000-005_0048x0032.mp4",
        "e" * 64 + ".mp4",
    ),
)
TWO_OF_ONE_STEM = ("a/x.mp4", "b/x.mp4", "b/c/x.mp4")
#: What each layout needs, and whether two sources of one stem are two names in it.
LAYOUTS = {
    "musubi": ((), False),
    "simpletuner": ((), True),
    "cogvideo": ((), False),
    "finetrainers": (("--text", "umt5"), True),
    "fastvideo": (("--text", "umt5"), True),
    "rcm": (("--text", "umt5"), True),
    "memmap": ((), True),
    "webdataset": ((), True),
    "mds": ((), True),
    "hf": ((), True),
}


def start(layout: str, folder: Path) -> latentcache.Cache:
    _, has_folders = LAYOUTS[layout]
    names = NAMES + TWO_OF_ONE_STEM * has_folders
    if layout == "memmap":
        spec = spec_of(stored="ids", ids=IdSpec(codebook_size=1 << 32))
        return make_cache(folder, spec, names=names, sizes=((32, 32),))
    return make_cache(folder, spec_of(COGVIDEOX) if layout == "cogvideo" else None, names=names)


def round_trip(
    layout: str, cache: latentcache.Cache, folder: Path, like: latentcache.Cache
) -> tuple[latentcache.Cache, set[str]]:
    """Export and import; returns the new cache, and the names of the layout's files."""
    args, _ = LAYOUTS[layout]
    folder.mkdir()
    if args:
        add(cache, umt5=text_field(length=24, missing="empty"))
    export(cache, folder / "out", layout, *args)
    files = {path for path in read_files(folder / "out") if not path.startswith(".")}
    return take_in(layout, folder / "out", folder / "again", like), files


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_survive_two_round_trips(layout: str, tmp_path: Path) -> None:
    cache = start(layout, tmp_path)
    once, first = round_trip(layout, cache, tmp_path / "1", cache)
    twice, second = round_trip(layout, once, tmp_path / "2", cache)
    assert first == second
    assert len(once) == len(twice) == len(cache)
    for column in ("key", "source"):
        assert sorted(once.table()[column].to_pylist()) == sorted(twice.table()[column].to_pylist())
    if layout in ("webdataset", "mds", "hf", "fastvideo"):
        assert sorted(once.keys()) == sorted(cache.keys())
        assert {*once.table()["source"].to_pylist()} == {*cache.table()["source"].to_pylist()}
    if layout in ("webdataset", "mds", "hf"):
        assert all(torch.equal(twice.stored(key), cache.stored(key)) for key in cache.keys())  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["musubi", "cogvideo"])
def test_names_survive_a_way_through_another_layout(layout: str, tmp_path: Path) -> None:
    """A cache that was imported is written as Parquet, and read from there."""
    cache = start(layout, tmp_path)
    once, first = round_trip(layout, cache, tmp_path / "1", cache)
    between, _ = round_trip("hf", once, tmp_path / "hf", once)
    _, second = round_trip(layout, between, tmp_path / "2", cache)
    assert first == second


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("scene.1.mp4", "scene.1"),
        ("scene.1", "scene.1"),
        ("clip.mp4.MP4", "clip.mp4"),
        ("photo.jpeg", "photo"),
        (".mp4", ".mp4"),
        ("v1.2", "v1.2"),
    ],
)
def test_only_the_suffix_of_a_video_or_an_image_is_none_of_the_stem(name: str, stem: str) -> None:
    assert stem_of(name) == stem
    assert stem_of(source_of(stem)) == stem
