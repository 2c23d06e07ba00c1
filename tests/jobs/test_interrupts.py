"""Two Ctrl-C end any job, also one whose storage does not answer; what is committed stays."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli import INTERRUPTED
from latentcache.inspecting.verify import verify
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config, make_corpus, run_inline, start_job
from tests.tools.proxy import Proxy, serve_proxy
from tests.tools.s3 import S3, new_bucket, s3_server_fixture  # noqa: F401 fixture

pytestmark = pytest.mark.slow

SOME_FAILED = 3
#: Much longer than two Ctrl-C may take, and much shorter than a request to the storage may.
PATIENCE_S = 30
#: A second signal that comes when the job has ended, but not its threads, ends the interpreter.
ENDED = (INTERRUPTED, -signal.SIGINT)
#: No time-out of the storage's own ends a job here.
NEVER = {"read_timeout": 3600, "connect_timeout": 3600}


@pytest.fixture(scope="module")
def proxy(s3_server: str) -> Iterator[Proxy]:
    with serve_proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("interrupts") / "corpus", 2)


def options_of(s3: S3) -> list[str]:
    return [
        f"cache.storage_options.{name}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
        for name, value in s3.options.items()
    ]


def wait_until(process: subprocess.Popen[str], proxy: Proxy, fault: str) -> None:
    """Return when a request has met the fault."""
    while not proxy.count(fault):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def interrupt_twice(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    time.sleep(1)  # two signals at once are one to the system
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=PATIENCE_S)


def job_of(job: str, config: Path, s3: S3, cache: str, folder: Path) -> list[object]:
    if job in ("precompute", "estimate"):
        return [job, config]
    if job == "add_field":
        field = folder / "field.yaml"
        field.write_text(yaml.safe_dump({"frame0": {"kind": "raw", "of": "first"}}))
        return [job, cache, field, *options_of(s3)]
    return [job, cache, *options_of(s3)]


STALLED: Mapping[str, Any] = {
    "precompute": lambda method, path: method == "PUT" and "/latents/" in path,
    "verify": lambda method, path: "/latents/" in path,
    "resume": lambda method, path: "/cache/" in path,
    "estimate": lambda method, path: True,
    "add_field": lambda method, path: "/cache/" in path,
    "compact": lambda method, path: "/samples/" in path or "/generations/" in path,
}


@pytest.mark.parametrize(
    "job",
    [job if job == "verify" else pytest.param(job, marks=pytest.mark.long) for job in STALLED],
)
def test_two_interrupts_end_a_job_whose_storage_does_not_answer(
    corpus: Path, tmp_path: Path, proxy: Proxy, job: str
) -> None:
    proxy.forget()
    s3 = new_bucket(proxy.url, config_kwargs=NEVER)
    cache = f"{s3.url}/cache"
    source = str(corpus)
    if job == "estimate":  # which reads no cache
        source = f"{s3.url}/corpus"
        s3.filesystem.put(str(corpus), source, recursive=True)
    config = make_config(
        tmp_path,
        corpus,
        cache,
        cache={"url": cache, "shard_clips": 1, "storage_options": s3.options},
        corpus={"source": source, "storage_options": s3.options},
    )
    if job not in ("precompute", "estimate"):
        assert run_inline("precompute", config)[0] == SOME_FAILED
    proxy.choose = lambda method, path: "stall" if STALLED[job](method, path) else None
    process = start_job(*job_of(job, config, s3, cache, tmp_path))
    wait_until(process, proxy, "stall")
    out, err = interrupt_twice(process)
    assert process.returncode in ENDED, out + err
    proxy.forget()
    if job != "estimate":
        if job == "precompute":
            assert run_inline("resume", cache, *options_of(s3))[0] == SOME_FAILED
        assert not verify(Storage(cache, s3.options)).problems


def test_one_interrupt_ends_a_job_in_order(corpus: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    encoder = {"kind": "tests.tools.encoders.slow"}
    config = make_config(tmp_path, corpus, str(cache), encoder=encoder, cache={"shard_clips": 1})
    process = start_job("precompute", config)
    while not list(cache.glob("latents/*/c/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == INTERRUPTED, out + err
    assert "Go on with:  latentcache resume" in err
    assert "Traceback" not in err
