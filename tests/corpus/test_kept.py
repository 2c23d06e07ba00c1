"""Columns of corpus.keep: types that can be stored, and URLs without their secrets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.corpus.kept import keepable
from tests.tools.corpora import read
from tests.tools.tars import write_tar

SIGNED = "https://u:PASS@h/my clip.mp4?id=7&sig=SIG"
SHOWN = "https://h/my clip.mp4?id=7&sig=***"


def kept(given: Any, kind: pa.DataType | None = None) -> Any:
    """Return what is kept of two values, the second of a slice with a null before it."""
    column = pa.chunked_array([pa.array([given, None, given], kind).slice(1)])
    found = keepable("src", column)
    found.validate(full=True)
    pq.write_table(pa.table({"src": found}), io.BytesIO())
    nothing, something = found.to_pylist()
    assert nothing is None
    return something


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://h/watch?v=abc&t=7", "https://h/watch?v=abc&t=7"),
        ("https://h/a?v=1&Signature=x/y%2B&b=2", "https://h/a?v=1&Signature=***&b=2"),
        (
            "https://h/a?Policy=x&Key-Pair-Id=1&sv=2#access_token=t",
            "https://h/a?Policy=***&Key-Pair-Id=***&sv=2#access_token=***",
        ),
        ("https://h/a?user=u&pwd=x&sr=b", "https://h/a?user=u&pwd=***&sr=b"),
        ("https://h/a?pass=x&sign=y", "https://h/a?pass=***&sign=***"),
        ("https://h/?OSSAccessKeyId=x&Expires=1", "https://h/?OSSAccessKeyId=***&Expires=1"),
        ("https://h/?GoogleAccessId=x&q-ak=y", "https://h/?GoogleAccessId=***&q-ak=***"),
        ("https://h/a.mp4;token=x", "https://h/a.mp4;token=***"),
        ("https://h/a?hdnts=x~acl=/*&b=1", "https://h/a?hdnts=***&b=1"),
        ("https://h/?u=https%3A%2F%2Fi%2F%3Fsig%3Dx", "https://h/?u=https%3A%2F%2Fi%2F%3Fsig%3D***"),
        ("https://me:pw@h/a", "https://h/a"),
        ("https://me:p@w@h/a", "https://h/a"),
        ("s3://me@b/a", "s3://b/a"),
        ("abfs://box@account/a?sig=x", "abfs://box@account/a?sig=***"),
        ("s3://b/what?.mp4", "s3://b/what?.mp4"),
        ("/data/what?key=1.mp4", "/data/what?key=1.mp4"),
        (
            "https://h/?accessToken=a&tokenId=b&session_id=c&x-api-key=d&Ocp-Apim-Subscription-Key=e",
            "https://h/?accessToken=***&tokenId=***&session_id=***&x-api-key=***"
            "&Ocp-Apim-Subscription-Key=***",
        ),
        (f"https://h/?hm={'0a' * 32}&my_key={'k' * 32}", "https://h/?hm=***&my_key=***"),
        ("https://me:pa ss@h:8/a b?id=7", "https://h:8/a b?id=7"),
        ("zip://a b::https://me:p w@h/c", "zip://a b::https://h/c"),
        ("https://12:34@h/a", "https://h/a"),
        ("https://me:20#24@h/a", "https://h/a"),
        ("ftp://me@x.com:20@24,a@h/a", "ftp://h/a"),
        ("ftp://me@x.com@h/a", "ftp://h/a"),
        ("see ftp://me@x.com:pw@h/a", "see ftp://h/a"),
        ("ftp://me@x.com:p w@h/a", "ftp://h/a"),
        ("https://TOKEN@h/a", "https://h/a"),
        ("https://h/keyword?monkey=1&design=2&passage=3", None),
        ("https://h/?author=jane&max_tokens=10&frame_key=12&hm=1080&road_sign=3", None),
        ("docker://img@sha256:abc", None),
        # Beginning with a URL, and words after it.
        ("https://example.com and write to bob@x.com", None),
        ("http://example.com, photo by @joe at noon", None),
        ("https://example.com: write to bob@x.com", None),
        ("http://localhost:8080 and bob@x.com", None),
        ("http://10.0.0.5:8000, questions to bob@x.org", None),
        ("http://example.com:8080. Ask bob@x.org", None),
        ("http://example.com:8080?q=cat or ask bob@x.org", None),
        ("rtsp://cam1:554, recorded by bob@x.org", None),
        ("(s. http://nas:8000) or bob@x.org", None),
        ("http://nas:8000); or bob@x.org", None),
        ("http://localhost:8080?email=me@host.com", None),
        ("http://localhost:8080?q=cat or ask bob@x.org", None),
        ("http://LOCALHOST:80,bob@x.org", None),
        ("https://localhost:pw@h/a", "https://h/a"),
        ("https://localhost:12@h/a", "https://h/a"),
        ("https://me:12.ab cd@h/a", "https://h/a"),
        ("https://me:12,34 cd@h/a", "https://h/a"),
        ("https://me:12ab cd@h/a", "https://h/a"),
        ("https://me@x.com:12ab cd@h/a", "https://h/a"),
        ("https://me:!12 cd@h/a", "https://h/a"),
        ("https://me:12#4 cd@h/a", "https://h/a"),
        ("http://h.com:80,bob@x.com and http://h.com:80?to=bob@x.com", None),
        ("https://h/a?token=t was there; see https://h/b?id=7", "https://h/a?token=*** was there; see https://h/b?id=7"),
        ("https://h/a?sig=s\u3001bob@x and https://u:p@h", "https://h/a?sig=***\u3001bob@x and https://h"),
        # Within a text.
        ("see https://me:pw@h/a?sig=x&b=1 and mail a@b", "see https://h/a?sig=***&b=1 and mail a@b"),
        (
            "two: https://h/?X-Amz-Signature=a&id=1, https://h/?X-Goog-Signature=b and "
            "https://h/?sv=1&sig=c%2B as abfs://box@account/",
            "two: https://h/?X-Amz-Signature=***&id=1, https://h/?X-Goog-Signature=*** and "
            "https://h/?sv=1&sig=*** as abfs://box@account/",
        ),
        ("\u898bhttps://h\uff0c\u8054\u7cfbbob@x.com", None),
        ("https://h/a?sig=x\nhttps://h/b?sig=y", "https://h/a?sig=***\nhttps://h/b?sig=***"),
        ('{"url": "https://u:p@h/?sig=x", "n": 1}', '{"url": "https://h/?sig=***", "n": 1}'),
        (r'{"u":"https:\/\/u:p@h\/?b=1\u0026sig\u003dx"}', r'{"u":"https:\/\/h\/?b=1\u0026sig\u003d***"}'),
        ("a man? key=1; sign=2 at 5://pm", None),
    ],
)  # fmt: skip
def test_a_url_keeps_what_it_asks_for(given: str, shown: str | None) -> None:
    texts = (pa.string(), pa.large_string(), pa.string_view())
    for kind in (*texts, pa.dictionary(pa.int8(), pa.string())):
        assert kept(given, kind) == (given if shown is None else shown)


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda url: [url, None, "x"], pa.list_(pa.string())),
        (lambda url: [url], pa.large_list(pa.string_view())),
        (lambda url: [url], pa.list_view(pa.string())),
        (lambda url: [url, "x"], pa.list_(pa.string(), 2)),
        (lambda url: [{"url": url, "n": 1}, None], None),
        (lambda url: {"url": url, "n": [1.5]}, None),
        (lambda url: {"a": {"b": [[url]]}}, None),
        (lambda url: [("a", url), (url, None)], pa.map_(pa.string(), pa.string())),
        (lambda url: [url], pa.list_(pa.dictionary(pa.int8(), pa.large_string()))),
        (lambda url: json.dumps({"url": url.replace(" ", "")}), pa.json_()),
    ],
)
def test_texts_in_lists_and_objects_lose_secrets(
    wrap: Callable[[str], Any], kind: pa.DataType | None
) -> None:
    assert kept(wrap(SIGNED), kind) == wrap(SHOWN)


def test_texts_that_differed_in_secrets_only_are_one_in_a_dictionary() -> None:
    texts = pa.array([f"https://h/?sig={n}" for n in (1, 2, 1)] + [None])
    kind = pa.dictionary(pa.int8(), pa.string())
    found = keepable("src", pa.chunked_array([texts.cast(kind), texts.cast(kind)]))
    assert found.type == kind
    assert found.to_pylist() == [*["https://h/?sig=***"] * 3, None] * 2
    assert found.chunk(0).dictionary.to_pylist() == ["https://h/?sig=***"]


def test_types_within_lists_and_objects_can_be_stored() -> None:
    uuids = pa.ListArray.from_arrays([0, 1], pa.array([b"\x10" * 16], pa.uuid()))
    for given, plain in (
        (uuids, ["10101010-1010-1010-1010-101010101010"]),
        (
            pa.array(
                [{"a": b"x", "b": None}], pa.struct([("a", pa.binary_view()), ("b", pa.null())])
            ),
            None,
        ),
    ):
        found = keepable("src", pa.chunked_array([given]))
        pq.write_table(pa.table({"src": found}), io.BytesIO())
        assert found.to_pylist() == ([plain] if plain else given.to_pylist())


def test_what_has_no_secrets_is_not_copied() -> None:
    given = pa.array([["https://h/a"], None])
    found = keepable("src", pa.chunked_array([given])).chunk(0)
    assert found.buffers()[-1].address == given.buffers()[-1].address
    empty = pa.chunked_array([], pa.list_(pa.string_view()))
    assert keepable("src", empty).type == pa.list_(pa.string())


def test_kept_columns_of_every_table_lose_secrets(tmp_path: Path) -> None:
    row = {"video": "a.mp4", "src": SIGNED, "all": [SIGNED], "of": {"url": SIGNED}}
    keep = ["src", "all", "of"]
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    write_tar(tmp_path / "t.tar", [("a.mp4", b""), ("a.json", json.dumps(row).encode())])
    for name in ("t.jsonl", "t.parquet", "t.tar"):
        (found,) = read(tmp_path / name, keep=keep).table.select(keep).to_pylist()
        assert found == {"src": SHOWN, "all": [SHOWN], "of": {"url": SHOWN}}


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_kept_column_of_sources_has_no_queries(tmp_path: Path, kind: pa.DataType) -> None:
    url = "https://h/a.mp4?id=7&sig=S I+G"
    pq.write_table(pa.table({"video": pa.array([url], kind)}), tmp_path / "t.parquet")
    (found,) = read(tmp_path / "t.parquet", keep=["video"]).table.to_pylist()
    assert (found["video"], found["url"]) == ("https://h/a.mp4", url)
