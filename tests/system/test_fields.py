"""Whole runs of fields: with the latents, beside a trainer, killed at any place, on Ray, under failures."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import latentcache
from latentcache.core.dtypes import as_numpy
from latentcache.storage.folder import Storage
from tests.tools.caches import (
    make_config,
    read_files,
    read_tables,
    run_inline,
    start_job,
    tables_of,
)
from tests.tools.encoders.hashed_text import COUNTED
from tests.tools.fields import add, cache_of, padded, text_field, write_fields

pytestmark = pytest.mark.usefixtures("kept_pools")

NUM_IMAGES = 7


def image_corpus(folder: Path) -> Path:
    """Grey images of 64x96 with captions in files beside them."""
    folder.mkdir()
    for n in range(NUM_IMAGES):
        Image.new("RGB", (96, 64), (20 * n,) * 3).save(folder / f"i{n}.png")
        (folder / f"i{n}.txt").write_text(f"grey number {n}\n")
    return folder


def assert_states(url: object, field: str = "umt5") -> None:
    cache = latentcache.open_cache(str(url))
    assert len(cache)
    for n in range(len(cache)):
        np.testing.assert_array_equal(as_numpy(cache[n][field]), padded(cache[n]["caption"]))


@pytest.mark.slow
def test_precompute_makes_fields_and_keeps_them_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, url = image_corpus(tmp_path / "corpus"), tmp_path / "cache"
    fields = {"umt5": text_field(), "clip": text_field(pooled=True)}
    clips = {"frames": 1, "select": "first"}
    config = make_config(tmp_path, corpus, str(url), clips=clips, fields=fields)
    assert run_inline("precompute", config)[0] == 0
    assert_states(url)
    assert_states(url, "clip")
    before = read_files(url)
    assert "fields" not in json.loads((url / "cache.json").read_text())["config"]
    assert run_inline("precompute", config)[0] == 0
    assert read_files(url) == before
    (corpus / "i3.txt").write_text("another\n")
    Image.new("RGB", (96, 64), (255, 0, 0)).save(corpus / "new.png")
    (corpus / "new.txt").write_text("red\n")
    monkeypatch.setenv(COUNTED, str(tmp_path / "texts"))
    assert run_inline("precompute", config)[0] == 0
    assert sorted((tmp_path / "texts").read_text().split()) == ["another", "another", "red", "red"]
    assert_states(url)
    assert_states(url, "clip")
    assert run_inline("verify", url)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_field_that_cannot_be_planned_stops_precompute_before_it_encodes(
    tmp_path: Path, dry_run: bool
) -> None:
    corpus, url = image_corpus(tmp_path / "corpus"), tmp_path / "cache"
    fields = {"umt5": text_field(broken="describe")}
    config = make_config(tmp_path, corpus, str(url), clips={"frames": 1}, fields=fields)
    status, printed = run_inline("precompute", config, *["--dry-run"][: int(dry_run)])
    assert (status, "there is no such model" in printed) == (2, True), printed
    assert not (url / "samples").exists()


@pytest.mark.slow
def test_a_dry_run_says_what_fields_there_will_be(tmp_path: Path) -> None:
    fields = {"umt5": text_field(pooled=True)}
    corpus = image_corpus(tmp_path / "corpus")
    config = make_config(
        tmp_path, corpus, str(tmp_path / "cache"), clips={"frames": 1}, fields=fields
    )
    status, printed = run_inline("precompute", config, "--dry-run")
    assert (status, (tmp_path / "cache").exists()) == (0, False)
    assert "field    umt5.pooled: [8] bfloat16" in printed


def test_a_setting_of_a_field_that_is_not_there_is_said(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, ["a", "b"])
    add(cache, umt5=text_field())
    status, printed = run_inline("resume", cache.storage.url, "fields.umt.length=32")
    assert (status, "Did you mean 'umt5'" in printed) == (2, True), printed


def test_fields_are_added_while_a_trainer_streams(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, [f"caption {n}" for n in range(30)])
    url, options = cache.storage.url, {"batch_size": 2, "seed": 5}
    expected = list(latentcache.LatentLoader(url, **options))
    before = read_files(Path(url))
    stream, found = iter(latentcache.LatentLoader(url, prefetch_bytes=1, **options)), []
    for name in ("a", "b", "c"):
        found += itertools.islice(stream, 3)
        add(cache, **{name: text_field(salt="") if name == "a" else text_field(pooled=True)})
    found += stream
    for one, other in zip(expected, found, strict=True):
        assert one["key"] == other["key"]
        assert torch.equal(one["latents"], other["latents"])
    after = read_files(Path(url))
    assert {n: d for n, d in after.items() if not n.startswith("fields/")} == before


@contextmanager
def killed_at(number: int) -> Iterator[list[int]]:
    """Writes to storage end the process, as it were, at this one: before it, or after it if it is odd."""
    calls = [0]
    real = {name: getattr(Storage, name) for name in ("create", "write")}

    def dying(name: str) -> Any:
        def call(storage: Storage, path: str, data: bytes) -> Any:
            if not path.startswith("fields/"):
                return real[name](storage, path, data)
            calls[0] += 1
            if calls[0] * 2 == number + number % 2:
                if number % 2:
                    real[name](storage, path, data)
                raise KeyboardInterrupt
            if calls[0] * 2 > number + number % 2:
                raise KeyboardInterrupt
            return real[name](storage, path, data)

        return call

    with (
        mock.patch.object(Storage, "create", dying("create")),
        mock.patch.object(Storage, "write", dying("write")),
    ):
        yield calls


def test_a_run_that_is_killed_at_some_writes_is_finished_by_the_next(tmp_path: Path) -> None:
    kill_at(tmp_path, range(2, 24, 7))


@pytest.mark.long
def test_a_run_that_is_killed_at_any_write_is_finished_by_the_next(tmp_path: Path) -> None:
    last, num_objects = kill_at(tmp_path, itertools.count())
    assert last > 2 * num_objects


def kill_at(tmp_path: Path, numbers: Iterable[int]) -> tuple[int, int]:
    """Kill runs at writes, finish and compare each, until one lasts to its end.

    Returns the number of the last one, and how many shard objects there are.
    """
    settings = text_field(pooled=True, nulls={"bad": "worst quality"})
    whole = cache_of(made(tmp_path / "whole"), [f"caption {n}" for n in range(6)])
    add(whole, umt5=settings)
    expected, number = read_files(Path(whole.storage.url)), 0
    objects = [n for n in expected if n.startswith("fields/umt5/0")]
    for number in numbers:
        cache = cache_of(made(tmp_path / str(number)), [f"caption {n}" for n in range(6)])
        url, path = cache.storage.url, write_fields(tmp_path, umt5=settings)
        with killed_at(number) as calls:
            try:
                status, _ = run_inline("add_field", url, path, "run.runner=local")
            except KeyboardInterrupt:
                status = 130
        assert run_inline("add_field", url, path, "run.runner=local")[0] == 0
        found = read_files(Path(url))
        assert found.keys() == expected.keys()
        assert tables_of(found).keys() == tables_of(expected).keys()
        assert all(found[name] == expected[name] for name in objects), number
        assert run_inline("verify", url)[0] == 0
        if calls[0] * 2 < number:
            assert status == 0
            break
    return number, len(objects)


@pytest.mark.long
def test_runs_that_are_killed_at_random_and_two_at_once_leave_what_one_run_does(
    tmp_path: Path,
) -> None:
    captions, settings = [f"caption {n}" for n in range(100)], text_field(takes_s=0.02)
    whole, cache = (cache_of(made(tmp_path / n), captions, shard_clips=5) for n in ("a", "b"))
    add(whole, umt5=settings)
    counted, path = tmp_path / "texts", write_fields(tmp_path, umt5=settings)
    args = (cache.storage.url, path, "run.runner=local")
    for number in (12, 40):
        process = start_job("add_field", *args, env={COUNTED: str(counted)})
        while process.poll() is None and len(lines_of(counted)) < number:
            time.sleep(0.01)
        process.kill()
        process.communicate()
    runs = [start_job("add_field", *args, env={COUNTED: str(counted)}) for _ in range(2)]
    for run in runs:
        out, err = run.communicate()
        assert run.returncode == 0, out + err
    found, expected = (read_files(Path(c.storage.url)) for c in (cache, whole))
    assert found.keys() == expected.keys()
    shards = [name for name in expected if name.startswith("fields/umt5/0")]
    assert all(found[name] == expected[name] for name in shards)
    assert run_inline("verify", cache.storage.url)[0] == 0
    assert len(lines_of(counted)) < 2 * len(captions) + len(["null"]) * 4


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_text_that_breaks_the_encoder_costs_its_shard_and_can_be_tried_again(
    tmp_path: Path,
) -> None:
    captions = ["one", "two", "three", "four", "SHARD", "six", "seven"]
    cache = cache_of(tmp_path, captions, shard_clips=2)
    printed = add(
        cache, "run.max_retries=1", "run.max_failed_fraction=1", status=3, umt5=text_field()
    )
    assert "ValueError: size mismatch" in printed
    opened = latentcache.open_cache(cache.storage.url)
    lacking = [s["caption"] for s in (opened[n] for n in range(len(opened))) if not has(s)]
    assert lacking == ["SHARD", "six"]
    status, _ = run_inline(
        "resume",
        cache.storage.url,
        "--retry-failed",
        "--field",
        "umt5",
        "run.runner=local",
        "run.max_retries=0",
        "run.max_failed_fraction=1",
    )
    assert status == 3
    assert run_inline("verify", cache.storage.url)[0] == 0


def has(sample: Any) -> bool:
    try:
        return sample["umt5"] is not None
    except KeyError:
        return False


@pytest.mark.long
def test_a_field_is_encoded_on_ray(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, [f"caption {n}" for n in range(12)], shard_clips=2)
    path = write_fields(tmp_path, umt5=text_field(pooled=True))
    status, printed = run_inline(
        "add_field", cache.storage.url, path, "run.runner=ray", "run.workers=2", "run.device=cpu"
    )
    assert status == 0, printed
    assert_states(cache.storage.url)
    local = cache_of(made(tmp_path / "local"), [f"caption {n}" for n in range(12)], shard_clips=2)
    add(local, umt5=text_field(pooled=True))
    one, other = (
        {n: d for n, d in read_tables(Path(c.storage.url)).items() if n.startswith("fields/")}
        for c in (cache, local)
    )
    assert one.keys() == other.keys()
    assert all(one[name].equals(other[name]) for name in one)
