"""URLs as text: joined, and named without their secrets."""

from __future__ import annotations

import pytest

from latentcache.storage.urls import (
    folder_of,
    has_magic,
    has_password,
    is_url,
    join,
    public_name,
    redact_url,
)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/a.mp4?X-Amz-Signature=S/E+C#t", "https://h/a.mp4"),
        ("https://h/a.mp4#access_token=S", "https://h/a.mp4"),
        ("https://h/get?1", "https://h/get"),
        ("HTTPS://me:p@ss@h/a.mp4", "HTTPS://h/a.mp4"),
        ("zip://a.mp4::https://h/c.zip?sig=S", "zip://a.mp4::https://h/c.zip"),
        ("s3://b/a.mp4?versionId=S", "s3://b/a.mp4"),
        ("s3://b/what?.mp4#1", "s3://b/what?.mp4#1"),
        ("abfs://box@account/a.mp4", "abfs://box@account/a.mp4"),
        ("sftp://me@h/a.mp4", "sftp://h/a.mp4"),
        ("/data/a?b=c.mp4", "/data/a?b=c.mp4"),
    ],
)
def test_the_name_of_a_url_is_without_query_and_credentials(url: str, name: str) -> None:
    assert public_name(url) == name


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/data/a\nb\x1b[2J\u202e.mp4", r"/data/a\nb\x1b[2J\u202e.mp4"),
        ("https://me:pw@h/a b\n.mp4?sig=S\nS", r"https://***@h/a b\n.mp4?***"),
        ("s3://b/a it's.mp4?versionId=S", "s3://b/a it's.mp4?***"),
        ("caf\u00e9.mp4", "caf\u00e9.mp4"),
    ],
)
def test_a_message_shows_a_url_in_one_line_without_secrets(url: str, shown: str) -> None:
    assert redact_url(url) == shown
    assert redact_url(shown) == shown


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("a/", "/b", "c"), "a/b/c"),
        (("/", "a"), "/a"),
        (("s3://b", ""), "s3://b"),
        (("memory://", "a"), "memory://a"),
        (("simplecache::s3://b/c", "d"), "simplecache::s3://b/c/d"),
        (("zip://a::s3://b/c.zip", "d"), "zip://a/d::s3://b/c.zip"),
        (("/a::b", "c"), "/a::b/c"),
        (("http://[::1]:80", "c"), "http://[::1]:80/c"),
        (("zip://a::http://[::1]/c.zip", "d"), "zip://a/d::http://[::1]/c.zip"),
    ],
)
def test_joins(parts: tuple[str, ...], joined: str) -> None:
    assert join(*parts) == joined


@pytest.mark.parametrize(
    ("text", "url"),
    [("s3://b/a", True), ("simplecache::s3://b", True), ("/a::b", False), ("a/b://c", False)],
)
def test_tells_urls_from_paths(text: str, url: bool) -> None:
    assert is_url(text) is url


def test_the_brackets_of_a_host_are_no_wildcards() -> None:
    assert not any(
        map(has_magic, ["http://[::1]:80/a", "[2001:db8::2]", "sftp://[fe80::1%eth0]/a"])
    )
    assert all(map(has_magic, ["http://[::1]/*.mp4", "[ab].mp4", "/data/[0-9]/a", "s3://b/[:]"]))


def test_a_user_alone_is_no_password() -> None:
    assert has_password("ftp://me:pw@host/a")
    assert has_password("https://me:p w@x@host/a")
    assert not has_password("http://[::1]:80/a:b@c")
    assert not has_password("sftp://me@host:22/a")


def test_the_folder_of_a_url_ends_with_its_slash() -> None:
    assert [folder_of(u) for u in ("s3://b/c/d", "memory://a", "a", "https://h/c/d?sig=a/b")] == [
        "s3://b/c/",
        "memory://",
        "",
        "https://h/c/",
    ]
