"""Runs that stop: the cache's storage refuses, or nearly everything fails. Real causes, real runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import latentcache
from jobs.progress import encode
from latentcache.core.records import ShardReport
from latentcache.errors import StorageError
from latentcache.running.driver import Run
from latentcache.running.events import Event
from latentcache.running.failure_policy import describe_clips
from latentcache.storage import retry
from tests.chaos import written_once
from tests.tools.caches import (
    ROOT,
    assert_same_cache,
    assert_same_files,
    make_config,
    make_corpus,
    read_files,
    read_tables,
    run_inline,
)
from tests.tools.encoders import talkative
from tests.tools.mounts import disk, pages
from tests.tools.planned import planned_from
from tests.tools.proxy import Proxy, serve_proxy
from tests.tools.s3 import S3, new_bucket, s3_server_fixture  # noqa: F401 fixture
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

STOPPED, SOME_FAILED = 1, 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("stops") / "corpus")


@pytest.fixture(scope="module", params=["zarr", pytest.param("parquet", marks=pytest.mark.long)])
def clean(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A cache that nothing befell, in the format of its folder's name."""
    folder = tmp_path_factory.mktemp("clean")
    cache = folder / request.param
    config = make_config(folder, corpus, str(cache), cache={"format": request.param})
    assert run_inline("precompute", config)[0] == SOME_FAILED
    return cache


def config_like(clean: Path, tmp_path: Path, corpus: Path, url: str, **cache: object) -> Path:
    return make_config(tmp_path, corpus, url, cache={"format": clean.name, "url": url, **cache})


def check_stopped(printed: str, cache: str, why: str) -> None:
    """One message: the object, the reason, that nothing committed is lost, and how to go on."""
    told = [line for line in printed.splitlines() if "Error: " in line]
    log_lost = "warning: the run goes on, and its log is not written: "
    errors = [line for line in told if not line.startswith(log_lost)]
    assert len(errors) == 1, printed
    assert len(told) <= 2, printed
    assert re.match(rf"(Storage|Unreachable)Error: cannot write {re.escape(cache)}/", errors[0]), (
        printed
    )
    assert why in errors[0]
    assert "were committed and are safe" in printed
    assert f"Go on with:  latentcache resume {cache}" in printed
    assert "given up" not in printed
    assert "Traceback" not in printed


def check_nothing_torn(cache: Path) -> None:
    """What is there is whole: no half-written file, no shard recorded as failed."""
    assert not list(cache.rglob("*.tmp"))
    rows = [row for name, table in read_tables(cache).items() for row in table.to_pylist()]
    assert "shard_failed" not in {row.get("reason") for row in rows}


def test_a_full_disk_stops_the_run_and_resume_completes_it(
    corpus: Path, clean: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "disk" / "cache"
    config = config_like(clean, tmp_path, corpus, str(cache))
    with disk(tmp_path / "disk", pages(clean) * 2 // 3) as remount:
        status, printed = run_inline("precompute", config)
        assert status == STOPPED, printed
        check_stopped(printed, str(cache), "No space left on device. Free some room and resume")
        check_nothing_torn(cache)
        before = written_once(cache)
        remount("size=64m")
        status, printed = run_inline("resume", cache)
        assert status == SOME_FAILED, printed
        assert before.items() <= written_once(cache).items()
        assert_same_cache(cache, clean)


def test_a_run_that_was_stopped_before_the_arrays_metadata_is_completed(
    corpus: Path, clean: Path, tmp_path: Path
) -> None:
    """The plan counts, so that `resume` goes on; plain readers need the rest."""
    if clean.name == "parquet":
        pytest.skip("it has no metadata of arrays")
    cache = tmp_path / "cache"
    planned_from(config_like(clean, tmp_path, corpus, str(cache)))
    for path in cache.rglob("zarr.json"):
        path.unlink()
    assert run_inline("resume", cache)[0] == SOME_FAILED
    assert_same_cache(cache, clean)


def test_a_disk_that_becomes_read_only_stops_the_run(
    corpus: Path, clean: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "disk" / "cache"
    with disk(tmp_path / "disk", 64 << 20) as remount:

        def make_read_only(event: Event) -> None:
            if isinstance(event, ShardReport):
                remount("ro")

        prepared = planned_from(config_like(clean, tmp_path, corpus, str(cache)))
        run = Run(prepared, prepared.missing_shards())
        with pytest.raises(StorageError, match="Read-only file system"):
            list(map(make_read_only, run.events()))
        assert run.summary.shards_failed == run.summary.retries == 0
        check_nothing_torn(cache)
        remount("rw")
        assert run_inline("resume", cache)[0] == SOME_FAILED
        assert_same_cache(cache, clean)


@pytest.mark.long
def test_a_permission_that_is_lost_stops_the_run(corpus: Path, clean: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(clean, cache)
    folder = cache / "samples" / "5x64x96"
    for table in folder.iterdir():  # which are written again from the shards' objects
        table.unlink()
    folder.chmod(0o555)
    obeying: list[str] = []
    if os.geteuid() == 0:  # who may write anywhere, unless that is taken away
        if shutil.which("setpriv") is None:
            pytest.skip("root, and there is no setpriv to make it obey permissions")
        obeying = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*obeying, sys.executable, "-m", "jobs.resume", str(cache)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    folder.chmod(0o755)
    assert done.returncode == STOPPED, done.stderr
    check_stopped(done.stderr, str(cache), "Permission denied. Check the permissions there")
    check_nothing_torn(cache)
    assert run_inline("resume", cache)[0] == SOME_FAILED
    assert_same_cache(cache, clean)


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[Proxy]:
    with serve_proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def no_waits() -> Iterator[None]:
    with mock.patch.object(retry, "FIRST_WAIT_S", 0.0):
        yield


def refuse_after_a_commit(proxy: Proxy, fault: str) -> None:
    """Answer well until the first sample table is written, and with a fault to any PUT from then on."""
    tables: list[str] = []

    def choose(method: str, path: str) -> str | None:
        if method == "PUT" and not tables:
            tables.extend([path] if "/samples/5x64x96/" in path else [])
            return None
        return fault if method == "PUT" else None

    proxy.choose = choose


def options_of(s3: S3) -> list[str]:
    text = {
        name: yaml.safe_dump(value, default_flow_style=True) for name, value in s3.options.items()
    }
    return [f"cache.storage_options.{name}={value.splitlines()[0]}" for name, value in text.items()]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("refused", "Check the permissions there, or the credentials you give."),
        pytest.param(
            "bad_key",
            "Check the permissions there, or the credentials you give.",
            marks=pytest.mark.long,
        ),
        pytest.param("no_bucket", "there is no such bucket", marks=pytest.mark.long),
        pytest.param("slow_down", "Check the network and the endpoint", marks=pytest.mark.long),
        pytest.param("reset", "Check the network and the endpoint", marks=pytest.mark.long),
    ],
)
def test_a_store_that_begins_to_refuse_stops_the_run(
    corpus: Path, clean: Path, tmp_path: Path, proxy: Proxy, no_waits: None, fault: str, why: str
) -> None:
    if clean.name == "parquet" and fault != "refused":
        pytest.skip("what refuses does not depend on the format")
    proxy.forget()
    s3 = new_bucket(proxy.url)
    cache = f"{s3.url}/cache"
    config = config_like(clean, tmp_path, corpus, cache, storage_options=s3.options)
    refuse_after_a_commit(proxy, fault)
    status, printed = run_inline("precompute", config)
    assert status == STOPPED, printed
    check_stopped(printed, cache, why)
    tables = s3.filesystem.find(f"{cache}/samples/5x64x96")
    assert len(tables) == 1
    kept = s3.filesystem.cat_file(tables[0])
    proxy.forget()
    status, printed = run_inline("resume", cache, *options_of(s3))
    assert status == SOME_FAILED, printed
    assert s3.filesystem.cat_file(tables[0]) == kept
    found = {name.partition("/cache/")[2]: name for name in s3.filesystem.find(cache)}
    assert_same_files(
        {name: s3.filesystem.cat_file(path) for name, path in found.items()}, read_files(clean)
    )


def pictures(folder: Path, good: int, bad: int) -> Path:
    """Pictures in `good` and in `bad`: the latter will be missing."""
    for name, count in (("good", good), ("bad", bad)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = moving_pattern(1, 32, 48, seed=index)[0]
            Image.fromarray(pixels).save(folder / name / f"{name}{index}.png")
    return folder


PICTURES = {"frames": 1, "select": "first", "size": [32, 48]}


def encode_without(
    hidden: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Plan, take a folder's files away, and encode; returns the status and what was printed.

    Something stays in the folder: of an empty one nobody could tell that they are not only out of reach.
    """
    prepared = planned_from(config)
    hidden.rename(hidden.parent.parent / "away")
    hidden.mkdir()
    (hidden / "note.txt").touch()
    status = encode(prepared, prepared.missing_shards())
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_a_run_whose_clips_fail_stops_and_says_what_they_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, cache = pictures(tmp_path / "corpus", 6, 24), tmp_path / "cache"
    run = {"judged_clips": 27}  # wherever it begins, some that are good are among them
    config = make_config(tmp_path, corpus, str(cache), clips=PICTURES, run=run)
    whole = make_config(tmp_path, corpus, str(tmp_path / "whole"), clips=PICTURES)
    assert run_inline("precompute", whole)[0] == 0
    config = make_config(tmp_path, corpus, str(cache), clips=PICTURES, run=run)
    status, printed = encode_without(corpus / "bad", config, capsys)
    assert status == STOPPED, printed
    assert "RunStoppedError: " in printed
    assert "of the latest 2" in printed
    assert "x missing: the file is not there" in printed
    assert "x like bad/bad" in printed
    assert "  folder bad: " in printed
    assert "suffix .png" not in printed  # the good ones have it, too
    assert "resume with --retry-failed" in printed
    assert f"Go on with:  latentcache resume {cache}" in printed

    status, printed = run_inline(
        "resume", cache, "--skip-changed", "run.max_failed_fraction=1", "run.judged_clips=1"
    )
    assert status == SOME_FAILED, printed
    assert "cache    6 clips ok, 24 failed" in printed
    again = run_inline(
        "resume", cache, "--retry-failed", "--skip-changed", "run.max_failed_fraction=0"
    )
    assert again[0] == SOME_FAILED, again[1]  # they failed before: that stops nothing
    shutil.rmtree(corpus / "bad")
    (tmp_path / "away").rename(corpus / "bad")
    status, printed = run_inline("resume", cache, "--retry-failed")
    assert status == 0, printed
    found, expected = (latentcache.open_cache(str(url)) for url in (cache, tmp_path / "whole"))
    assert len(found) == len(expected) == 30
    for sample in expected:
        assert torch.equal(found.sample(sample["key"])["latents"], sample["latents"])


def test_a_few_bad_files_in_a_small_corpus_do_not_stop_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = pictures(tmp_path / "corpus", 2, 4)
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"), clips=PICTURES)
    status, printed = encode_without(corpus / "bad", config, capsys)
    assert status == SOME_FAILED, printed
    assert "cache    2 clips ok, 4 failed" in printed


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_run_that_can_encode_no_shard_at_all_stops(tmp_path: Path, max_retries: int) -> None:
    corpus, cache = tmp_path / "corpus", tmp_path / "cache"
    corpus.mkdir()
    for index in range(12):
        pixels = np.full((5, 64, 96, 3), 255 - index, np.uint8)
        write_video(corpus / f"white{index}.mp4", pixels)
    config = make_config(
        tmp_path,
        corpus,
        str(cache),
        encoder={"kind": "tests.tools.encoders.deadly"},
        cache={"url": str(cache), "shard_clips": 1},
        run={"max_retries": max_retries},
    )
    status, printed = run_inline("precompute", config)
    assert status == STOPPED, printed
    assert "RunStoppedError: shards failed as a whole" in printed
    assert "x EncoderError: white is too much" in printed
    assert "none was recorded as failed" in printed
    assert not list(cache.glob("samples/5x64x96/*"))
    assert not list(cache.glob("latents/5x64x96/c/*"))
    status, printed = run_inline("resume", cache, "run.max_failed_fraction=1", "run.max_retries=0")
    assert status == SOME_FAILED, printed
    assert "cache    0 clips ok, 12 failed" in printed


def test_a_warning_of_many_clips_is_printed_once(corpus: Path, tmp_path: Path) -> None:
    encoder = {"kind": "tests.tools.encoders.talkative"}
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"), encoder=encoder)
    status, printed = run_inline("precompute", config)
    assert status == SOME_FAILED, printed
    assert printed.count(talkative.WARNING) == 1
    assert f"warning: {talkative.WARNING}" in printed


ROW = {"bucket": "b", "decoder": None, "source_height": None, "source_width": None}


def row(
    key: str, reason: str | None = None, message: str = "", **facts: object
) -> dict[str, object]:
    status = "failed" if reason else "ok"
    source = key.partition("#")[0]
    return {**ROW, "key": key, "source": source, "status": status, "reason": reason} | {
        "message": message,
        **facts,
    }


def test_failures_are_grouped_by_what_is_alike_in_them() -> None:
    large = {"source_height": 2160, "source_width": 3840}
    small = {"source_height": 480, "source_width": 640}
    failed = [
        row(f"a/{n}.mkv#0", "corrupt", f"damaged at {n}.5 s of /data/a/{n}.mkv", **large)
        for n in range(9)
    ]
    good = [row(f"{folder}/{n}.mp4#0", **small) for folder in "ab" for n in range(4)]
    lines = describe_clips([*failed, row("b/x.mp4#0", "missing", "no such file"), *good])
    assert lines == [
        "       9 x corrupt: the decoder met damaged data",
        "       1 x missing: the file is not there",
        "       9 x like a/0.mkv#0: damaged at 0.5 s of /data/a/0.mkv",
        "       1 x like b/x.mp4#0: no such file",
        "  suffix .mkv: 9 of the 10 that failed, and 0 of the 8 others",
        "  source size 2160x3840: 9 of the 10 that failed, and 0 of the 8 others",
    ]
