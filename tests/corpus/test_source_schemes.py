"""Which file systems a row of a table, or of a plan, may send a run to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from latentcache.corpus.stamps import stamp_sources
from latentcache.decoders.identity import identify_url, local_path
from latentcache.decoders.pool import DecodePool
from latentcache.errors import ClipError, CorpusError
from latentcache.storage.urls import SOURCE_SCHEMES, is_remote, refused_scheme
from tests.tools.corpora import WRITERS, Rows, column, make, read

#: URLs that make fsspec read templates, archives or other files, run programs, or ask other hosts.
REFUSED = {
    "reference://a.mp4": "reference",
    "reference::s3://b/refs.json": "reference",
    "zip://a.mp4::s3://b/c.zip": "zip",
    "ZIP://a.mp4::/tmp/c.zip": "zip",
    "tar://a::file:///c.tar": "tar",
    "simplecache::https://h/a.mp4": "simplecache",
    "filecache::s3://b/a": "filecache",
    "s3://b/a::b.mp4": "s3",
    "http://[::1]/a::b.mp4": "http",
    "zip://a.mp4::http://[::1]/c.zip": "zip",
    "file::http://h/a.mp4": "file",
    "git://branch@repo/d.mp4": "git",
    "github://a.mp4": "github",
    "dask::http://h/a": "dask",
    "smb://h/share/a.mp4": "smb",
    "ftp://h/a.mp4": "ftp",
    "memory://a.mp4": "memory",
    "unknown-to-all://a": "unknown-to-all",
}
ALLOWED = [
    *("a.mp4", "sub/../a.mp4", "/abs/a.mp4", "/abs/x::y.mp4", "x::y/z.mp4", "a::b.mp4"),
    *(
        "s3://b/a.mp4",
        "HTTPS://h/a.mp4?sig=x",
        "gs://b/a",
        "az://c/a",
        "abfs://c@a/b",
        "sftp://h/a",
    ),
    *("file:///a.mp4", "hf://datasets/a/b.mp4", "package://skvideo/a.mp4", "http://h/a.mp4"),
    *("http://[::1]:80/a.mp4", "https://[2001:db8::2]/a.mp4?x", "sftp://me@[fe80::1%25eth0]/a.mp4"),
]


@pytest.mark.parametrize("writer", WRITERS.values(), ids=list(WRITERS))
@pytest.mark.parametrize("url", REFUSED)
def test_a_row_cannot_name_other_file_systems(
    tmp_path: Path, url: str, writer: Callable[[Path, Rows], Path]
) -> None:
    suffix = next(name for name, found in WRITERS.items() if found is writer)
    table = writer(tmp_path / f"t.{suffix}", [{"video": "good.mp4"}, {"video": url}])
    with pytest.raises(
        CorpusError, match=rf"row 2 .*file system {REFUSED[url]}, .*corpus\.schemes"
    ):
        read(table)


@pytest.mark.parametrize("url", [url for url in ALLOWED if not url.startswith(("a::", "x::"))])
def test_a_row_names_local_paths_and_the_usual_stores(tmp_path: Path, url: str) -> None:
    table = WRITERS["csv"](tmp_path / "t.csv", [{"video": url}])
    assert read(table).table.num_rows == 1


@pytest.mark.parametrize("scheme", ["FILE://", "File://", "LOCAL://"])
def test_a_scheme_is_the_same_in_capitals(tmp_path: Path, scheme: str) -> None:
    make(tmp_path, "a.mp4")
    table = WRITERS["csv"](tmp_path / "t.csv", [{"video": f"{scheme}{tmp_path}/a.mp4"}])
    (url,) = column(read(table), "url")
    assert not is_remote(url)
    assert local_path(url) == str(tmp_path / "a.mp4")
    assert identify_url(url) == identify_url(str(tmp_path / "a.mp4"))


def test_a_configuration_names_the_others(tmp_path: Path) -> None:
    rows: Rows = [{"video": "zip://a.mp4::s3://b/c.zip"}, {"video": "memory://a.mp4"}]
    table = WRITERS["csv"](tmp_path / "t.csv", rows)
    with pytest.raises(CorpusError, match=r"row 2 .*file system memory"):
        read(table, schemes=["zip"])
    found = read(table, schemes=["zip", "memory"])
    assert column(found, "url") == [row["video"] for row in rows]


MALFORMED = [
    *("http://", "http:///a.mp4", "https://?sig=x", "http://[1/a.mp4", "http://h:99999/a.mp4"),
    *("http://h:port/a.mp4", "HTTP://ho st/a.mp4", "http://h\x1b[2J/a.mp4", "http://me:pw@/a.mp4"),
    *("s3://", "s3:///a.mp4", "gs:///a", "sftp://", "hf://", "part://0-9.mp4::http://[/a.tar"),
]


@pytest.mark.parametrize("url", MALFORMED)
def test_what_no_server_could_answer_is_a_rejected_source(tmp_path: Path, url: str) -> None:
    """It would stop every run as a server that is down does."""
    assert stamp_sources([url], {}) == [None]
    with (
        DecodePool(num_processes=1, num_buffers=1, timeout_s=5) as pool,  # none is started
        pytest.raises(ClipError, match=r"names no host|is no URL") as refused,
    ):
        pool.probe(url, "video").result(timeout=20)
    assert refused.value.reason == "unreadable"
    assert "pw" not in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    "url",
    [
        *("http://h:8080/a.mp4", "https://me:p w@h/a b.mp4?x", "hf://d/a", "memory:///a"),
        *("zip://a.mp4::https://h/c.zip", "zip://a.mp4::/tmp/c.zip", "zip://a::memory://b"),
        *("http://[::1]/a.mp4", "zip://a.mp4::http://[::1]:80/c.zip", "part://0-9::http://[::]/a"),
    ],
)
def test_odd_urls_are_no_malformed_ones(url: str) -> None:
    assert refused_scheme(url, ["zip", "memory"]) is None


def test_what_wraps_others_is_named_though_it_is_usual_by_itself() -> None:
    assert refused_scheme("file::http://h/a")
    assert refused_scheme("file::http://h/a", ["file"]) is None
    assert refused_scheme("zip://a::ftp://h/b", ["zip"])


def test_a_chain_as_the_source_needs_naming_too(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    with pytest.raises(CorpusError, match="file system dir, "):
        read(f"dir://::file://{tmp_path}")


@pytest.mark.parametrize("url", REFUSED)
def test_neither_decoding_nor_looking_opens_them(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan may be a stranger's: its URLs have passed no table."""
    opened: list[str] = []
    monkeypatch.setattr(
        "latentcache.corpus.stamps.file_facts", lambda *args: opened.append(args[0]) or {}
    )
    assert stamp_sources([url], {}) == [None]
    with DecodePool(num_processes=1, num_buffers=1, timeout_s=5) as pool:  # none is started
        for identity_only in (True, False):
            with pytest.raises(ClipError, match=f"file system {REFUSED[url]}, ") as refused:
                pool.probe(url, "video", identity_only=identity_only).result(timeout=20)
            assert refused.value.reason == "unreadable"
    assert not opened


def test_the_usual_schemes_read_files_and_nothing_else() -> None:
    assert not SOURCE_SCHEMES & {"reference", "zip", "tar", "git", "github", "memory", "data"}
