"""Readers of .csv, .jsonl and .parquet files: the wanted columns, as Arrow.

Columns with a role come as strings from CSV and JSON lines (`source_table` parses numbers and names
the row). Columns of `keep` come in the type that Arrow infers.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import IO, Any, NoReturn, Protocol, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from latentcache.core.json_text import parse_json
from latentcache.corpus.embedded import arrow_table, files_inside, parquet_rows
from latentcache.corpus.wanted import Wanted
from latentcache.errors import CorpusError, StorageError
from latentcache.storage.row_bytes import ARROW
from latentcache.storage.spill import BATCH_ROWS, Spill
from latentcache.storage.urls import is_url

#: Rows of JSON lines that are held as Python objects at a time.
JSON_ROWS = 1 << 16
#: The size of a block. No value can be longer than one, and Arrow's own 1 MiB is short for some captions.
CSV_BLOCK_BYTES = 16 << 20


class Reader(Protocol):
    """Reads the wanted columns of a table. spill: where its rows go, if not to one of its own."""

    def __call__(self, file: IO[bytes], wanted: Wanted, spill: Spill | None = None) -> pa.Table:
        """Return the columns. Raises CorpusError, StorageError; MachineError if the disk is full."""
        ...


def read_csv(file: IO[bytes], wanted: Wanted, spill: Spill | None = None) -> pa.Table:
    """Read columns of a CSV file with a header: RFC 4180 quotes, UTF-8 with or without a BOM."""
    columns = wanted.choose(_csv_header(file, wanted.where))
    _check_quotes(file, wanted.where)
    try:
        try:
            found = _parse_csv(file, columns, wanted, use_threads=True)
        except pa.ArrowInvalid:  # the serial reader is slower, but names the row
            found = _parse_csv(file, columns, wanted, use_threads=False)
    except pa.ArrowInvalid as error:
        raise CorpusError(
            f"{wanted.where} is not a readable CSV file in UTF-8: {error}. Correct that "
            "row; values with commas, quotes or line breaks belong in double quotes."
        ) from None
    return (spill or Spill()).put(found)


def _csv_header(file: IO[bytes], where: str) -> list[str]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        header = next(csv.reader(text), [])
        ",".join(header).encode()
    except (UnicodeEncodeError, csv.Error) as error:
        raise CorpusError(
            f"{where} is not a CSV file in UTF-8: its header cannot be read ({error}). Save it as UTF-8."
        ) from None
    else:
        return header
    finally:
        text.detach()


def _check_quotes(file: IO[bytes], where: str) -> None:
    """Raise CorpusError if a quote is never closed: the rows after it would be part of one value."""
    file.seek(0)
    num_quotes = sum(block.count(b'"') for block in iter(lambda: file.read(1 << 20), b""))
    if num_quotes % 2 == 0:
        return
    file.seek(0)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
    limit = csv.field_size_limit(sys.maxsize)
    rows = csv.reader(text, strict=True)
    line = 0
    try:
        for _ in rows:
            line = rows.line_num
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise CorpusError(
                f"{where}: a quote that is opened in the row of line {line + 1} is never closed, so "
                "all rows from there on would be one value. Close it, or double it."
            ) from None
    finally:
        csv.field_size_limit(limit)
        text.detach()


def _parse_csv(file: IO[bytes], columns: list[str], wanted: Wanted, use_threads: bool) -> pa.Table:
    file.seek(0)
    return pyarrow.csv.read_csv(
        pa.PythonFile(file, mode="r"),
        read_options=pyarrow.csv.ReadOptions(use_threads=use_threads, block_size=CSV_BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=columns,
            column_types={c: pa.string() for c in columns if c in wanted.text},
        ),
    )


def _read_columns(parquet: pq.ParquetFile, columns: list[str], spill: Spill) -> pa.Table:
    """Read columns, of which no more than some rows are in memory."""
    schema = pa.schema([parquet.schema_arrow.field(name) for name in columns])
    batches = parquet.iter_batches(BATCH_ROWS, columns=columns)
    parts = [spill.put(pa.Table.from_batches([each]).select(columns)) for each in batches]
    read = pa.concat_tables(parts) if parts else schema.empty_table()
    return read.replace_schema_metadata(None)


def read_parquet(file: IO[bytes], wanted: Wanted, spill: Spill | None = None) -> pa.Table:
    """Read columns of a Parquet file, in the file's own types."""
    spill = spill or Spill()
    try:
        parquet = pq.ParquetFile(file)
        columns = wanted.choose(parquet.schema_arrow.names)
        inside = files_inside(parquet.schema_arrow, columns, wanted)
        if not inside:
            return _read_columns(parquet, columns, spill)
        rest = [name for name in columns if name not in inside]
        found = parquet.read(columns=rest) if rest else pa.table({})
        media = {name: parquet_rows(parquet, name, wanted.url) for name in inside}
        return spill.put(pa.table({n: media[n] if n in media else found[n] for n in columns}))
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{wanted.where} is not a readable Parquet file: {str(error).splitlines()[0]}"
        ) from None


def read_arrow(
    file: IO[bytes],  # noqa: ARG001 - it is mapped, not read
    wanted: Wanted,
    spill: Spill | None = None,  # noqa: ARG001 - it is mapped
) -> pa.Table:
    """Read columns of a file that `datasets.save_to_disk` wrote, or another Arrow file, on this machine."""
    if is_url(wanted.url):
        raise CorpusError(
            f"{wanted.where} is an Arrow file on another machine, of which no row can be read without all "
            "before it. Copy the folder here, or write it with Dataset.to_parquet."
        )
    try:
        return arrow_table(wanted)
    except pa.ArrowException as error:
        raise CorpusError(
            f"{wanted.where} is not a readable Arrow file: {str(error).splitlines()[0]}"
        ) from None


def read_jsonl(file: IO[bytes], wanted: Wanted, spill: Spill | None = None) -> pa.Table:
    """Read columns of JSON lines; a column that a line lacks is null there."""
    names = list(dict.fromkeys([*wanted.required, *wanted.optional]))
    have: dict[str, None] = {}
    batches, spill = list[pa.Table](), spill or Spill()
    rows: list[tuple[int, Mapping[str, Any]]] = []
    with io.BufferedReader(cast(io.RawIOBase, file), 1 << 20) as lines:
        for number, line in enumerate(lines, 1):
            if row := _json_row(line, f"{wanted.where}: line {number}"):
                have.update(dict.fromkeys(row))
                rows.append((number, row))
            if len(rows) == JSON_ROWS:
                batches.append(spill.put(_json_batch(rows, names, wanted)))
                rows = []
    if rows or not batches:
        batches.append(spill.put(_json_batch(rows, names, wanted)))
    batches = _texts_alike(batches, wanted, spill)
    columns = wanted.choose(list(have)) if have else list(names)
    try:
        return pa.concat_tables(batches, promote_options="permissive").select(columns)
    except pa.ArrowException as error:
        raise CorpusError(
            f"{wanted.where}: a column of corpus.keep changes its type: {error}. "
            "Make every value of a column a number, or every value a text."
        ) from None


def read_json(file: IO[bytes], wanted: Wanted, spill: Spill | None = None) -> pa.Table:
    """Read columns of a JSON array of objects; or of JSON lines that are called so."""
    spill = spill or Spill()
    text = file.read().removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith(b"["):
        return read_jsonl(io.BytesIO(text), wanted, spill)
    try:
        items = parse_json(text)
    except ValueError as error:
        raise CorpusError(
            f"{wanted.where} is not JSON: {error}. Write one array of objects, or one object per line."
        ) from None
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise CorpusError(
                f"{wanted.where}: item {number} is a {type(item).__name__}, not an object. Write an array "
                'of objects, such as [{"video": "a.mp4", "caption": "a dog runs"}].'
            )
    wanted = replace(wanted, row_word="item")
    names = list(dict.fromkeys([*wanted.required, *wanted.optional]))
    have = list(dict.fromkeys(key for item in items for key in item))
    columns = wanted.choose(have) if have else names
    found = _json_batch(list(enumerate(items, 1)), names, wanted).select(columns)
    return spill.put(found)


def _json_row(line: bytes, where: str) -> dict[str, Any] | None:
    line = line.removeprefix(b"\xef\xbb\xbf").strip()
    if not line:
        return None
    try:
        row = parse_json(line)
    except ValueError as error:
        raise CorpusError(
            f"{where} is not JSON: {error}. Write one JSON object per line."
        ) from None
    if not isinstance(row, dict):
        raise CorpusError(
            f"{where} is a {type(row).__name__}, not an object. Write one object per line, such as "
            '{"video": "a.mp4", "caption": "a dog runs"}.'
        )
    return row


def _json_batch(
    rows: Sequence[tuple[int, Mapping[str, Any]]], names: Sequence[str], wanted: Wanted
) -> pa.Table:
    columns = {}
    for name in names:
        try:
            if name in wanted.text:
                columns[name] = _json_texts([row.get(name) for _, row in rows], name, wanted)
            else:
                columns[name] = pa.array([row.get(name) for _, row in rows])
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            _fail_json(rows, name, wanted)
    return pa.table(columns)


def _json_texts(values: Sequence[Any], name: str, wanted: Wanted) -> pa.Array:
    """Return texts; lists of texts if a value is one, and the column may hold them."""
    if name != wanted.texts or not any(isinstance(value, list) for value in values):
        return pa.array([_json_text(value) for value in values], pa.string())
    lists = [value if isinstance(value, list) or value is None else [value] for value in values]
    texts = [None if some is None else [_json_text(text) for text in some] for some in lists]
    return pa.array(texts, pa.list_(pa.string()))


def _texts_alike(batches: list[pa.Table], wanted: Wanted, spill: Spill) -> list[pa.Table]:
    """Return batches of which all hold lists of texts in the column that may, if one of them does."""
    name = wanted.texts
    if name is None or name not in batches[0].column_names:
        return batches
    lists = [batch for batch in batches if pa.types.is_list(batch[name].type)]
    if len(lists) in (0, len(batches)):
        return batches
    return [b if pa.types.is_list(b[name].type) else spill.put(_of_one(b, name)) for b in batches]


def _of_one(batch: pa.Table, name: str) -> pa.Table:
    """Return a batch whose texts are lists of one; null stays null."""
    texts = batch[name].combine_chunks()
    ends = pc.cumulative_sum(texts.is_valid().cast(pa.int32()))
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), ends])
    lists = pa.ListArray.from_arrays(offsets, texts.drop_null(), mask=texts.is_null())
    return batch.set_column(batch.column_names.index(name), name, lists)


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return json.dumps(value)
    raise TypeError


def _fail_json(
    rows: Sequence[tuple[int, Mapping[str, Any]]], name: str, wanted: Wanted
) -> NoReturn:
    """Raise CorpusError for the first line whose value does not match the type of those before it."""
    kind: pa.DataType = pa.null()
    for number, row in rows:
        value = row.get(name)
        try:
            if name in wanted.text:
                _json_texts([value], name, wanted)
                continue
            here = pa.array([value]).type
            kind = (
                pa.unify_schemas(
                    [pa.schema([("x", kind)]), pa.schema([("x", here)])],
                    promote_options="permissive",
                )
                .field(0)
                .type
            )
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            expected = (
                "text"
                if name in wanted.text
                else f"the type of the {wanted.row_word}s before ({kind})"
            )
            raise CorpusError(
                f"{wanted.where}: {wanted.row_word} {number}: column {name!r} is {ascii(value)[:200]}, not "
                f"{expected}. "
                "Make every value of the column the same type."
            ) from None
    raise CorpusError(f"{wanted.where}: the values of column {name!r} are of several types.")


READERS: Mapping[str, Reader] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "json": read_json,
    "parquet": read_parquet,
    ARROW: read_arrow,
}
