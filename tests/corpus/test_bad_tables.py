"""Tables and folders that are not what they should be: refused by name and line, and no row is lost."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.errors import CorpusError
from tests.tools.corpora import column, make, read


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"video,caption\na,ok\nb,caf\xe9\n", r"Row #3: .*invalid UTF8"),
        ("t.csv", b"vid\xe9o\na\n", "header cannot be read.*Save it as UTF-8"),
        ("t.csv", "video,caption\na,b\n".encode("utf-16"), "header cannot be read"),
        ("t.csv", b"video,caption\na\n", r"Row #2: Expected 2 columns, got 1"),
        ("t.csv", b'video,caption\na,x\nb,"open\nc,y\n', r"opened in the row of line 3 is never"),
        ("t.csv", b"", "has no column 'video'. It has: none"),
        ("t.csv", b"video;caption\na;x\n", "no column 'video'. It has: 'video;caption'"),
        ("t.jsonl", b'{"video":"a"}\n{"video":\n', "line 2 is not JSON"),
        ("t.jsonl", b'{"video":"a"}\n{"video":"\xe9"}\n', "line 2 is not JSON: .*utf-8"),
        ("t.jsonl", b'{"video":"a"}\n{"video":["b"]}\n', r"line 2: column 'video' is \['b'\], not text"),
        ("t.parquet", b"PAR1" + bytes(100), "is not a readable Parquet file"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_names_the_place(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorpusError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("values", [[b"a", b"\xff"], [[1], [2]], [{"x": 1}, {"x": 2}]])
def test_a_parquet_column_that_is_no_text_is_refused(tmp_path: Path, values: list[object]) -> None:
    pq.write_table(pa.table({"video": ["a", "b"], "caption": values}), tmp_path / "t.parquet")
    with pytest.raises(CorpusError, match=r"'caption' \(role caption\) holds .*, not text"):
        read(tmp_path / "t.parquet")


def test_numbers_in_place_of_text_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"video": 7, "caption": 1.5}\n')
    assert column(read(tmp_path / "t.jsonl"), "name") == ["7"]
    assert column(read(tmp_path / "t.jsonl"), "caption") == ["1.5"]


def test_an_odd_number_of_quotes_may_be_inches(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('video,caption\na.mp4,a 5" disk\nb.mp4,"a ""wide"" one"\n')
    assert column(read(tmp_path / "t.csv"), "caption") == ['a 5" disk', 'a "wide" one']


def test_captions_may_hold_any_character(tmp_path: Path) -> None:
    captions = ["nul \0", "bell \x07", "\u202eright to left", "a\r\nb", "w " * 500_000 + "end"]
    rows = "".join(f'{i}.mp4,"{caption}"\n' for i, caption in enumerate(captions))
    (tmp_path / "t.csv").write_bytes(("video,caption\n" + rows).encode())
    assert column(read(tmp_path / "t.csv"), "caption") == captions


def test_a_path_may_leave_the_folder_of_its_table(tmp_path: Path) -> None:
    make(tmp_path, "other/a.mp4", "tables/x")
    (tmp_path / "tables" / "t.csv").write_text("video\n../other/a.mp4\n")
    (url,) = column(read(tmp_path / "tables" / "t.csv"), "url")
    assert Path(url).samefile(tmp_path / "other" / "a.mp4")


def test_links_that_lead_nowhere_are_sources_that_will_say_so(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    assert column(read(tmp_path), "name") == ["a.mp4", "gone.mp4", "loop.mp4"]


def test_a_caption_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "b.mp4", "b.txt")
    (tmp_path / "a.txt").symlink_to("nowhere")
    with pytest.raises(CorpusError, match=r"the caption file .*/a\.txt cannot be read"):
        read(tmp_path)
