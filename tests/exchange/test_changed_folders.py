"""Folders that are not what they were: an import that goes on never mixes what it was planned with."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import latentcache
from jobs import import_cache as job
from latentcache.core.records import Shard
from latentcache.core.spec import IdSpec
from latentcache.exchange import take_in as module
from latentcache.format.manifest import read_manifest
from latentcache.format.paths import sample_path
from latentcache.format.planned_sources import read_sources
from latentcache.planning.planned import PlannedCache
from latentcache.storage.filesystems import open_filesystem
from latentcache.storage.folder import Storage
from tests.tools.exchange import export, make_cache, run, spec_of, take_in
from tests.tools.fields import add, text_field
from tests.tools.s3 import S3, s3_fixture, s3_server_fixture  # noqa: F401 fixtures

NAMES = [f"{n}.mp4" for n in range(9)]


class Stopped(BaseException):
    """What ends a run where it is, as a kill does."""


@pytest.fixture(scope="module", name="cache")
def cache_fixture(tmp_path_factory: pytest.TempPathFactory) -> latentcache.Cache:
    """Nine clips in three shards."""
    return make_cache(tmp_path_factory.mktemp("made"), spec_of(stored="mean"), names=NAMES)


@pytest.fixture(name="folder")
def folder_fixture(cache: latentcache.Cache, tmp_path: Path) -> Path:
    """An export with a file per clip."""
    export_as_a_trainer(cache, tmp_path / "in", "musubi")
    return tmp_path / "in"


@pytest.fixture(name="stop")
def stop_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs an import that is stopped before its second shard is committed."""

    def stop(*command: object) -> None:
        commit = module._commit

        def commit_one(planned: PlannedCache, *rest: object) -> object:
            shard = rest[-1]
            assert isinstance(shard, Shard)
            if shard.index:
                raise Stopped
            return commit(planned, *rest)  # type: ignore[arg-type]

        with monkeypatch.context() as patched:
            patched.setattr(module, "num_threads", lambda *_: 1)
            patched.setattr(module, "_commit", commit_one)
            with pytest.raises(Stopped):
                run(*command)  # type: ignore[arg-type]

    return stop


def export_as_a_trainer(cache: latentcache.Cache, folder: Path, *args: str) -> None:
    """Write a folder of which nothing says what it should hold."""
    export(cache, folder, *args)
    for path in folder.glob(".latentcache-export*"):
        path.unlink()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*_wan.safetensors"))


def command(folder: Path, cache: latentcache.Cache, layout: str = "musubi") -> tuple[str, ...]:
    target = folder.with_name("new")
    return ("import", layout, str(folder), str(target), "--like", cache.storage.url)


def test_files_that_changed_or_went_away_before_they_were_taken_in_are_refused(
    cache: latentcache.Cache, folder: Path, stop: Callable[..., None], tmp_path: Path
) -> None:
    """Clips were lost, and others were there twice, without a word."""
    again = command(folder, cache)
    stop(*again)
    first, *_, middle, last = files(folder)
    kept = shutil.copy2(last, tmp_path / "kept")
    shutil.copyfile(first, middle)
    last.unlink()
    printed = run(*again, status=2)
    assert "1 file changed and 1 file went away since this import was planned, before" in printed
    assert f"'{middle.name}', '{last.name}'" in printed
    assert "or import the folder into another cache" in printed
    assert latentcache.open_cache(again[3]).keys() == ["0#0", "1#0", "2#0"]
    shutil.copy2(kept, last)
    assert "1 file changed since" in run(*again, status=2)


def test_an_import_goes_on_over_files_that_are_put_back(
    cache: latentcache.Cache, folder: Path, stop: Callable[..., None], tmp_path: Path
) -> None:
    again = command(folder, cache)
    stop(*again)
    shutil.copytree(folder, tmp_path / "kept")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "kept", folder)
    assert "note" not in run(*again)
    new = latentcache.open_cache(again[3])
    fresh = take_in("musubi", folder, tmp_path / "fresh", cache)
    assert new.keys() == fresh.keys()
    for key in fresh.keys():  # noqa: SIM118 - a cache is no dict
        assert torch.equal(new.stored(key), fresh.stored(key))


def test_files_that_change_once_they_are_taken_in_are_named(
    cache: latentcache.Cache, folder: Path, stop: Callable[..., None]
) -> None:
    again = command(folder, cache)
    stop(*again)
    first, second, *_ = files(folder)
    shutil.copyfile(second, first)
    second.unlink()
    for _ in range(2):  # as it goes on, and once it is finished
        printed = run(*again)
        assert "1 file changed and 1 file went away since this import was planned: " in printed
        assert f"'{first.name}', '{second.name}'. The cache keeps what was imported" in printed
        assert "9 clips ok" in printed


def test_one_clip_that_went_away_and_one_that_came_are_two_differences(
    cache: latentcache.Cache, folder: Path
) -> None:
    """Their numbers were compared, which were equal."""
    again = command(folder, cache)
    last = files(folder)[-1]
    last.rename(folder.with_name("later"))
    assert "note" not in run(*again)
    folder.with_name("later").rename(last)
    files(folder)[0].unlink()
    printed = run(*again)
    assert "1 file went away since this import was planned: '0_00000-005" in printed
    assert f"1 clip of {folder} came after this import was planned" in printed


@pytest.mark.parametrize("seed", ["1", "2"])
def test_numbered_files_that_are_written_anew_in_another_order_are_refused(
    seed: str, stop: Callable[..., None], tmp_path: Path
) -> None:
    cache = make_cache(tmp_path, names=NAMES)
    add(cache, umt5=text_field(length=24))
    folder = tmp_path / "in"
    export_as_a_trainer(cache, folder, "finetrainers", "--text", "umt5")
    again = command(folder, cache, "finetrainers")
    stop(*again)
    shutil.rmtree(folder)
    export_as_a_trainer(cache, folder, "finetrainers", "--text", "umt5", "--seed", seed)
    assert "6 files changed since this import was planned, before" in run(*again, status=2)


def test_a_file_that_is_replaced_between_the_look_and_the_read_is_refused(
    cache: latentcache.Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = command(folder, cache)
    load = module._load
    first, *_, last = files(folder)

    other = Path(shutil.copyfile(first, folder.with_name("other")))

    def replace_first(*args: object) -> object:
        with contextlib.suppress(FileNotFoundError):  # it is done once, by any of the threads
            other.replace(last)
        return load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_load", replace_first)
    printed = run(*again, status=2)
    assert f"{last} has changed since this import looked at it. What was imported stays" in printed
    assert "8#0" not in latentcache.open_cache(again[3]).keys()  # noqa: SIM118
    assert "1 file changed since" in run(*again, status=2)


def test_a_file_that_comes_while_the_folder_is_read_is_left_for_another_import(
    cache: latentcache.Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = command(folder, cache)
    *_, last = files(folder)
    last.rename(folder.with_name("later"))
    look = job.stamps_in

    def look_and_write(*args: object) -> dict[str, str]:
        found = look(*args)  # type: ignore[arg-type]
        folder.with_name("later").rename(last)
        return found

    monkeypatch.setattr(job, "stamps_in", look_and_write)
    printed = run(*again)
    assert f"1 clip of {folder} came after this import was planned" in printed
    assert "8 clips ok" in printed


def test_a_shard_that_is_there_by_its_object_only_needs_no_files(
    cache: latentcache.Cache, folder: Path, tmp_path: Path
) -> None:
    """A run that is killed between the two leaves such."""
    again = command(folder, cache)
    run(*again)
    (tmp_path / "new" / sample_path("5x32x48", 1)).unlink()
    shutil.copyfile(files(folder)[0], files(folder)[4])
    printed = run(*again)
    assert "9 clips ok" in printed
    assert "1 file changed" in printed


def test_captions_that_changed_beside_the_latents_are_told(tmp_path: Path) -> None:
    cache = make_cache(tmp_path, captions=("a", "b", "c"))
    add(cache, umt5=text_field(length=24))
    folder = tmp_path / "in"
    export_as_a_trainer(cache, folder, "musubi", "--text", "umt5")
    again = command(folder, cache)
    run(*again)
    shutil.copyfile(folder / "one_wan_te.safetensors", folder / "four_wan_te.safetensors")
    says = (
        f"{folder}: the captions of 1 clip changed since this import was planned. The cache keeps"
    )
    assert says in run(*again)
    assert latentcache.open_cache(again[3])["four#0"]["caption"] == "c"


def test_a_folder_that_moved_is_another_one(cache: latentcache.Cache, folder: Path) -> None:
    again = command(folder, cache)
    run(*again)
    folder.rename(folder.with_name("moved"))
    again = (*again[:2], str(folder.with_name("moved")), *again[3:])
    printed = run(*again, status=2)
    assert f"is an import of musubi of {folder}, and this one is of musubi of " in printed


def test_a_source_of_several_files_is_known_by_all_of_them(tmp_path: Path) -> None:
    """Two caches of one source would be merged as one, were only one of its files other."""
    cache = make_cache(tmp_path, spec_of(stored="mean"), names=("a.mp4",), clips=2)
    folder = tmp_path / "in"
    export_as_a_trainer(cache, folder, "musubi")
    first = take_in("musubi", folder, tmp_path / "first", cache)
    shutil.copyfile(files(folder)[1], files(folder)[0])
    second = take_in("musubi", folder, tmp_path / "second", cache)
    urls = (first.storage.url, second.storage.url)
    printed = run("merge", *urls, "-o", tmp_path / "merged", status=2)
    assert "1 sources have the same name and other content in several caches: a" in printed
    (generation,) = read_manifest(Storage(urls[0])).generations
    assert read_sources(Storage(urls[0]), generation)["source"].to_pylist() == ["a"]


def test_imports_of_two_folders_with_the_same_file_names_are_told_apart(tmp_path: Path) -> None:
    """A merge left the clips of one out, as if they were those of the other."""
    urls = []
    for name, sources in (("a", NAMES[:3]), ("b", NAMES[3:6])):
        cache = make_cache(tmp_path / name, names=sources)
        add(cache, umt5=text_field(length=24))
        export_as_a_trainer(cache, tmp_path / name / "in", "finetrainers", "--text", "umt5")
        new = take_in("finetrainers", tmp_path / name / "in", tmp_path / name / "new", cache)
        urls.append(new.storage.url)
    printed = run("merge", *urls, "-o", tmp_path / "merged", status=2)
    assert "3 sources have the same name and other content in several caches" in printed


def test_files_of_another_type_since_are_named_and_not_taken_for_other_options(
    cache: latentcache.Cache, folder: Path
) -> None:
    again = command(folder, cache)
    run(*again)
    export_as_a_trainer(cache, folder.with_name("wide"), "musubi", "--dtype", "float32")
    assert "this one differs" in run(*again, "--format", "parquet", status=2)
    for num in (1, 9):
        for path in files(folder.with_name("wide"))[:num]:
            shutil.copy(path, folder / path.name)
        printed = run(*again)
        assert f"{num} files changed since".replace("1 files", "1 file") in printed
        assert "9 clips ok" in printed
    files(folder)[0].write_bytes(b"half")
    printed = run(*again, status=2)
    assert "What was imported stays." in printed
    assert "Nothing was imported" not in printed


def test_s3_tells_files_by_their_tags(
    cache: latentcache.Cache, folder: Path, stop: Callable[..., None], s3: S3
) -> None:
    """The same bytes, written again, are the same file; others of the same size are not."""
    fs, root = open_filesystem(f"{s3.url}/in", s3.options)
    fs.put(str(folder), root, recursive=True)
    options = [f"corpus.storage_options={json.dumps(s3.options)}", "cache.storage_options={}"]
    args = (*command(folder, cache), *options)
    args = (*args[:2], f"{s3.url}/in", *args[3:])
    stop(*args)
    *_, eighth, last = (path.name for path in files(folder))
    fs.pipe(f"{root}/{last}", (folder / last).read_bytes())
    fs.pipe(f"{root}/{eighth}", (folder / last).read_bytes())
    printed = run(*args, status=2)
    assert "1 file changed since this import was planned" in printed
    assert f": '{eighth}'. Nothing was changed" in printed
    fs.pipe(f"{root}/{eighth}", (folder / eighth).read_bytes())
    assert "9 clips ok" in run(*args)


def test_ids_whose_segments_are_others_now_are_refused(
    stop: Callable[..., None], tmp_path: Path
) -> None:
    """The file of the ids is the same, and its clips are not, though they have the same names."""
    spec = spec_of(stored="ids", ids=IdSpec(codebook_size=1 << 32))
    ids = make_cache(tmp_path, spec, names=NAMES, sizes=((32, 32),), frames=4)
    folder = tmp_path / "in"
    export_as_a_trainer(ids, folder, "memmap")

    def write_segments(lengths: list[int]) -> None:
        np.repeat(np.arange(8, dtype="<i4"), lengths).tofile(folder / "segment_ids.bin")

    write_segments([4] * 7 + [8])
    again = command(folder, ids, "memmap")
    stop(*again)
    write_segments([8] + [4] * 7)
    assert "'video.bin'" in run(*again, status=2)


def test_shards_of_mds_whose_index_is_another_now_are_refused(
    cache: latentcache.Cache, stop: Callable[..., None], tmp_path: Path
) -> None:
    """It says in which order the columns of each shard are."""
    folder = tmp_path / "in"
    export_as_a_trainer(cache, folder, "mds")
    again = command(folder, cache, "mds")
    stop(*again)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index, indent=1))
    assert "'shard.00000.mds'" in run(*again, status=2)


@pytest.mark.parametrize("changes", [False, True])
def test_of_two_imports_at_once_one_plans_and_both_go_by_that(
    changes: bool, cache: latentcache.Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = command(folder, cache)
    plan = job.take_step

    def plan_second(*args: object) -> object:
        monkeypatch.setattr(job, "take_step", plan)
        if changes:  # since this one has looked
            shutil.copyfile(files(folder)[0], files(folder)[1])
        assert "9 clips ok" in run(*again)
        return plan(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "take_step", plan_second)
    printed = run(*again)
    assert "9 clips ok" in printed
    assert ("1 file changed since this import was planned" in printed) == changes
    first, second = (latentcache.open_cache(again[3]).stored(key) for key in ("0#0", "1#0"))
    assert torch.equal(first, second) == changes
