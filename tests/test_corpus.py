"""The corpus: what is read, in which order, under which names, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.config import CorpusConfig
from latentcache.corpus import RESERVED, Corpus, read_corpus
from latentcache.corpus_tables import number_repeated, resolve
from latentcache.errors import ConfigError, CorpusError
from latentcache.storage import Storage, open_source
from latentcache.tables import SOURCE_SCHEMA
from tests.s3 import S3, s3_fixture, s3_server_fixture  # noqa: F401 - fixtures

Rows = list[dict[str, Any]]


def read(source: object, **config: Any) -> Corpus:
    return read_corpus(CorpusConfig(source=str(source), **config))


def column(corpus: Corpus, name: str) -> list[Any]:
    values: list[Any] = corpus.table[name].to_pylist()
    return values


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def write_csv(path: Path, rows: Rows) -> Path:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


@pytest.fixture(params=list(WRITERS))
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Rows], Path]:
    return lambda rows: WRITERS[request.param](tmp_path / f"table.{request.param}", rows)


# Files


def test_a_directory_gives_its_media_sorted_by_path_with_captions(tmp_path: Path) -> None:
    make(tmp_path, "b/2.MP4", "b/1.webm", "a.png", "B.jpg", "notes.md", "x.tar.gz", "README")
    (tmp_path / "b" / "1.txt").write_text("\n a dog runs \n", encoding="utf-8-sig")
    (tmp_path / "a.txt").write_text("   ")
    (tmp_path / "alone.txt").write_text("of nothing")
    corpus = read(tmp_path)
    assert corpus.table.schema.equals(SOURCE_SCHEMA)
    assert column(corpus, "name") == ["B.jpg", "a.png", "b/1.webm", "b/2.MP4"]
    assert column(corpus, "kind") == ["image", "image", "video", "video"]
    assert column(corpus, "caption") == [None, None, "a dog runs", None]
    assert column(corpus, "url")[2] == str(tmp_path / "b/1.webm")
    assert column(corpus, "frames") == [None] * 4
    assert corpus.ignored == {".gz": 1, ".md": 1, ".txt": 1, "no suffix": 1}


def test_hidden_files_are_counted_not_read(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "._a.mp4", ".trash/b.mp4")
    corpus = read(tmp_path)
    assert column(corpus, "name") == ["a.mp4"]
    assert corpus.ignored == {"hidden": 2}
    assert column(read(tmp_path / ".trash"), "name") == ["b.mp4"]


def test_a_relative_directory_gives_absolute_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "d/a.mp4")
    monkeypatch.chdir(tmp_path)
    for source in ("d", "d/", "./d", "d/*.mp4", "d/a.mp4"):
        corpus = read(source)
        assert column(corpus, "name") == ["a.mp4"]
        assert Path(column(corpus, "url")[0]).samefile(tmp_path / "d/a.mp4")
        assert column(corpus, "url")[0].startswith("/")
    assert column(read("**/*.mp4"), "name") == ["d/a.mp4"]


def test_a_glob_names_files_from_its_fixed_part_and_finds_captions_beside_them(
    tmp_path: Path,
) -> None:
    make(tmp_path, "x/1/a.mp4", "x/2/b.mp4", "x/2/c.webm", "x/d.mp4", "y/e.mp4")
    (tmp_path / "x/2/b.txt").write_text("b's")
    corpus = read(f"{tmp_path}/x/*/*.mp4")
    assert column(corpus, "name") == ["1/a.mp4", "2/b.mp4"]
    assert column(corpus, "caption") == [None, "b's"]
    assert column(read(f"{tmp_path}/x/**/*.mp4"), "name") == ["1/a.mp4", "2/b.mp4", "d.mp4"]
    assert column(read(f"{tmp_path}/**"), "name")[-1] == "y/e.mp4"
    assert column(read(f"{tmp_path}/x/2/[bc].*"), "name") == ["b.mp4", "c.webm"]


def test_a_directory_whose_name_looks_like_a_glob_is_a_directory(tmp_path: Path) -> None:
    make(tmp_path, "clips [1]/a.mp4")
    assert column(read(tmp_path / "clips [1]"), "name") == ["a.mp4"]
    assert column(read(tmp_path / "clips [1]" / "a.mp4"), "name") == ["a.mp4"]


def test_one_file_is_a_corpus_with_its_caption(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "a.txt").write_text("one")
    corpus = read(tmp_path / "a.mp4")
    assert column(corpus, "name") == ["a.mp4"]
    assert column(corpus, "caption") == ["one"]


def test_names_may_hold_anything_that_is_text(tmp_path: Path) -> None:
    names = ["a b.mp4", "c\nd.mp4", "é.mp4", "x::y.mp4", "z#?*.mp4", "💡/💡.mp4"]
    make(tmp_path, *names)
    corpus = read(tmp_path)
    assert column(corpus, "name") == sorted(names)
    for url in column(corpus, "url"):
        with open_source(url) as file:
            assert file.read() == b""


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    bad = bytes(tmp_path) + b"/a\xff.mp4"
    with open(bad, "wb"):  # noqa: PTH123 - pathlib takes no bytes
        pass
    with pytest.raises(CorpusError, match=r"file name 'a\\udcff.mp4' is not UTF-8.*Rename"):
        read(tmp_path)


def test_a_caption_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(CorpusError, match=r"caption file .*/a\.txt is not UTF-8.*Save it as UTF-8"):
        read(tmp_path)


def test_a_directory_without_media_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no video and no image; seen: no files at all"):
        read(tmp_path)
    make(tmp_path, "a.pdf", "b.pdf", "c.csv")
    with pytest.raises(
        CorpusError, match=r"seen: \.pdf \(2\), \.csv \(1\)\. To read a table, name"
    ):
        read(tmp_path)


def test_what_is_not_there_says_so(tmp_path: Path) -> None:
    for name in ("nothing", "nothing.csv", "nothing.mp4", "nothing/*.mp4"):
        with pytest.raises(CorpusError, match=r"is not there\. Give an existing"):
            read(tmp_path / name)
    with pytest.raises(CorpusError, match="no files at all"):
        read(tmp_path / "*.mp4")


def test_a_file_of_an_unknown_kind_says_what_is_known(tmp_path: Path) -> None:
    make(tmp_path, "a.docx")
    with pytest.raises(
        CorpusError, match=r"seen: \.docx \(1\)\. Files are known by their suffix: mp4"
    ):
        read(tmp_path / "a.docx")


@pytest.mark.parametrize("config", [{"keep": ["score"]}, {"columns": {"video": "path"}}])
def test_columns_need_a_table(tmp_path: Path, config: dict[str, Any]) -> None:
    make(tmp_path, "a.mp4")
    with pytest.raises(ConfigError, match=r"names columns of a table, but .* is a directory"):
        read(tmp_path, **config)


# Tables


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
    with pytest.raises(
        ConfigError, match=rf"keep: '{name}' is the name of a column that the cache"
    ):
        read(write([{"video": "a", name: 1}]), keep=[name])


def test_a_kept_column_must_not_come_twice(write: Callable[[Rows], Path]) -> None:
    with pytest.raises(ConfigError, match="'s' is named twice"):
        read(write([{"video": "a", "s": 1}]), keep=["s", "s"])


def test_kept_columns_have_inferred_types(tmp_path: Path) -> None:
    csv = tmp_path / "t.csv"
    csv.write_text("video,i,f,b,s,none\na,1,1,true,x,\nb,,2.5,false,,\n")
    schema = read(csv, keep=["i", "f", "b", "s", "none"]).table.schema
    kinds = [schema.field(n).type for n in ("i", "f", "b", "s", "none")]
    assert kinds == [pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.string()]
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
        with pytest.raises(CorpusError, match=r"has no rows. Give a table with one row a video"):
            read(tmp_path / f"t.{suffix}")


# One format's own


def test_csv_takes_a_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(
        b'\xef\xbb\xbfvideo,caption\r\na.mp4,"x, ""y"""\r\n\r\nb.mp4,\r\n'
    )
    corpus = read(tmp_path / "t.csv")
    assert column(corpus, "name") == ["a.mp4", "b.mp4"]
    assert column(corpus, "caption") == ['x, "y"', None]


def test_a_csv_row_with_too_many_values_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("video,caption\na,b\nc,d,e\n")
    with pytest.raises(CorpusError, match=r"Row #3: Expected 2 columns, got 3.*double quotes"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize("text", [b"vid\xe9o\na\n", b"video\n" + b"a\n" * 9999 + b"caf\xe9\n"])
def test_a_csv_that_is_not_utf8_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(text)
    with pytest.raises(CorpusError, match="not a CSV file in UTF-8"):
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
        ('{"video": 7.5, "caption": ["x"]}', r"line 3: column 'caption' is \['x'\], not text"),
        ('{"video": "\\ud800"}', "line 3: column 'video' is .*ud800', not text"),
        ('{"video": "a", "s": "x"}', r"line 3: column 's' is 'x', not what the lines before hold"),
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
    monkeypatch.setattr("latentcache.table_files.JSON_ROWS", 2)
    rows: Rows = [{"video": str(i), "s": s} for i, s in enumerate([None, None, 1, 2, 2.5, None, 4])]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    assert column(read(path, keep=["s"]), "s") == [None, None, 1.0, 2.0, 2.5, None, 4.0]
    write_jsonl(path, [*rows, {"video": "z", "s": "text"}])
    with pytest.raises(CorpusError, match=r"column.* Make every value of"):
        read(path, keep=["s"])


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(CorpusError, match="is not a Parquet file that can be read"):
        read(tmp_path / "t.parquet")


def test_a_parquet_column_of_structs_is_no_path(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video": [{"path": "a", "bytes": b""}]}), tmp_path / "t.parquet")
    with pytest.raises(CorpusError, match=r"'video' \(role video\) holds struct<.*, not text"):
        read(tmp_path / "t.parquet")


def test_a_path_with_a_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [{"video": "a"}, {"video": "ftp://me:hunter22@h/a.mp4"}])
    with pytest.raises(CorpusError, match=r"row 2 .*carries a password") as caught:
        read(table)
    assert "hunter22" not in str(caught.value)


# Other file systems


def put_all(url: str, options: dict[str, Any], names: Sequence[str]) -> None:
    store = Storage(url, options)
    for name in names:
        store.write(name, name.encode())


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_object_stores_give_the_same_corpus(kind: str, request: pytest.FixtureRequest) -> None:
    s3: S3 | None = request.getfixturevalue("s3") if kind == "s3" else None
    url, options = (f"{s3.url}/data", s3.options) if s3 else ("memory://corpus/data", {})
    put_all(url, options, ["v/b.mp4", "v/a.png", "v/deep/é c.webm", "v/b.txt", "v/x.md"])
    table = b"path,text\nv/b.mp4,one\n./v/a.png,two\n../data/v/b.mp4,three\n"
    Storage(url, options).write("t.csv", table)
    config = {"storage_options": options}
    for source in (f"{url}/v", f"{url}/v/", f"{url}/v/**"):
        corpus = read(source, **config)
        assert column(corpus, "name") == ["a.png", "b.mp4", "deep/é c.webm"]
        assert column(corpus, "url")[1] == f"{url}/v/b.mp4"
        assert column(corpus, "caption") == [None, "v/b.txt", None]
    assert corpus.ignored == {".md": 1}
    assert column(read(f"{url}/v/*.mp4", **config), "caption") == ["v/b.txt"]
    assert column(read(f"{url}/v/b.mp4", **config), "name") == ["b.mp4"]
    corpus = read(f"{url}/t.csv", columns={"video": "path", "caption": "text"}, **config)
    assert column(corpus, "name") == ["v/b.mp4", "./v/a.png", "../data/v/b.mp4"]
    for opened, name in zip(column(corpus, "url"), ["v/b.mp4", "v/a.png", "v/b.mp4"], strict=True):
        assert opened.startswith(f"{kind}://")
        with open_source(opened, options) as file:
            assert file.read() == name.encode()
    with pytest.raises(CorpusError, match="is not there"):
        read(f"{url}/nothing", **config)


def test_a_table_at_the_root_of_a_file_system_is_read() -> None:
    put_all("memory://", {}, ["root.mp4"])
    Storage("memory://").write("root.csv", b"video\nroot.mp4\n")
    assert column(read("memory://root.csv"), "url") == ["memory://root.mp4"]


def test_a_folder_of_a_package_is_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "demo_clips/__init__.py", "demo_clips/data/a.mp4")
    monkeypatch.syspath_prepend(tmp_path)
    corpus = read("package://demo_clips/data")
    assert column(corpus, "url") == ["package://demo_clips/data/a.mp4"]
    with open_source(column(corpus, "url")[0]) as file:
        assert file.read() == b""


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
