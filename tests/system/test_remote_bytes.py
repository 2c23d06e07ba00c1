"""Whole runs over long videos on S3: how many bytes of each are read, and that the cache is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import latentcache
from tests.tools.caches import bits_of, make_config, run_inline
from tests.tools.long_videos import RATE, write_long
from tests.tools.proxy import Proxy, serve_proxy
from tests.tools.s3 import S3, new_bucket, s3_server_fixture  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

SECONDS, CLIP_S = 60, 5
NAMES = ("a.mp4", "b.mp4", "d.mkv")
MAX_PROBE_BYTES = 1 << 20


@pytest.fixture(scope="module", name="corpus")
def corpus_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for number, name in enumerate(NAMES):
        options = {"movflags": "faststart"} if number % 2 and name.endswith("mp4") else {}
        write_long(
            folder / name,
            SECONDS,
            size=(72, 128),
            noise=64 + number,
            container=options,
            preset="ultrafast",
        )
    return folder


@pytest.fixture(name="proxy")
def proxy_fixture(s3_server: str) -> Iterator[Proxy]:
    with serve_proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture(name="s3")
def s3_fixture(proxy: Proxy, corpus: Path) -> S3:
    s3 = new_bucket(proxy.url)
    for path in corpus.iterdir():
        s3.put(path.name, path.read_bytes())
    proxy.forget()
    return s3


def encoded(
    folder: Path, corpus: object, clips: dict[str, Any], **options: Any
) -> dict[str, bytes]:
    folder.mkdir()
    cache = folder / "cache"
    config = make_config(
        folder, Path("x"), str(cache),
        corpus={"source": str(corpus), **options}, clips={"size": [32, 64], **clips},
        run={"decode_processes": 2},
    )  # fmt: skip
    status, printed = run_inline("precompute", config)
    assert status == 0, printed
    assert options == {} or "fetch " in printed
    return bits_of(latentcache.open_cache(cache))


@pytest.mark.parametrize("select", ["middle", "all"])
def test_a_run_reads_what_its_clips_need_and_the_cache_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path, proxy: Proxy, s3: S3, select: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    clips = {"frames": CLIP_S * RATE, "select": select}
    local = encoded(tmp_path / "local", corpus, clips)
    remote = encoded(tmp_path / "remote", s3.url, clips, storage_options=s3.options)
    assert remote == local
    bucket = s3.url.partition("://")[2]
    for name in NAMES:
        size = (corpus / name).stat().st_size
        read = proxy.num_bytes[f"/{bucket}/{name}"]
        is_ranged = select == "middle" and name.endswith("mp4")
        allowed = MAX_PROBE_BYTES + 1.5 * size * CLIP_S / SECONDS if is_ranged else size
        assert 0 < read <= allowed, name
        assert not is_ranged or read < size / 2
