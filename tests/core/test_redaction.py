"""What people see of a text: no secrets, and nothing that a terminal would obey."""

from __future__ import annotations

import pickle

import pytest

from latentcache.core.records import ClipResult
from latentcache.errors import ClipError
from latentcache.redaction import printable, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://me:pw@host/a", "ftp://***@host/a"),
        ("ftp://me:p@w@host/a", "ftp://***@host/a"),
        ("https://h/a?X-Amz-Signature=abc&b=1", "https://h/a?***"),
        ("cannot read https://h/a?v=1&sig=abc: 404.", "cannot read https://h/a?***: 404."),
        ("see 'https://h/a#access_token=abc'", "see 'https://h/a#***'"),
        ("failed: https://me:pw@h/a.mp4#12: 404.", "failed: https://***@h/a.mp4#12: 404."),
        ("https://h/a?sig=abc#12", "https://h/a?***"),
        ("https://h/a#12ab, https://h/a#1234567", "https://h/a#***, https://h/a#***"),
        ("az://c/a?sv=1&sig=abc", "az://c/a?sv=1&sig=***"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://bucket/a?.mp4", "s3://bucket/a?.mp4"),
    ],
)
def test_redacts_credentials_and_queries(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def test_redacts_secret_options_however_deep() -> None:
    options = {"client_kwargs": {"aws_session_token": "abcdef"}, "endpoint": "http://h"}
    assert redact("abcdef at http://h", options) == "*** at http://h"


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ("http://", "http://"),
        ("?key", "?key"),
        ("&sig", "&sig"),
        (";", ";"),
        ("://a@", "://***@"),
        ("?key=x", "?key=***"),
        ("a=b ", "a=b "),
    ],
)
def test_a_long_text_takes_time_by_its_length(part: str, shown: str) -> None:
    """A text that is made to be slow would stop a report for hours: 18 s for 80 kB, by the square."""
    num = 200_000 // len(part)
    got = redact(part * num)
    assert got[:1000] == (shown if part.startswith("?key=") else shown * num)[:1000]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb\nc\x00", r"a\x1b[2Jb\nc\x00"),
        ("\u202egpj.mp4", r"\u202egpj.mp4"),
        ("caf\u00e9 \u4e2d.mp4", "caf\u00e9 \u4e2d.mp4"),
    ],
)
def test_unprintable_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_what_is_kept_of_a_failed_clip_is_safe_to_show_from_the_start() -> None:
    error = ClipError("missing", "no such file: http://h/a\x1b[1m?token=SECRET")
    assert str(error) == r"no such file: http://h/a\x1b[1m?***"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    result = ClipResult(reason="shard_failed", message="http://u:SECRET@h/a\n: refused")
    assert result.message == r"http://***@h/a\n: refused"
