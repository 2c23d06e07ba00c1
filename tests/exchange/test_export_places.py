"""Where exports go, and what has changed when they run again: object stores, odd disks, other caches."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import latentcache
from latentcache.errors import CacheError, CorpusError
from latentcache.exchange.export import Options
from latentcache.exchange.export import export as write_export
from latentcache.exchange.layouts import get_layout
from latentcache.exchange.mark import LIST, MARK
from latentcache.storage.folder import Storage
from tests.tools.exchange import export, make_cache, run, take_in
from tests.tools.fields import cache_of, relabel
from tests.tools.s3 import s3_fixture, s3_server_fixture  # noqa: F401 - fixtures

NAMES = tuple(f"{n}.mp4" for n in range(6))


def write(cache: latentcache.Cache, layout: str, out: Storage) -> list[int]:
    """Export without a command line; returns how many files were left, from the first time to the last."""
    options = Options()
    what = get_layout(layout).export(cache, options)
    return list(write_export(cache, layout, what, out, options))


@pytest.fixture(name="place", params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def place_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "memory":
        return Storage(f"memory://{tmp_path.name}-out")
    s3: Any = request.getfixturevalue("s3")
    return Storage(f"{s3.url}/out", s3.options)


@pytest.mark.parametrize("layout", ["musubi", "simpletuner", "webdataset", "mds", "hf"])
def test_an_object_store_takes_an_export_and_gives_it_back(
    place: Storage, layout: str, tmp_path: Path
) -> None:
    cache = make_cache(tmp_path, names=NAMES)
    assert write(cache, layout, place)[0] > 0
    assert write(cache, layout, place) == [0]
    found = get_layout(layout).find(place, cache.spec)
    assert len(found.records) == len(cache)
    assert all(torch.isfinite(record.load()).all() for record in found.records)
    path = found.records[0].path
    whole = place.read(path)
    for damaged, said in [(whole[:-512], "1 are not as long"), (None, "1 are not there")]:
        place.delete(path)
        if damaged is not None:
            place.write(path, damaged)
        with pytest.raises(CorpusError, match=said):
            get_layout(layout).find(place, cache.spec)
        assert write(cache, layout, place) == [1, 0]
        assert place.read(path) == whole
    assert not [file.path for file in place.files() if f"{LIST}-" in file.path]


def test_a_disk_without_hard_links_takes_an_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those are that are formatted for every system."""

    def link(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    cache, out = make_cache(tmp_path), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        export(cache, out, "musubi")
        assert "3, 3 there already" in export(cache, out, "musubi")
    assert len(take_in("musubi", out, tmp_path / "again", cache)) == 3


def test_names_that_a_disk_takes_for_one_are_refused_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second file replaced the first one."""
    cache = make_cache(tmp_path, names=("a.mp4", "b.mp4", "A.mp4"))
    export(cache, tmp_path / "out", "musubi")
    exists = Storage.exists
    monkeypatch.setattr(Storage, "exists", lambda out, path: exists(out, path.lower()))
    printed = export(cache, tmp_path / "other", "musubi", status=2)
    assert "'a_00000-005_0048x0032_wan.safetensors', 'A_00000-005_0048" in printed
    assert "takes upper and lower case for the same" in printed
    export(make_cache(tmp_path / "two"), tmp_path / "third", "musubi")


def test_a_cache_that_has_changed_since_needs_another_folder(tmp_path: Path) -> None:
    planned = cache_of(tmp_path, ["a cat", "a dog"])
    cache, out = latentcache.open_cache(planned.storage.url), tmp_path / "out"
    export(cache, out, "webdataset")
    relabel(planned, {"v1#0": "a wolf"})
    printed = export(cache, out, "webdataset", status=2)
    assert "another snapshot" in printed
    assert "The cache has grown, or has changed, since that export was begun" in printed
    export(cache, tmp_path / "other", "webdataset")


def test_other_files_than_those_of_another_version_are_not_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, out = make_cache(tmp_path, names=NAMES), Storage(str(tmp_path / "out"))
    write(cache, "hf", out)
    monkeypatch.setattr("latentcache.exchange.tar.FILE_BYTES", 12_000)
    with pytest.raises(CacheError, match="begun by another version of latentcache"):
        write(cache, "hf", out)


@pytest.mark.parametrize(
    "option", [("--dtype", "float32"), ("--seed", "1"), ("--bucket", "5x32x48")]
)
def test_other_options_need_another_folder(option: tuple[str, str], tmp_path: Path) -> None:
    cache, out = make_cache(tmp_path), tmp_path / "out"
    export(cache, out, "musubi")
    assert "another options" in export(cache, out, "musubi", *option, status=2)


def test_two_that_begin_at_once_begin_one_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark of the other one comes between two looks at the folder."""
    cache, out = make_cache(tmp_path), tmp_path / "out"
    export(cache, tmp_path / "whole", "musubi")
    listed = Storage.list

    def list_late(storage: Storage, path: str) -> dict[str, int]:
        if storage.url == str(out) and not (out / MARK).exists():
            out.mkdir()
            (out / MARK).write_bytes((tmp_path / "whole" / MARK).read_bytes())
        return listed(storage, path)

    monkeypatch.setattr(Storage, "list", list_late)
    export(cache, out, "musubi")


def test_a_folder_that_may_not_be_written_to_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    cache = make_cache(tmp_path)
    printed = run("export", cache.storage.url, tmp_path / "file" / "out", "--to", "hf", status=1)
    assert "cannot" in printed
