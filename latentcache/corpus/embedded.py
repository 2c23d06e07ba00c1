"""Files in a table's own columns, as Hugging Face's data sets have them: each becomes the URL of its row.

Of a Parquet table the bytes are not read for it, and those of an Arrow file are mapped.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from latentcache.corpus.column_types import is_text
from latentcache.corpus.wanted import Wanted
from latentcache.storage.parts import TableRow
from latentcache.storage.row_bytes import arrow_batches, bytes_in, holds_bytes, leaf_of

#: Rows whose bytes are looked at together, where a table does not say which rows have some.
_FEW_ROWS = 64


def files_inside(schema: pa.Schema, columns: Sequence[str], wanted: Wanted) -> list[str]:
    """Return the columns of sources that hold files, and not paths."""
    return [c for c in columns if c in wanted.media and holds_bytes(schema.field(c).type)]


def parquet_rows(parquet: pq.ParquetFile, column: str, url: str) -> pa.Array:
    """Return the URLs of the rows of a Parquet file's column; of a row without bytes its path, or null."""
    kind = parquet.schema_arrow.field(column).type
    groups = range(parquet.metadata.num_row_groups)
    paths: list[str | None] = [None] * parquet.metadata.num_rows
    if _has_paths(kind):  # of dictionaries in structs Arrow reads no two row groups together
        few = (
            parquet.read_row_group(group, columns=[f"{column}.path"])[column] for group in groups
        )
        paths = [path for found in few for path in _paths(found.combine_chunks())]
    leaf = leaf_of(parquet.schema_arrow, column)
    has_bytes = [flag for group in groups for flag in _has_bytes(parquet, group, leaf)]
    return _urls(url, column, has_bytes, paths)


def _has_bytes(parquet: pq.ParquetFile, group: int, leaf: str) -> Iterable[bool]:
    """Tell for each row of a row group whether it has bytes: by its statistics, else by looking."""
    found = parquet.metadata.row_group(group)
    columns = [found.column(i) for i in range(found.num_columns)]
    facts = next(c.statistics for c in columns if c.path_in_schema == leaf)
    if facts is not None and facts.has_null_count and facts.null_count in (0, found.num_rows):
        return [facts.null_count == 0] * found.num_rows
    batches = parquet.iter_batches(_FEW_ROWS, row_groups=[group], columns=[leaf])
    return [flag for b in batches for flag in bytes_in(b.column(0)).is_valid().to_pylist()]


def arrow_table(wanted: Wanted) -> pa.Table:
    """Return the wanted columns of an Arrow file on this machine."""
    tables, row = [], 0
    columns: list[str] | None = None
    for batch in arrow_batches(wanted.url):
        columns = columns or wanted.choose(batch.schema.names)
        inside = files_inside(batch.schema, columns, wanted)
        found = {
            name: _batch_urls(batch.column(name), wanted.url, name, row)
            if name in inside
            else pa.concat_arrays([batch.column(name)])
            for name in columns
        }
        tables.append(pa.table(found))
        row += batch.num_rows
    return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def _batch_urls(column: pa.Array, url: str, name: str, first: int) -> pa.Array:
    paths = _paths(column) if _has_paths(column.type) else [None] * len(column)
    return _urls(url, name, bytes_in(column).is_valid().to_pylist(), paths, first)


def _has_paths(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    return kind.get_field_index("path") >= 0 and is_text(kind.field("path").type)


def _paths(column: pa.Array) -> list[str | None]:
    index = column.type.get_field_index("path")
    return column.flatten()[index].to_pylist()  # type: ignore[no-any-return]


def _urls(
    url: str,
    column: str,
    has_bytes: Sequence[bool],
    paths: Sequence[str | None],
    first: int = 0,
) -> pa.Array:
    urls = [
        TableRow(file=url, column=column, row=row, suffix=_suffix(path)).url if inside else path
        for row, (inside, path) in enumerate(zip(has_bytes, paths, strict=True), first)
    ]
    return pa.array(urls, pa.string())


def _suffix(path: str | None) -> str:
    return posixpath.splitext(path or "")[1][1:].lower()
