"""Copies and merges of caches whose sources' URLs have queries, users and passwords: they stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentcache.format.manifest import read_manifest
from latentcache.planning.known import KnownCache
from latentcache.planning.planned import PlannedCache, PlanReader
from latentcache.storage.folder import Storage
from tests.tools import planned as tool
from tests.tools.caches import run_inline
from tests.tools.planned import fill_cache, plan_cache

pytestmark = pytest.mark.usefixtures("kept_pools")

URLS = [
    "http://h/get.mp4?id={n}",
    "https://h/v{n}.mp4?X-Amz-Signature=4711#part",
    "s3://b/v{n}.mp4?versionId=4711",
    "https://me:word@h/v{n}.mp4",
    "sftp://me@h/v{n}.mp4",
    "part://0-600.mp4::https://h/t.tar?sig={n}",
    "/folder?a=1/v{n}.mp4",
]


def run(job: str, *args: object) -> None:
    status, printed = run_inline(job, *args)
    assert status == 0, printed


def make(folder: Path, name: str) -> PlannedCache:
    """A cache of ten sources, each with another form of URL."""

    def source(number: int, usual: Any = tool._source) -> dict[str, Any]:
        return usual(number) | {"url": URLS[number % len(URLS)].format(n=number)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "_source", source)
        planned = plan_cache(folder, str(folder / name))
    fill_cache(planned)
    return planned


def urls_of(url: Path) -> dict[str, str]:
    storage = Storage(str(url))
    manifest = read_manifest(storage)
    known = KnownCache(storage, manifest, PlanReader(storage, manifest))
    return {name: source.url for name, source in known.sources.items()}


def test_a_copy_and_a_merge_know_where_their_sources_are(tmp_path: Path) -> None:
    make(tmp_path, "one")
    whole = {f"v{n}": URLS[n % len(URLS)].format(n=n) for n in range(10)}
    assert urls_of(tmp_path / "one") == whole
    run("copy", tmp_path / "one", tmp_path / "copy")
    run("merge", tmp_path / "one", tmp_path / "copy", "-o", tmp_path / "both")
    run("copy", tmp_path / "both", tmp_path / "some", "--where", "source != 'v1'")
    assert urls_of(tmp_path / "copy") == urls_of(tmp_path / "both") == whole
    some = urls_of(tmp_path / "some")
    assert some
    assert some.items() <= whole.items()
