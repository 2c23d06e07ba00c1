"""The corpus from tables: roles, numbers, names, kept columns, and the words of refusals."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.corpus.repeats import number_repeated
from latentcache.corpus.source_table import resolve
from latentcache.corpus.sources import RESERVED
from latentcache.errors import ConfigError, CorpusError
from latentcache.format.schemas import SOURCE_SCHEMA
from tests.tools.corpora import WRITERS, Rows, column, read, write_csv, write_jsonl


@pytest.fixture(params=list(WRITERS))
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Rows], Path]:
    return lambda rows: WRITERS[request.param](tmp_path / f"table.{request.param}", rows)


def test_a_table_keeps_its_order_and_is_read_by_role(
    write: Callable[[Rows], Path], tmp_path: Path
) -> None:
    rows = [
        {"path": "z.mp4", "text": 'a "quoted", b\nnew line', "n": 49, "rate": 29.97, "score": 0.5},
        {"path": "sub/a.PNG", "text": "é 💡", "n": 1, "rate": 24.0, "score": 1.5},
        {"path": "/abs/b.unknown", "text": "007", "n": 7, "rate": 25.0, "score": 2.5},
        {"path": "s3://bucket/c.mp4", "text": "NA", "n": 8, "rate": 25.0, "score": 3.5},
    ]
    columns = {"video": "path", "caption": "text", "frames": "n", "fps": "rate"}
    corpus = read(write(rows), columns=columns, keep=["score", "rate"])
    assert corpus.keep == ("score", "rate")
    assert corpus.table.column_names == [*SOURCE_SCHEMA.names, "score", "rate"]
    assert corpus.table.select(SOURCE_SCHEMA.names).schema.equals(SOURCE_SCHEMA)
    assert column(corpus, "name") == [r["path"] for r in rows]
    assert column(corpus, "kind") == ["video", "image", "video", "video"]
    assert column(corpus, "caption") == [r["text"] for r in rows]
    assert column(corpus, "frames") == [49, 1, 7, 8]
    assert column(corpus, "fps") == [29.97, 24.0, 25.0, 25.0]
    assert column(corpus, "height") == [None] * 4
    assert column(corpus, "score") == [0.5, 1.5, 2.5, 3.5]
    assert column(corpus, "rate") == [29.97, 24.0, 25.0, 25.0]
    assert column(corpus, "url") == [
        str(tmp_path / "z.mp4"),
        str(tmp_path / "sub/a.PNG"),
        "/abs/b.unknown",
        "s3://bucket/c.mp4",
    ]


def test_columns_default_to_video_and_caption(write: Callable[[Rows], Path]) -> None:
    assert column(read(write([{"video": "a.mp4", "caption": "b"}])), "caption") == ["b"]
    assert column(read(write([{"video": "a.mp4", "other": 1}])), "caption") == [None]
    with pytest.raises(
        CorpusError, match=r"no column 'video'\. Did you mean 'vide'\? It has: 'vide'"
    ):
        read(write([{"vide": "a.mp4"}]))


def test_a_missing_column_names_the_nearest_and_all(write: Callable[[Rows], Path]) -> None:
    table = write([{"path": "a.mp4", "text": "b"}])
    with pytest.raises(
        CorpusError,
        match=r"has no column 'txt'\. Did you mean 'text'\? It has: 'path', 'text'\. Name ",
    ):
        read(table, columns={"video": "path", "caption": "txt"})
    with pytest.raises(CorpusError, match="has no column 'score'"):
        read(table, columns={"video": "path"}, keep=["score"])


def test_two_path_columns_tell_the_kind(write: Callable[[Rows], Path]) -> None:
    columns = {"video": "v", "image": "i"}
    corpus = read(write([{"v": "a.dat", "i": None}, {"v": None, "i": "b.mp4"}]), columns=columns)
    assert column(corpus, "name") == ["a.dat", "b.mp4"]
    assert column(corpus, "kind") == ["video", "image"]
    with pytest.raises(CorpusError, match=r"row 2 .*v = 'b' is set, and so is the image"):
        read(write([{"v": "a", "i": None}, {"v": "b", "i": "c"}]), columns=columns)


def test_an_image_column_is_images_unless_the_suffix_is_a_video(
    write: Callable[[Rows], Path],
) -> None:
    corpus = read(write([{"i": "a"}, {"i": "b.gif"}, {"i": "c.jpg"}]), columns={"image": "i"})
    assert column(corpus, "kind") == ["image", "video", "image"]


def test_suffixes_of_urls_end_at_the_query(write: Callable[[Rows], Path]) -> None:
    corpus = read(write([{"video": "https://h/a.png?v=1"}, {"video": "https://h/a.mp4?v=.png/"}]))
    assert column(corpus, "kind") == ["image", "video"]


def test_a_key_column_names_the_sources(write: Callable[[Rows], Path]) -> None:
    columns = {"video": "v", "key": "id"}
    corpus = read(write([{"v": "a.mp4", "id": 7}, {"v": "a.mp4", "id": 8}]), columns=columns)
    assert column(corpus, "name") == ["7", "8"]
    with pytest.raises(CorpusError, match=r"row 2 .*id = .* is empty: every source needs one"):
        read(write([{"v": "a.mp4", "id": "x"}, {"v": "b.mp4", "id": ""}]), columns=columns)


def test_an_empty_path_names_the_row(write: Callable[[Rows], Path]) -> None:
    with pytest.raises(CorpusError, match=r"row 2 .*counted from 1\): video = .* is empty"):
        read(write([{"video": "a.mp4", "c": "1"}, {"video": "", "c": "2"}]))


@pytest.mark.parametrize(
    ("role", "value", "why"),
    [
        ("frames", "many", "is not a number"),
        ("frames", "1.5", "is not a whole number above 0"),
        ("frames", "0", "is not a whole number above 0"),
        ("height", "-3", "is not a whole number above 0"),
        ("width", "3000000000", "is not a whole number above 0"),
        ("fps", "0", "is not a number above 0"),
        ("fps", "inf", "is not a number above 0"),
        ("fps", "24 fps", "is not a number"),
    ],
)
def test_a_number_that_is_none_names_row_and_value(
    write: Callable[[Rows], Path], role: str, value: str, why: str
) -> None:
    rows = [{"v": "a.mp4", "x": "24"}, {"v": "b.mp4", "x": ""}, {"v": "c.mp4", "x": value}]
    with pytest.raises(CorpusError, match=rf"row 3 .*x = '{value}' {why}.*leave it empty"):
        read(write(rows), columns={"video": "v", role: "x"})
    assert column(read(write(rows[:2]), columns={"video": "v", role: "x"}), role) == [24, None]


def test_numbers_come_from_any_column_of_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {
            "video": ["a", "b"],
            "f": pa.array([3.0, float("nan")]),
            "r": pa.array([24, None], pa.int8()),
            "h": pa.array(["8", "9"]).dictionary_encode(),
            "b": [True, False],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    columns = {"video": "video", "frames": "f", "fps": "r", "height": "h"}
    corpus = read(tmp_path / "t.parquet", columns=columns)
    assert column(corpus, "frames") == [3, None]
    assert column(corpus, "fps") == [24.0, None]
    assert column(corpus, "height") == [8, 9]
    with pytest.raises(CorpusError, match=r"'b' \(role frames\) holds bool, not numbers"):
        read(tmp_path / "t.parquet", columns={"video": "video", "frames": "b"})


def test_repeated_names_are_numbered(write: Callable[[Rows], Path]) -> None:
    names = ["a", "b", "a", "a@2", "a", "b"]
    corpus = read(write([{"video": n} for n in names]))
    assert column(corpus, "name") == ["a", "b", "a@3", "a@2", "a@4", "b@2"]
    assert len(set(column(corpus, "url"))) == 3


def test_a_key_names_one_video(write: Callable[[Rows], Path]) -> None:
    """A number would depend on the order of the rows."""
    columns = {"video": "video", "key": "id", "caption": "text"}
    rows = [{"video": n, "id": "k", "text": n} for n in ("a.mp4", "b.mp4")]
    for given in (rows, rows[::-1]):
        with pytest.raises(CorpusError, match=r"row 3 .*: id = 'k' is also the key of an earlier"):
            read(write([{"video": "c.mp4", "id": "c", "text": "c"}, *given]), columns=columns)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.mp4", "a.mp4"),
        ("v/a.mp4", "./v//a.mp4"),
        ("HTTPS://h/a.mp4", "https://h/a.mp4"),
        ("https://h/a.mp4?X-Amz-Date=1&X-Amz-Signature=2", "https://h/a.mp4?X-Amz-Signature=3"),
    ],
)
def test_rows_of_one_video_may_have_one_key(
    write: Callable[[Rows], Path], one: str, other: str
) -> None:
    columns = {"video": "video", "key": "id", "caption": "text"}
    rows = [{"video": url, "id": "k", "text": n} for n, url in enumerate([one, other])]
    assert column(read(write(rows), columns=columns), "name") == ["k", "k@2"]


def test_numbering_repeated_names_leaves_them_unique() -> None:
    draw = random.Random(0)
    for _ in range(50):
        names = [draw.choice(["a", "a@2", "a@3", "b", "a@2@2"]) for _ in range(draw.randrange(12))]
        half = draw.randrange(len(names) + 1)
        chunks = pa.chunked_array([names[:half], names[half:]], pa.string())
        numbered = number_repeated(chunks).to_pylist()
        assert len(set(numbered)) == len(names)
        assert all(new.startswith(old) for new, old in zip(numbered, names, strict=True))


@pytest.mark.parametrize("name", ["key", "fps", "latents", "name", "identity"])
def test_a_kept_column_must_not_be_one_of_the_caches(
    write: Callable[[Rows], Path], name: str
) -> None:
    assert name in RESERVED
    with pytest.raises(ConfigError, match=rf"keep: '{name}' is a column that the cache already"):
        read(write([{"video": "a", name: 1}]), keep=[name])


def test_a_kept_column_must_not_come_twice(write: Callable[[Rows], Path]) -> None:
    with pytest.raises(ConfigError, match="'s' is named twice"):
        read(write([{"video": "a", "s": 1}]), keep=["s", "s"])


def test_kept_columns_have_inferred_types(tmp_path: Path) -> None:
    csv = tmp_path / "t.csv"
    csv.write_text("video,i,f,b,s,none\na,1,1,true,x,\nb,,2.5,false,,\n")
    schema = read(csv, keep=["i", "f", "b", "s", "none"]).table.schema
    kinds = [schema.field(n).type for n in ("i", "f", "b", "s", "none")]
    assert kinds == [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.null()]
    rows = [{"video": "a", "i": 1, "f": 1, "n": {"x": [1]}}, {"video": "b", "f": 2.5}]
    table = read(write_jsonl(tmp_path / "t.jsonl", rows), keep=["i", "f", "n"]).table
    assert table.schema.field("f").type == pa.float64()
    assert table["i"].to_pylist() == [1, None]
    assert table["n"].to_pylist() == [{"x": [1]}, None]


def test_a_table_without_rows_is_refused(write: Callable[[Rows], Path], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("video,caption\n")
    (tmp_path / "t.jsonl").write_text("\n\n")
    pq.write_table(pa.table({"video": pa.array([], pa.string())}), tmp_path / "t.parquet")
    for suffix in WRITERS:
        with pytest.raises(CorpusError, match=r"has no rows. Give a table with one row per video"):
            read(tmp_path / f"t.{suffix}")


# One format's own


def test_csv_takes_a_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(
        b'\xef\xbb\xbfvideo,caption\r\na.mp4,"x, ""y"""\r\n\r\nb.mp4,\r\n'
    )
    corpus = read(tmp_path / "t.csv")
    assert column(corpus, "name") == ["a.mp4", "b.mp4"]
    assert column(corpus, "caption") == ['x, "y"', None]


def test_a_csv_may_break_lines_in_any_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentcache.corpus.table_readers.CSV_BLOCK_BYTES", 64)
    rows = [{"video": f"{i}.mp4", "caption": f"{i}\n" * (i % 7)} for i in range(200)]
    corpus = read(write_csv(tmp_path / "t.csv", rows))
    assert column(corpus, "caption") == [r["caption"] or None for r in rows]


def test_a_csv_row_with_too_many_values_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("video,caption\na,b\nc,d,e\n")
    with pytest.raises(CorpusError, match=r"Row #3: Expected 2 columns, got 3.*double quotes"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize("text", [b"vid\xe9o\na\n", b"video\n" + b"a\n" * 9999 + b"caf\xe9\n"])
def test_a_csv_that_is_not_utf8_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(CorpusError, match=r"not a (readable )?CSV file in UTF-8"):
        read(tmp_path / "t.csv")


def test_a_csv_column_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("video,video\na,b\n")
    with pytest.raises(CorpusError, match="has 2 columns 'video'; rename one"):
        read(tmp_path / "t.csv")


def test_a_csv_value_longer_than_a_mebibyte_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f'video,caption\na,"{"x" * 3_000_000}"\n')
    assert len(column(read(tmp_path / "t.csv"), "caption")[0]) == 3_000_000


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{'video': 'a'}", "line 3 is not JSON: "),
        ('["a"]', "line 3 is a list, not an object"),
        (
            '{"video": 7.5, "caption": {"x": 1}}',
            r"line 3: column 'caption' is \{'x': 1\}, not text",
        ),
        ('{"video": "\\ud800"}', "line 3: column 'video' is .*ud800', not text"),
        (
            '{"video": "a", "s": "x"}',
            r"line 3: column 's' is 'x', not the type of the lines before",
        ),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"video": "a", "caption": "b", "s": 1}\n\n' + line + "\n")
    columns = {"video": "video", "caption": "caption"}
    with pytest.raises(CorpusError, match=rf"t\.jsonl: {why}"):
        read(tmp_path / "t.jsonl", columns=columns, keep=["s"])


def test_json_columns_that_are_not_asked_for_may_hold_anything(tmp_path: Path) -> None:
    rows: Rows = [
        {"video": "a", "meta": 1},
        {"video": "b", "meta": "x"},
        {"video": "c", "meta": [1]},
    ]
    assert column(read(write_jsonl(tmp_path / "t.jsonl", rows)), "name") == ["a", "b", "c"]


def test_json_types_agree_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentcache.corpus.table_readers.JSON_ROWS", 2)
    rows: Rows = [{"video": str(i), "s": s} for i, s in enumerate([None, None, 1, 2, 2.5, None, 4])]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    assert column(read(path, keep=["s"]), "s") == [None, None, 1.0, 2.0, 2.5, None, 4.0]
    write_jsonl(path, [*rows, {"video": "z", "s": "text"}])
    with pytest.raises(CorpusError, match=r"column.* Make every value of"):
        read(path, keep=["s"])


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(CorpusError, match="is not a readable Parquet file"):
        read(tmp_path / "t.parquet")


def test_a_parquet_column_of_structs_is_no_path(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video": [{"path": "a", "size": 1}]}), tmp_path / "t.parquet")
    with pytest.raises(CorpusError, match=r"'video' \(role video\) holds struct<.*, not text"):
        read(tmp_path / "t.parquet")


def test_a_local_path_keeps_its_dots_for_the_file_system(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [{"video": "./a.mp4"}, {"video": "../b.mp4"}])
    assert column(read(table), "name") == ["./a.mp4", "../b.mp4"]
    assert column(read(table), "url") == [f"{tmp_path}/a.mp4", f"{tmp_path}/../b.mp4"]


def test_a_path_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [{"video": "a"}, {"video": "ftp://me:hunter22@h/a.mp4"}])
    with pytest.raises(CorpusError, match=r"row 2 .*carries a password") as caught:
        read(table)
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "path", "url"),
    [
        ("s3://b/x/", "../y.mp4", "s3://b/y.mp4"),
        ("s3://b/", "../../y.mp4", "s3://b/y.mp4"),
        ("s3://b/x/", "a/./b/../c", "s3://b/x/a/c"),
        ("file:///tmp/x/", "../y", "file:///tmp/y"),
    ],
)
def test_dots_are_resolved_within_the_bucket(folder: str, path: str, url: str) -> None:
    assert resolve(folder, path) == url
