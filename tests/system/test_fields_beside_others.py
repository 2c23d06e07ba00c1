"""Runs of fields, in the middle of which somebody else changes the cache, the field or the captions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import latentcache
from latentcache.core.dtypes import as_numpy
from latentcache.format.fields.manifest import field_names
from latentcache.planning.planned import PlannedCache
from latentcache.running.field_snapshot import FieldSnapshot
from latentcache.storage.folder import Storage
from tests.tools.caches import printed_by, read_files, run_inline
from tests.tools.encoders.hashed_text import COUNTED
from tests.tools.fields import add, cache_of, grow, padded, relabel, text_field, write_fields

pytestmark = pytest.mark.usefixtures("kept_pools")

CAPTIONS = [f"caption {n}" for n in range(12)]


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path) -> PlannedCache:
    return cache_of(tmp_path, CAPTIONS, shard_clips=2)


@contextmanager
def after_a_shard(act: Callable[[], Any]) -> Iterator[None]:
    """Do something once, as soon as a run of a field has committed a shard."""
    added, done = FieldSnapshot.add, []

    def acting(snapshot: FieldSnapshot, report: Any) -> None:
        if not done:
            done.append(True)
            act()
        added(snapshot, report)

    with mock.patch.object(FieldSnapshot, "add", acting):
        yield
    assert done


def states_of(url: str, field: str = "umt5") -> dict[str, str | None]:
    """Each clip's caption whose states the field has; None where it has none, or those of another text."""
    cache, found = latentcache.open_cache(url), {}
    for sample in (cache[n] for n in range(len(cache))):
        caption, same = sample["caption"], False
        with suppress(KeyError):
            same = np.array_equal(as_numpy(sample[field]), padded(caption))
        found[str(sample["key"])] = caption if same else None
    return found


def assert_whole(url: str, num_clips: int) -> None:
    """Every clip has its own states, and nothing is damaged or left to do."""
    found = states_of(url)
    assert len(found) == num_clips
    assert None not in found.values(), found
    printed = printed_by("verify", url)
    assert "0 problems" in printed, printed
    assert "still to be encoded" not in printed


def test_of_two_recipes_of_one_name_the_first_counts(cache: PlannedCache, tmp_path: Path) -> None:
    create, url, done = Storage.create, cache.storage.url, []

    def later(storage: Storage, path: str, data: bytes) -> bool:
        if path == "fields/umt5/field.json" and not done:
            done.append(True)
            add(cache, umt5=text_field(length=16))
        return create(storage, path, data)

    with mock.patch.object(Storage, "create", later):
        printed = add(cache, status=2, umt5=text_field())
    assert "encoder.length: 16 in the cache, 32 now" in printed
    (tmp_path / "other").mkdir()
    other = cache_of(tmp_path / "other", CAPTIONS, shard_clips=2)
    add(other, umt5=text_field(length=16))
    names = [name for name in read_files(Path(other.storage.url)) if name.startswith("fields/")]
    assert names == [name for name in read_files(Path(url)) if name.startswith("fields/")]
    assert "0 problems" in printed_by("verify", url)


def test_a_cache_grows_while_a_field_is_added(cache: PlannedCache) -> None:
    url = cache.storage.url
    with after_a_shard(lambda: grow(cache, ["new one", "new two"])):
        add(cache, umt5=text_field())
    run_inline("resume", url, "run.runner=local")
    assert_whole(url, len(CAPTIONS) + 1)  # a clip's latents have failed


def test_captions_that_change_while_a_field_is_added_are_named(
    cache: PlannedCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"v0#0": "first", "v11#0": "last"}
    with after_a_shard(lambda: relabel(cache, changed)):
        add(cache, umt5=text_field())
    url = cache.storage.url
    lacking = {key for key, caption in states_of(url).items() if caption is None}
    assert lacking == {*changed}, "those that were planned have their texts of then"
    monkeypatch.setenv(COUNTED, str(tmp_path / "texts"))
    assert "2 clips have other texts" in add(cache, umt5=text_field())
    run_inline("resume", url, "run.runner=local")
    encoded = [text for text in (tmp_path / "texts").read_text().splitlines() if text]
    assert sorted(encoded) == sorted(changed.values())
    assert_whole(url, len(CAPTIONS) - 1)


@pytest.mark.parametrize("drop_failed", [True, False])
def test_a_cache_is_compacted_while_a_field_is_added(
    cache: PlannedCache, drop_failed: bool
) -> None:
    cache, url = grow(cache, ["new one"]), cache.storage.url
    args = ["--below=1", *(["--drop-failed"] if drop_failed else [])]
    with after_a_shard(lambda: printed_by("compact", url, *args)):
        status, printed = run_add(cache)
    assert status in (0, 1), printed
    assert "Traceback" not in printed
    run_inline("resume", url, "run.runner=local")
    assert_whole(url, len(CAPTIONS))  # of 13 one has failed


def run_add(cache: PlannedCache) -> tuple[int, str]:
    path = write_fields(Path(cache.storage.url).parent, umt5=text_field())
    return run_inline("add_field", cache.storage.url, path, "run.runner=local")


@pytest.mark.parametrize("job", ["copy", "merge"])
def test_a_copy_that_is_made_while_a_field_is_added_is_finished_by_resume(
    cache: PlannedCache, tmp_path: Path, job: str
) -> None:
    url, target = cache.storage.url, str(tmp_path / "copy")
    sources = [url]
    if job == "merge":
        (tmp_path / "second").mkdir()
        second = cache_of(tmp_path / "second", ["other"])
        add(second, umt5=text_field())
        sources.append(second.storage.url)
    to = [target] if job == "copy" else ["-o", target]
    with after_a_shard(lambda: printed_by(job, *sources, *to)):
        add(cache, umt5=text_field())
    assert_whole(url, len(CAPTIONS) - 1)
    run_inline("resume", target, "run.runner=local")
    assert None not in states_of(target).values()
    assert "0 problems" in printed_by("verify", target)


def test_cleaning_beside_a_run_and_after_it_removes_nothing_of_a_field(cache: PlannedCache) -> None:
    folder = Path(cache.storage.url)

    def clean() -> None:
        old = time.time() - 1e5
        for path in folder.rglob("*"):
            os.utime(path, (old, old))
        printed_by("clean", folder, "--yes")

    with after_a_shard(clean):
        add(cache, umt5=text_field(pooled=True))
    before = read_files(folder)
    clean()
    assert read_files(folder) == before
    assert_whole(str(folder), len(CAPTIONS) - 1)


def test_a_field_that_is_dropped_while_a_loader_streams_it_is_named(cache: PlannedCache) -> None:
    add(cache, umt5=text_field(), other=text_field())
    url, options = cache.storage.url, {"batch_size": 1, "prefetch_bytes": 1, "num_threads": 1}
    plain = iter(latentcache.LatentLoader(url, fields=["other"], **options))
    expected = len(list(latentcache.LatentLoader(url, **options)))
    stream = iter(latentcache.LatentLoader(url, fields=["umt5"], **options))
    next(stream), next(plain)
    printed_by("drop_field", url, "umt5", "--yes")
    with pytest.raises(latentcache.CacheError, match=r"the field was dropped since") as raised:
        list(stream)
    assert "fields/umt5/" in str(raised.value)
    assert len(list(plain)) == expected - 1
    assert field_names(cache.storage) == ["other"]
    add(cache, umt5=text_field())
    assert_whole(url, len(CAPTIONS) - 1)
