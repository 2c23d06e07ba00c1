"""Exports that are stopped, damaged, or written by two at once, and what an import says of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import latentcache
from latentcache.core.spec import IdSpec
from latentcache.errors import StorageError
from latentcache.exchange import journal as journals
from latentcache.exchange import tar
from latentcache.exchange.mark import LIST, MARK, PART, read_list
from latentcache.storage.folder import Storage
from tests.tools.caches import read_files
from tests.tools.exchange import COGVIDEOX, WAN, export, make_cache, run, spec_of, take_in, unmark
from tests.tools.fields import add, text_field

NAMES = tuple(f"{n}.mp4" for n in range(6))
TEXT = ("--text", "umt5")
LAYOUTS: dict[str, tuple[str, ...]] = {
    "musubi": TEXT,
    "finetrainers": TEXT,
    "fastvideo": TEXT,
    "simpletuner": (),
    "cogvideo": TEXT,
    "rcm": TEXT,
    "memmap": (),
    "webdataset": TEXT,
    "mds": TEXT,
    "hf": TEXT,
}


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few clips per file, so that every layout has several."""
    monkeypatch.setattr(tar, "FILE_BYTES", 12_000)


@pytest.fixture(scope="module", name="caches")
def caches_fixture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], latentcache.Cache]:
    """Gives the cache that a layout is exported from; each is made once."""
    folder, made = tmp_path_factory.mktemp("caches"), dict[str, latentcache.Cache]()

    def cache_of(layout: str) -> latentcache.Cache:
        name = {"cogvideo": COGVIDEOX, "memmap": "ids"}.get(layout, "wan")
        if name not in made:
            ids = {"stored": "ids", "ids": IdSpec(codebook_size=1 << 32)}
            spec = spec_of(name if name == COGVIDEOX else WAN, **(ids if name == "ids" else {}))
            size = (32, 32) if name == "ids" else (32, 48)
            cache = make_cache(folder, spec, name=name, names=NAMES, sizes=(size,))
            if name != "ids":
                add(cache, umt5=text_field(length=24))
            made[name] = latentcache.open_cache(cache.storage.url)
        return made[name]

    return cache_of


class StopsAfter:
    """Storage that takes so many writes, and then none: a process that was killed, or a full disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_writes: int, root: Path) -> None:
        self._left, self._lock = num_writes, threading.Lock()
        for name in ("write", "create"):
            monkeypatch.setattr(Storage, name, self._counted(getattr(Storage, name), str(root)))

    def _counted(self, write: Callable[..., Any], root: str) -> Callable[..., Any]:
        def counted(storage: Storage, path: str, data: Any) -> Any:
            if storage.url == root:
                with self._lock:
                    self._left -= 1
                    if self._left < 0:
                        raise StorageError("No space left on device")
            return write(storage, path, data)

        return counted


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_export_that_stops_at_any_write_is_not_imported_and_goes_on(
    layout: str,
    caches: Callable[[str], latentcache.Cache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journals, "LEAST_S", 0.0)  # records are kept after each file
    cache, whole = caches(layout), tmp_path / "whole"
    export(cache, whole, layout, *LAYOUTS[layout])
    expected, number = read_files(whole), 0
    while True:
        out = tmp_path / f"out{number}"
        with monkeypatch.context() as patch:
            StopsAfter(patch, number, out)
            with contextlib.suppress(AssertionError):
                export(cache, out, layout, *LAYOUTS[layout])
                break
        like = ("--like", cache.storage.url)
        printed = run("import", layout, out, tmp_path / "no", *like, status=2)
        if [path for path in out.rglob("*") if path.is_file() and path.name[0] != "."]:
            assert "is an export that was stopped" in printed
            assert f"latentcache export {cache.storage.url} {out} --to {layout}" in printed
        export(cache, out, layout, *LAYOUTS[layout])
        assert read_files(out) == expected
        number += 1
    assert number > len(expected)  # the records, too
    assert not (tmp_path / "no").exists()
    assert not [path for path in out.iterdir() if path.name.startswith(PART)]
    take_in(layout, out, tmp_path / "again", cache)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_is_gone_or_cut_is_named_and_written_again(
    layout: str, caches: Callable[[str], latentcache.Cache], tmp_path: Path
) -> None:
    cache, out = caches(layout), tmp_path / "out"
    args = ("import", layout, out, tmp_path / "new", "--like", cache.storage.url)
    export(cache, out, layout, *LAYOUTS[layout])
    whole = read_files(out)
    for path in read_list(Storage(str(out))):
        for gone in (True, False):
            (out / path).unlink()
            if not gone:
                (out / path).write_bytes(whole[path][:-1])
            printed = run(*args, status=2)
            assert f"{1 * gone} are not there and {1 * (not gone)} are not as long" in printed
            assert repr(path) in printed
            assert "Write them again with the same command: latentcache export" in printed
            export(cache, out, layout, *LAYOUTS[layout])
            assert read_files(out) == whole
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_flipped_bit_is_never_imported(
    layout: str, caches: Callable[[str], latentcache.Cache], tmp_path: Path
) -> None:
    cache, out = caches(layout), tmp_path / "out"
    export(cache, out, layout, *LAYOUTS[layout])
    listed = read_list(Storage(str(out)))
    largest = max(listed, key=lambda path: listed[path].num_bytes * ("condition" not in path))
    if layout in ("musubi", "cogvideo"):
        largest = next(path for path in listed if path.startswith(("0", "cache/video_latent/")))
    for path in [largest, *(path for path, file in listed.items() if file.about)]:
        data = bytearray((out / path).read_bytes())
        data[len(data) // 2] ^= 0x10
        (out / path).write_bytes(data)
        args = ("import", layout, out, tmp_path / f"new-{path.replace('/', '-')}")
        printed = run(*args, "--like", cache.storage.url, status=2)
        assert f"{out / path} is not as it was exported" in printed
        (out / path).unlink()
        export(cache, out, layout, *LAYOUTS[layout])
    take_in(layout, out, tmp_path / "again", cache)


def test_a_flipped_bit_of_latents_is_named_as_such(tmp_path: Path) -> None:
    cache, out = make_cache(tmp_path, names=("one.mp4",)), tmp_path / "out"
    export(cache, out, "musubi")
    (path,) = out.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    args = ("import", "musubi", out, tmp_path / "new", "--like", cache.storage.url)
    printed = run(*args, status=2)
    assert (
        f"{path} is not as it was exported: it is gone, or its bytes fail their CRC32C" in printed
    )
    assert "Remove the file, write it again with the same command, latentcache export" in printed


def test_a_flipped_bit_of_a_caption_in_a_file_beside_is_named(tmp_path: Path) -> None:
    """musubi's captions are in files of their own."""
    cache, out = make_cache(tmp_path, captions=("a cat", "two dogs", "x")), tmp_path / "out"
    add(cache, umt5=text_field(length=24))
    export(cache, out, "musubi", "--text", "umt5")
    path = out / "one_wan_te.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"a cat", b"a bat"))
    args = ("import", "musubi", out, tmp_path / "new", "--like", cache.storage.url)
    assert f"{path} is not as it was exported" in run(*args, status=2)
    path.write_bytes(whole)
    # The plan of that import has the caption of then.
    assert "1 file changed since this import was planned" in run(*args, status=2)
    again = take_in("musubi", out, tmp_path / "again", cache)
    assert sorted(again.table()["caption"].to_pylist()) == ["a cat", "two dogs", "x"]


def test_folders_without_a_mark_are_taken_as_they_are(tmp_path: Path) -> None:
    cache, out = make_cache(tmp_path), tmp_path / "out"
    export(cache, out, "musubi")
    next(out.glob("*.safetensors")).unlink()
    args = ("import", "musubi", out, tmp_path / "new", "--like", cache.storage.url)
    assert f"To import what is there as it is, remove {MARK} first" in run(*args, status=2)
    unmark(out)
    assert "2 clips ok" in run(*args)


def test_what_a_trainer_adds_is_imported_too(tmp_path: Path) -> None:
    cache, out = make_cache(tmp_path), tmp_path / "out"
    export(cache, out, "musubi")
    path = next(out.glob("*.safetensors"))
    (out / f"new_{path.name}").write_bytes(path.read_bytes())
    assert len(take_in("musubi", out, tmp_path / "again", cache)) == 4


def test_links_to_files_and_folders_stay_what_they_were(tmp_path: Path) -> None:
    cache, out = make_cache(tmp_path), tmp_path / "out"
    export(cache, out, "simpletuner")
    for name in ("a", "d"):
        for path in out.glob(f"{name}*"):
            path.rename(tmp_path / f"moved-{path.name}")
            path.symlink_to(tmp_path / f"moved-{path.name}")
    assert "3, 3 there already" in export(cache, out, "simpletuner")


def test_two_exports_at_once_write_one(tmp_path: Path) -> None:
    cache, out = make_cache(tmp_path, names=NAMES), tmp_path / "out"
    export(cache, tmp_path / "whole", "musubi")
    from jobs.export import export as job
    from jobs.parsers import export as parser

    args = parser().parse_args([cache.storage.url, str(out), "--to", "musubi"])
    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(job, [args] * 4)] == [0] * 4
    assert read_files(out) == read_files(tmp_path / "whole")
    take_in("musubi", out, tmp_path / "again", cache)


@pytest.mark.parametrize("data", [b"", b"{}", b"{"])
def test_a_damaged_mark_is_said_to_be_one(data: bytes, tmp_path: Path) -> None:
    cache, out = make_cache(tmp_path), tmp_path / "out"
    export(cache, out, "musubi")
    (out / MARK).write_bytes(data)
    assert f"{MARK} is damaged" in export(cache, out, "musubi", status=2)
    args = ("import", "musubi", out, tmp_path / "new", "--like", cache.storage.url)
    assert f"{MARK} is damaged" in run(*args, status=2)


@pytest.mark.parametrize("data", [b"", b"PAR1"])
def test_a_damaged_list_is_written_again(data: bytes, tmp_path: Path) -> None:
    cache, out = make_cache(tmp_path), tmp_path / "out"
    export(cache, out, "musubi")
    whole = read_files(out)
    (out / LIST).write_bytes(data)
    args = ("import", "musubi", out, tmp_path / "new", "--like", cache.storage.url)
    assert "no list of its files says that it is whole" in run(*args, status=2)
    export(cache, out, "musubi")
    assert read_files(out) == whole


def test_what_the_owner_writes_into_a_card_stays(tmp_path: Path) -> None:
    cache, out = make_cache(tmp_path), tmp_path / "out"
    export(cache, out, "hf")
    (out / "README.md").write_text("# Mine")
    export(cache, out, "hf")
    assert (out / "README.md").read_text() == "# Mine"
    take_in("hf", out, tmp_path / "again", cache)


def test_files_of_a_data_set_that_its_names_speak_of_must_be_there(tmp_path: Path) -> None:
    """Also where it came without the mark, as from a hub."""
    cache, out = make_cache(tmp_path, names=NAMES), tmp_path / "out"
    export(cache, out, "hf")
    unmark(out)
    gone, *rest = sorted((out / "data").iterdir())
    assert rest
    gone.unlink()
    args = ("import", "hf", out, tmp_path / "new", "--like", cache.storage.url)
    printed = run(*args, status=2)
    assert f"1 of {len(rest) + 1} files are not there: '{gone.name}'" in printed


def test_what_a_killed_export_has_recorded_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LEAST_S", "LOST_PART"):
        monkeypatch.setattr(journals, name, 0.0)
    cache, out = make_cache(tmp_path, names=NAMES), tmp_path / "out"
    with monkeypatch.context() as patch:
        StopsAfter(patch, 13, out)  # three for the mark, six files, and some of their six records
        assert "No space left" in export(cache, out, "musubi", status=1)
    recorded = {
        path for part in out.glob(f"{PART}*") for path in read_list(Storage(str(out)), part.name)
    }
    before = {path: (out / path).stat().st_mtime_ns for path in recorded}
    assert len(before) >= 4
    assert f"6, {len(before)} there already" in export(cache, out, "musubi")
    assert {path: (out / path).stat().st_mtime_ns for path in recorded} == before
