"""URLs as text: joined, and shown without their secrets."""

from __future__ import annotations

import pytest

from latentcache.storage.urls import folder_of, has_password, is_url, join, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://me:pw@host/a", "ftp://***@host/a"),
        ("https://h/a?X-Amz-Signature=abc&b=1", "https://h/a?X-Amz-Signature=***&b=1"),
        ("https://h/a?v=1&sig=abc", "https://h/a?v=1&sig=***"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
    ],
)
def test_redacts_credentials_and_signatures(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_redacts_secret_options_however_deep() -> None:
    options = {"client_kwargs": {"aws_session_token": "abcdef"}, "endpoint": "http://h"}
    assert redact("abcdef at http://h", options) == "*** at http://h"


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


def test_a_user_alone_is_no_password() -> None:
    assert has_password("ftp://me:pw@host/a")
    assert not has_password("sftp://me@host:22/a")


def test_the_folder_of_a_url_ends_with_its_slash() -> None:
    assert [folder_of(u) for u in ("s3://b/c/d", "memory://a", "a")] == [
        "s3://b/c/",
        "memory://",
        "",
    ]
