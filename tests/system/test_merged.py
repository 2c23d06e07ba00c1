"""Merged and copied caches are caches as any other: grown, checked, finished by resume, on S3, too."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

import latentcache
from latentcache.decoders.pool import DecodePool
from latentcache.format.manifest import read_manifest
from latentcache.inspecting.verify import verify
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config, make_corpus, run_inline
from tests.tools.copied import clips_of
from tests.tools.fault_lab import quick_runs
from tests.tools.faulty import FAULTS, Faults
from tests.tools.s3 import S3, new_bucket, s3_server_fixture  # noqa: F401 fixture
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.slow
OK, SOME_FAILED, INTERRUPTED = 0, 3, 130


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    FAULTS["default"] = Faults()
    with quick_runs():
        yield


@pytest.fixture(scope="module", name="made")
def made_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a cache of all of it, and caches of its two halves."""
    folder = tmp_path_factory.mktemp("made")
    corpus = make_corpus(folder / "corpus", 4)
    config = make_config(folder, corpus, str(folder / "cache"))
    assert run_inline("precompute", config)[0] == SOME_FAILED
    for name, where in (("one", "source < 'v2'"), ("two", "source >= 'v2'")):
        status, printed = run_inline("copy", folder / "cache", folder / name, "--where", where)
        assert status == OK, printed
    return folder


def opened(path: Path) -> latentcache.Cache:
    return latentcache.open_cache(str(path))


def merge(made: Path, output: Path, *more: object) -> None:
    status, printed = run_inline("merge", made / "one", made / "two", "-o", output, *more)
    assert status == OK, printed


def test_a_merge_grows_by_what_is_new_and_opens_nothing_else(made: Path, tmp_path: Path) -> None:
    merge(made, tmp_path / "all")
    shutil.copytree(made / "corpus", tmp_path / "corpus")
    for path in (made / "corpus").iterdir():  # the same files at the same place
        assert (tmp_path / "corpus" / path.name).stat().st_mtime == path.stat().st_mtime
    write_video(tmp_path / "corpus/new.mp4", moving_pattern(5, 64, 96, seed=50))
    config = make_config(tmp_path, tmp_path / "corpus", str(tmp_path / "all"))
    before = clips_of(opened(tmp_path / "all"))
    probed: list[str] = []
    pool = DecodePool.for_run(None)  # type: ignore[arg-type] # the one that is kept

    def probe(*args: object, **kwargs: object) -> object:
        probed.append(str(args[0]))
        return look(*args, **kwargs)

    look = pool.probe
    with mock.patch.object(type(pool), "probe", staticmethod(probe)):
        status, printed = run_inline("precompute", config)
    assert status == SOME_FAILED, printed
    assert "new      1 sources: new.mp4" in printed
    names = {Path(url).name for url in probed}
    assert names == {"new.mp4", "page.mp4", "short.mp4"}, "rejected ones are not in the halves"
    after = clips_of(opened(tmp_path / "all"))
    assert after.keys() - before.keys() == {"new.mp4#0"}
    assert {key: after[key] for key in before} == before


def test_clips_of_a_merge_are_those_that_encoding_gives(made: Path, tmp_path: Path) -> None:
    merge(made, tmp_path / "all")
    assert clips_of(opened(tmp_path / "all")) == clips_of(opened(made / "cache"))
    status, printed = run_inline("verify", tmp_path / "all", "--sample", 4)
    assert status == OK, printed
    assert "4 of 4 clips encoded again: 4 equal bit for bit" in printed


@contextlib.contextmanager
def stopped_at(number: int) -> Iterator[None]:
    """Interrupt what runs within where it creates its `number`-th object."""
    create, count = Storage.create, itertools.count()

    def interrupted(self: Storage, path: str, data: bytes) -> bool:
        if next(count) == number:
            raise KeyboardInterrupt
        return create(self, path, data)

    with mock.patch.object(Storage, "create", interrupted):
        yield


def stop_in_the_middle(made: Path, target: Path) -> None:
    """Copy a cache, and be stopped while shards are copied."""
    with stopped_at(11):
        assert run_inline("copy", made / "cache", target)[0] == INTERRUPTED
    assert read_manifest(Storage(str(target))).num_shards == 4


def test_a_copy_that_is_stopped_before_it_is_planned_says_which_command_goes_on(
    made: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    with stopped_at(4):
        assert run_inline("copy", made / "cache", target)[0] == INTERRUPTED
    for job in ("resume", "status", "verify"):
        status, printed = run_inline(job, target)
        assert status == 2, printed
        assert "nothing is planned yet" in printed
        assert f"latentcache copy CACHE_URL {target}," in printed
    status, printed = run_inline("copy", made / "cache", target)
    assert status == OK, printed
    assert clips_of(opened(target)) == clips_of(opened(made / "cache"))


def test_resume_finishes_a_copy_by_copying(made: Path, tmp_path: Path) -> None:
    stop_in_the_middle(made, tmp_path / "copy")
    with mock.patch.object(DecodePool, "for_run", None):
        status, printed = run_inline("resume", tmp_path / "copy")
    assert status == SOME_FAILED, printed  # rejected sources, as in the cache that was copied
    assert "shards, as they are stored" in printed
    assert clips_of(opened(tmp_path / "copy")) == clips_of(opened(made / "cache"))


def test_resume_encodes_what_cannot_be_copied_any_more(made: Path, tmp_path: Path) -> None:
    source = tmp_path / "cache"
    shutil.copytree(made / "cache", source)
    with stopped_at(11):
        assert run_inline("copy", source, tmp_path / "copy")[0] == INTERRUPTED
    shutil.rmtree(source)
    status, printed = run_inline("resume", tmp_path / "copy")
    assert status == SOME_FAILED, printed
    assert "cannot be copied: " in printed
    assert clips_of(opened(tmp_path / "copy")) == clips_of(opened(made / "cache"))


def test_a_copy_goes_on_as_it_was_planned_when_its_source_has_grown(
    made: Path, tmp_path: Path
) -> None:
    source = tmp_path / "cache"
    shutil.copytree(made / "cache", source)
    shutil.copytree(made / "corpus", tmp_path / "corpus")
    before = clips_of(opened(source))
    with stopped_at(11):
        assert run_inline("copy", source, tmp_path / "copy")[0] == INTERRUPTED
    write_video(tmp_path / "corpus/new.mp4", moving_pattern(5, 64, 96, seed=50))
    config = make_config(tmp_path, tmp_path / "corpus", str(source))
    assert run_inline("precompute", config)[0] == SOME_FAILED
    status, printed = run_inline("copy", source, tmp_path / "copy")
    assert status == OK, printed
    assert clips_of(opened(tmp_path / "copy")) == before


def test_a_status_of_half_a_copy_says_how_far_it_is(made: Path, tmp_path: Path) -> None:
    stop_in_the_middle(made, tmp_path / "copy")
    found = json.loads(run_inline("status", tmp_path / "copy", "--json")[1])
    assert found["state"] == "interrupted"


@pytest.mark.long
def test_s3_to_disk_and_back_and_compacted_there(
    made: Path, tmp_path: Path, s3_server: str
) -> None:
    s3 = new_bucket(s3_server)
    target = [
        f"cache.storage_options.{name}={json.dumps(value)}" for name, value in s3.options.items()
    ]
    source = [option.replace("cache.", "corpus.", 1) for option in target]
    url = f"{s3.url}/all"
    status, printed = run_inline(
        "merge", made / "one", made / "two", "-o", url, *target, "corpus.storage_options={}"
    )
    assert status == OK, printed
    clips = clips_of(opened(made / "cache"))
    assert clips_of(latentcache.open_cache(url, s3.options)) == clips
    assert run_inline("copy", url, f"{s3.url}/parquet", "--format", "parquet", *target)[0] == OK
    storage = Storage(f"{s3.url}/parquet", s3.options)
    assert not verify(storage).problems
    status, printed = run_inline(
        "copy", url, tmp_path / "back", *source, "cache.storage_options={}"
    )
    assert status == OK, printed
    assert clips_of(opened(tmp_path / "back")) == clips
    _fragment(s3, made)
    before = clips_of(latentcache.open_cache(f"{s3.url}/parts", s3.options))
    status, printed = run_inline("compact", f"{s3.url}/parts", *target)
    assert (status, "copied   1 of 1 shards" in printed) == (OK, True), printed
    assert clips_of(latentcache.open_cache(f"{s3.url}/parts", s3.options)) == before
    assert not verify(Storage(f"{s3.url}/parts", s3.options)).problems


def _fragment(s3: S3, made: Path) -> None:
    """Make a cache on S3 with two short shards: of half of the corpus first, then of all."""
    options = {"storage_options": s3.options, "shard_clips": 8}
    part = shutil.copytree(made / "corpus", made / "part")
    for name in ("v2.mp4", "v3.mp4"):
        (part / name).unlink()
    for corpus in (part, made / "corpus"):
        config = make_config(made, corpus, f"{s3.url}/parts", cache=options)
        assert run_inline("precompute", config)[0] == SOME_FAILED
