"""Where relative paths in kept columns start: the folder of their own file, however the corpus is named."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from tests.tools.corpora import make, read, write_parquet
from tests.tools.http_files import serve
from tests.tools.tars import write_tar

MEMBERS = [("a.mp4", b""), ("a.json", b'{"depth": "a.npy"}')]
ROWS = [{"video": "1.mp4", "depth": "1.npy"}]


@pytest.fixture(name="tables")
def tables_fixture(tmp_path: Path) -> Path:
    """A folder of two tables, with others in folders beside it and links to it."""
    for folder in ("tables", "other"):
        (tmp_path / folder).mkdir()
        write_parquet(tmp_path / folder / "a.parquet", ROWS)
    write_parquet(tmp_path / "tables" / "b.parquet", [{"video": "2.mp4", "depth": "2.npy"}])
    (tmp_path / "link").symlink_to(tmp_path / "tables")
    return tmp_path / "tables"


@pytest.mark.parametrize("end", ["", "/", "//", "/*.parquet", "/[ab].parquet", "/a.parquet"])
def test_tables_in_one_folder_start_there(tables: Path, end: str) -> None:
    for start, folder in (("", tables), ("file://", tables), ("", tables.parent / "link")):
        assert read(f"{start}{folder}{end}").folder == str(folder)


def test_a_path_may_be_relative(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tables)
    for source in (".", "a.parquet", "*.parquet", "../tables"):
        assert os.path.normpath(read(source).folder) == str(tables)


@pytest.mark.parametrize("glob", ["*/a.parquet", "tables/", "**/*.parquet"])
def test_tables_in_several_folders_start_at_none(tables: Path, glob: str) -> None:
    (tables / "deep").mkdir()
    write_parquet(tables / "deep" / "c.parquet", [{"video": "3.mp4", "depth": "3.npy"}])
    assert read(tables.parent / glob).folder == ""


def test_a_glob_over_folders_that_finds_one_starts_there(tables: Path) -> None:
    (tables.parent / "link").unlink()
    assert read(f"{tables.parent}/*/b.parquet").folder == str(tables)


@pytest.mark.parametrize("end", ["", "/", "/*.tar", "/0.tar"])
def test_members_of_tar_files_start_at_the_tar_file(tmp_path: Path, end: str) -> None:
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards/0.tar", MEMBERS)
    assert read(f"{tmp_path}/shards{end}", keep=["depth"]).folder == f"{tmp_path}/shards"


@pytest.mark.parametrize("end", ["", "/", "/*.mp4", "/**/*.mp4"])
def test_a_folder_of_videos_is_its_own(tmp_path: Path, end: str) -> None:
    make(tmp_path, "videos/a.mp4", "videos/b/c.mp4")
    assert read(f"{tmp_path}/videos{end}").folder == f"{tmp_path}/videos"


@pytest.mark.parametrize("end", ["", "/", "/*.parquet", "/a.parquet"])
def test_tables_at_a_url_start_in_its_folder(tables: Path, end: str) -> None:
    for path in tables.iterdir():
        fsspec.filesystem("memory").pipe(f"/start/tables/{path.name}", path.read_bytes())
    assert read(f"memory://start/tables{end}").folder == "memory://start/tables"


def test_a_table_in_a_root_starts_there(tables: Path) -> None:
    fsspec.filesystem("memory").pipe("/root.parquet", (tables / "a.parquet").read_bytes())
    assert read("memory://root.parquet").folder == "memory://"


@pytest.mark.slow
def test_a_signed_table_starts_at_its_folder(tables: Path) -> None:
    with serve(tables.parent) as server:
        url = f"{server.url}/tables"
        assert read(f"{url}/a.parquet?X-Sig=a/b").folder == url
