"""The corpus from files, on every file system: what is read, in which order, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from latentcache.errors import ConfigError, CorpusError
from latentcache.format.schemas import SOURCE_SCHEMA
from latentcache.storage.folder import Storage
from latentcache.storage.source_files import open_source
from tests.tools.corpora import column, make, read
from tests.tools.s3 import S3, s3_fixture, s3_server_fixture  # noqa: F401 - fixtures


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
    assert column(read(f"{tmp_path}/.t*/*"), "name") == [".trash/b.mp4"]


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


def test_names_that_are_not_utf8_are_shown_with_their_number(tmp_path: Path) -> None:
    make(tmp_path, *(f"{letter}\udcff.mp4" for letter in "abcde"))
    with pytest.raises(
        CorpusError, match=r"names of 5 files .*'a\\udcff.mp4', .*'c\\.* and 2 more"
    ):
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


# Other file systems


def put_all(url: str, options: dict[str, Any], names: Sequence[str]) -> None:
    store = Storage(url, options)
    for name in names:
        store.write(name, name.encode())


@pytest.mark.parametrize("kind", ["memory", pytest.param("s3", marks=pytest.mark.slow)])
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
