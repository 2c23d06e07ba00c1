"""Tables in several files: one logical table, in the order of names, and which file is the odd one."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from latentcache.config.sections import CorpusConfig
from latentcache.corpus import table_files
from latentcache.corpus.table_files import read_tables
from latentcache.errors import CorpusError
from tests.tools.corpora import WRITERS, column, make, read, write_csv, write_parquet


def test_a_folder_of_parquet_tables_is_one_table_in_the_order_of_names(tmp_path: Path) -> None:
    make(tmp_path, "_SUCCESS", "README.md", ".part.crc")
    write_parquet(tmp_path / "b.parquet", [{"video": "3.mp4", "caption": "c"}])
    write_parquet(
        tmp_path / "a.parquet", [{"video": "2.mp4", "caption": None}, {"video": "/x/1.mp4"}]
    )
    corpus = read(tmp_path)
    assert column(corpus, "name") == ["2.mp4", "/x/1.mp4", "3.mp4"]
    assert column(corpus, "url") == [f"{tmp_path}/2.mp4", "/x/1.mp4", f"{tmp_path}/3.mp4"]
    assert column(corpus, "caption") == [None, None, "c"]
    assert corpus.ignored == {".md": 1, "hidden": 1, "no suffix": 1}


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_glob_of_tables_is_one_table_and_paths_start_at_each_files_folder(
    tmp_path: Path, suffix: str
) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        rows = [{"video": "./a.mp4", "score": 1}, {"video": "s3://b/c.mp4", "score": 2}]
        WRITERS[suffix](tmp_path / folder / f"t.{suffix}", rows)
    corpus = read(f"{tmp_path}/*/*.{suffix}", columns={"video": "video"}, keep=["score"])
    assert column(corpus, "name") == ["x/a.mp4", "s3://b/c.mp4", "y/a.mp4", "s3://b/c.mp4@2"]
    assert column(corpus, "url")[0] == f"{tmp_path}/x/a.mp4"
    assert column(corpus, "score") == [1, 2, 1, 2]


def test_what_is_wrong_names_the_odd_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"video": "1.mp4", "caption": "x", "n": 1}])
    odd = tmp_path / "b.parquet"
    write_parquet(odd, [{"video": "2.mp4", "n": 2}])
    with pytest.raises(
        CorpusError, match=rf"^{odd} has not the same columns as .*a\.parquet has 'capt"
    ):
        read(tmp_path)
    columns = {"video": "video"}
    assert column(read(tmp_path, columns=columns), "name") == ["1.mp4", "2.mp4"]
    with pytest.raises(CorpusError, match=rf"^{odd} has no column 'caption'"):
        read(tmp_path, columns={**columns, "caption": "caption"})
    write_parquet(odd, [{"video": "2.mp4", "n": [2]}])
    with pytest.raises(CorpusError, match=rf"^{odd} has a column of another type"):
        read(tmp_path, columns=columns, keep=["n"])
    write_parquet(odd, [{"video": "2.mp4", "n": 1}, {"video": None, "n": 1}])
    with pytest.raises(CorpusError, match=rf"^{odd}: row 2 \(of the data"):
        read(tmp_path, columns=columns)
    odd.write_bytes(b"PAR1")
    with pytest.raises(CorpusError, match=rf"^{odd} is not a readable Parquet file"):
        read(tmp_path, columns=columns)


@pytest.mark.parametrize("suffix", WRITERS)
def test_many_tables_take_few_descriptors_and_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(table_files, "KEPT_BYTES", 1 << 16)
    monkeypatch.setattr(table_files, "to_sources", lambda data, *_: data)
    rows = [{"video": f"{n}.mp4", "caption": "a caption " * 50} for n in range(200)]
    files = [(f"{n}.{suffix}", f"{tmp_path}/{n}.{suffix}") for n in range(40)]
    for _, path in files:
        WRITERS[suffix](Path(path), rows)
    descriptors, allocated = len([*Path("/dev/fd").iterdir()]), pa.total_allocated_bytes()
    table = read_tables(CorpusConfig(source=str(tmp_path)), str(tmp_path), files)
    assert len([*Path("/dev/fd").iterdir()]) - descriptors <= 2 * table_files.NUM_THREADS
    assert pa.total_allocated_bytes() - allocated < table.nbytes // 8
    assert table.to_pylist() == rows * len(files)


def test_tables_of_several_kinds_are_no_corpus(tmp_path: Path) -> None:
    rows = [{"video": "1.mp4"}]
    write_parquet(tmp_path / "a.parquet", rows)
    write_csv(tmp_path / "b.csv", rows)
    assert column(read(tmp_path), "name") == ["1.mp4"]  # of a folder the Parquet tables
    with pytest.raises(CorpusError, match=r"several kinds, such as a\.parquet and b\.csv"):
        read(f"{tmp_path}/*")
    make(tmp_path, "c.mp4")
    assert column(read(tmp_path), "name") == ["c.mp4"]  # tables are beside the videos


@pytest.mark.parametrize("name", ["b.parquet", "b.tar"])
def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target, what in (("pipe", "named pipe"), ("nowhere", "link to what is not there")):
        link = tmp_path / name
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / target)
        with pytest.raises(CorpusError, match=rf"{name} is no regular file but a {what}"):
            read(f"{tmp_path}/b.*")
