"""Credentials that may not delete: every kind of step is an addition, so nothing needs to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import latentcache
from latentcache.inspecting.verify import verify
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config, run_inline
from tests.tools.fault_lab import make_small_corpus
from tests.tools.proxy import Proxy, serve_proxy
from tests.tools.s3 import S3, new_bucket, s3_server_fixture  # noqa: F401 fixture
from tests.tools.videos import moving_pattern

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

OK, SOME_FAILED = 0, 3


@pytest.fixture
def proxy(s3_server: str) -> Iterator[Proxy]:
    """Refuses to delete: one object, and many at once."""
    with serve_proxy(s3_server) as proxy:
        proxy.choose = lambda method, path: (
            "refused" if method == "DELETE" or "delete" in path.partition("?")[2] else None
        )
        yield proxy


def test_no_step_needs_to_delete(proxy: Proxy, tmp_path: Path) -> None:
    s3 = new_bucket(proxy.url)
    url, corpus = f"{s3.url}/cache", make_small_corpus(tmp_path / "corpus")
    config = make_config(
        tmp_path,
        corpus,
        url,
        clips={"frames": 1, "select": "first", "size": [32, 48]},
        cache={"url": url, "shard_clips": 2, "storage_options": s3.options},
    )
    options = [f"cache.storage_options.{k}={json.dumps(v)}" for k, v in s3.options.items()]

    def run(job: str, *args: object, status: int = SOME_FAILED) -> str:
        found, printed = run_inline(job, *args, *([] if job == "precompute" else options))
        assert found == status, printed
        return printed

    run("precompute", config)
    Image.fromarray(moving_pattern(1, 32, 48, seed=11)[0]).save(corpus / "p1.png")
    (corpus / "p2.txt").write_text("another caption")
    run("precompute", config)
    Image.fromarray(moving_pattern(1, 32, 48, seed=12)[0]).save(corpus / "page.png")
    run("resume", url, "--retry-failed", status=OK)
    flip_a_byte(s3, url)
    run("verify", url, "--repair")
    run("resume", url, status=OK)
    storage = Storage(url, s3.options)
    assert not verify(storage).problems
    opened = latentcache.open_cache(url, s3.options)
    captions = {opened[n]["key"]: opened[n]["caption"] for n in range(len(opened))}
    assert captions.keys() == {*(f"p{n}.png#0" for n in range(5)), "page.png#0"}
    assert captions["p2.png#0"] == "another caption"
    assert proxy.count("refused")  # it was tried, where it would have been tidy


def flip_a_byte(s3: S3, url: str) -> None:
    names = sorted(n for n in s3.filesystem.find(f"{url}/latents") if not n.endswith(".json"))
    data = bytearray(s3.filesystem.cat_file(names[-1]))
    data[0] ^= 1
    s3.filesystem.pipe_file(names[-1], bytes(data))
