"""Files in a table's own columns, as Hugging Face's data sets have them: Parquet, and Arrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentcache.corpus.stamps import stamp_sources
from latentcache.decoders.identity import identify_url
from latentcache.errors import ClipError, CorpusError
from latentcache.storage.part_files import open_whole_or_part
from latentcache.storage.parts import TableRow
from tests.tools.corpora import column, make, read
from tests.tools.http_files import serve

FILES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
IMAGES = {"image": "image", "caption": "text"}


def content_of(url: str) -> bytes:
    with open_whole_or_part(url) as file:
        return file.read()


def table_of(*files: Any, kind: pa.DataType = FILES) -> pa.Table:
    texts = [f"text {n}" for n in range(len(files))]
    return pa.table({"image": pa.array(list(files), kind), "text": texts})


def inside(data: bytes, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}


def save_to_disk(folder: Path, *tables: pa.Table) -> Path:
    """Write what `datasets.Dataset.save_to_disk` does: streams of batches, and two files of JSON."""
    folder.mkdir()
    for n, table in enumerate(tables):
        path = folder / f"data-{n:05d}-of-{len(tables):05d}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            for batch in table.to_batches(max_chunksize=2):
                writer.write_batch(batch)
    make(folder, "cache-0123456789abcdef.arrow", "state.json", "dataset_info.json")
    return folder


def test_files_in_parquet_tables_are_sources_by_row(tmp_path: Path) -> None:
    files = [inside(b"0" * 999, "a.JPG"), inside(b"1", "clip.mp4"), inside(b"2")]
    pq.write_table(table_of(*files), tmp_path / "train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(table_of(inside(b"3", "b.png")), tmp_path / "train-00001-of-00002.parquet")
    corpus = read(tmp_path, columns=IMAGES)
    first, second = (f"train-0000{n}-of-00002.parquet" for n in range(2))
    assert column(corpus, "name") == [f"{first}/0", f"{first}/1", f"{first}/2", f"{second}/0"]
    assert column(corpus, "kind") == ["image", "video", "image", "image"]
    assert column(corpus, "caption") == ["text 0", "text 1", "text 2", "text 0"]
    assert [content_of(u) for u in column(corpus, "url")] == [b"0" * 999, b"1", b"2", b"3"]
    single = read(tmp_path / second, columns={**IMAGES, "key": "text"})
    assert column(single, "name") == ["text 0"]
    assert column(read(tmp_path / second, columns=IMAGES), "name") == [f"{second}/0"]


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_without_bytes_are_paths_and_empty_rows_are_refused(
    tmp_path: Path, statistics: bool
) -> None:
    table = tmp_path / "t.parquet"
    rows = [inside(b"0"), {"bytes": None, "path": "x/b.jpg"}]
    pq.write_table(table_of(*rows), table, write_statistics=statistics)
    assert column(read(table, columns=IMAGES), "url")[1] == f"{tmp_path}/x/b.jpg"
    assert column(read(table, columns=IMAGES), "name") == ["t.parquet/0", "x/b.jpg"]
    for empty in (None, {"bytes": None, "path": None}):
        pq.write_table(table_of(*rows, empty), table, write_statistics=statistics)
        with pytest.raises(CorpusError, match=r"row 3 .* is empty"):
            read(table, columns=IMAGES)


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    ids=["large_string", "string_view", "dictionary"],
)
def test_paths_may_be_any_kind_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    files = pa.struct([("path", kind), ("bytes", pa.binary())])
    rows = [inside(b"0", "a.jpg"), {"bytes": None, "path": "b.mp4"}, inside(b"1", "c.mp4")]
    with pq.ParquetWriter(tmp_path / "t.parquet", table_of(rows[0], kind=files).schema) as writer:
        for some in (rows[:2], rows[2:]):
            writer.write_table(table_of(*some, kind=files))
    found = [read(tmp_path / "t.parquet", columns=IMAGES)]
    found.append(
        read(save_to_disk(tmp_path / "saved", table_of(*rows, kind=files)), columns=IMAGES)
    )
    for corpus in found:
        assert column(corpus, "kind") == ["image", "video", "video"]
        assert column(corpus, "name")[1] == "b.mp4"
        first, _, last = (u.partition("::")[0] for u in column(corpus, "url"))
        assert (first, last) == ("row://image/0.jpg", "row://image/2.mp4")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes_will_do(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(table_of(b"0", b"1", kind=kind), tmp_path / "t.parquet")
    corpus = read(tmp_path, columns={"image": "image"})
    assert [content_of(u) for u in column(corpus, "url")] == [b"0", b"1"]
    pq.write_table(table_of([b"0"], kind=pa.list_(pa.binary())), tmp_path / "t.parquet")
    with pytest.raises(CorpusError, match="not text"):
        read(tmp_path, columns={"image": "image"})


def test_a_folder_of_save_to_disk_is_a_table(tmp_path: Path) -> None:
    tables = [table_of(*(inside(b"%d" % n, f"{n}.png") for n in range(5))), table_of(inside(b"x"))]
    corpus = read(save_to_disk(tmp_path / "saved", *tables), columns=IMAGES)
    assert [content_of(u) for u in column(corpus, "url")] == [b"0", b"1", b"2", b"3", b"4", b"x"]
    assert column(corpus, "name")[4:] == [
        "data-00000-of-00002.arrow/4",
        "data-00001-of-00002.arrow/0",
    ]
    assert corpus.ignored[".arrow"] == 1
    broken = next((tmp_path / "saved").glob("data-00000*"))
    broken.write_bytes(b"no")
    with pytest.raises(CorpusError, match=r"data-00000.* is not a readable Arrow file"):
        read(tmp_path / "saved", columns=IMAGES)


def test_a_changed_row_is_a_changed_source(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(table_of(inside(b"0"), inside(b"1")), table)
    urls = column(read(table, columns=IMAGES), "url")
    before, stamps = [identify_url(u) for u in urls], stamp_sources(urls, {})
    pq.write_table(table_of(inside(b"0"), inside(b"changed")), table)
    after = [identify_url(u) for u in urls]
    assert (after[0], after[1] != before[1]) == (before[0], True)
    assert stamp_sources(urls, {}) != stamps
    pq.write_table(table_of(inside(b"0")), table)
    with pytest.raises(ClipError, match=r"row 2 .* has 1 rows") as raised:
        identify_url(urls[1])
    assert raised.value.reason == "source_changed"
    table.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(ClipError, match="cannot be read") as raised:
        identify_url(urls[0])
    with pytest.raises(ClipError, match="cannot be read"):
        identify_url(TableRow(file=str(table), column="no such", row=0).url)
    table.unlink()
    with pytest.raises(ClipError) as raised:
        identify_url(urls[0])
    assert raised.value.reason == "missing"


def test_a_row_of_a_large_row_group_is_found_without_holding_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentcache.storage.row_bytes._MAX_KEPT_BYTES", 10)
    pq.write_table(table_of(*(inside(b"%d" % n) for n in range(40))), tmp_path / "t.parquet")
    urls = column(read(tmp_path, columns=IMAGES), "url")
    assert [content_of(u) for u in urls] == [b"%d" % n for n in range(40)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_remote_tables_are_listed_without_their_bytes(tmp_path: Path) -> None:
    files = [inside(bytes([n]) * (2 << 20), f"{n}.png") for n in range(4)]
    pq.write_table(
        table_of(*files),
        tmp_path / "t.parquet",
        row_group_size=1,
        compression="none",
        use_dictionary=False,
    )
    with serve(tmp_path) as server:
        corpus = read(f"{server.url}/t.parquet?sig=x", columns=IMAGES)
        assert column(corpus, "name") == [f"t.parquet/{n}" for n in range(4)]
        assert content_of(column(corpus, "url")[2]) == files[2]["bytes"]
        assert server.num_bytes < 8 << 20
