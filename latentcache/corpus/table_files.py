"""A table in several files: one logical table, in the order of their names, with the same columns."""

from __future__ import annotations

import contextlib
import posixpath
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.config.sections import CorpusConfig
from latentcache.corpus.column_types import is_text
from latentcache.corpus.source_table import (
    ABSOLUTE,
    roles_of,
    to_sources,
    wanted_of,
)
from latentcache.corpus.table_readers import READERS
from latentcache.errors import CorpusError
from latentcache.storage.source_files import irregular, open_source
from latentcache.storage.spill import KEPT_BYTES, Spill
from latentcache.storage.urls import redact_url, suffix_of

#: Files that are read at a time.
NUM_THREADS = 8


class _Spills(threading.local):
    """Where the rows of tables go: one place per reading thread, however many tables there are."""

    def __init__(self) -> None:
        self.spill = Spill(KEPT_BYTES // NUM_THREADS)


def read_tables(config: CorpusConfig, base: str, files: Sequence[tuple[str, str]]) -> pa.Table:
    """Return the rows of several files as sources.

    files: name, relative to `base`, and URL of each. Relative paths start at their own file's folder.
    Raises CorpusError, FileNotFoundError, StorageError; and MachineError if the temporary folder is full.
    """
    names, urls, spills = [name for name, _ in files], [url for _, url in files], _Spills()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        tables = list(
            pool.map(lambda name, url: _read(config, name, url, spills.spill), names, urls)
        )
    shown = [redact_url(url) for _, url in files]
    data = _joined(tables, shown)
    starts, row = [], 0
    for table, where in zip(tables, shown, strict=True):
        starts.append((row, where))
        row += table.num_rows
    return to_sources(data, config, base.rstrip("/") + "/", starts)


def refuse_irregular(url: str, config: CorpusConfig) -> None:
    """Raise CorpusError where a file that should hold sources is gone, or is a pipe or device."""
    try:
        what = irregular(url, config.storage_options)
    except FileNotFoundError:
        what = "link to what is not there, or was removed during planning"
    if what:
        raise CorpusError(
            f"{redact_url(url)} is no regular file but a {what}, so no source can be read from it. "
            "Remove it, or leave it out of corpus.source."
        )


@contextlib.contextmanager
def open_table(url: str, config: CorpusConfig) -> Iterator[IO[bytes]]:
    """Open a table. Of a Parquet file columns are read, which may lie far from one another."""
    is_parquet = suffix_of(url) == "parquet"
    with open_source(url, config.storage_options, for_parts=is_parquet) as file:
        yield file


def _read(config: CorpusConfig, name: str, url: str, spill: Spill) -> pa.Table:
    refuse_irregular(url, config)
    with open_table(url, config) as file:
        table = READERS[suffix_of(url)](file, wanted_of(config, url, redact_url(url)), spill)
    folder = posixpath.dirname(name)
    roles = roles_of(config)
    for column in dict.fromkeys(roles[r] for r in ("video", "image") if r in roles):
        if folder and is_text(table[column].type):
            index = table.schema.get_field_index(column)
            paths = spill.column(_below(folder, table[column]))
            table = table.set_column(index, column, paths)
    return table


def _below(folder: str, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return paths below a folder; absolute ones, empty ones and URLs stay."""
    paths = paths.cast(pa.string())
    plain = pc.replace_substring_regex(paths, r"^(\./)+", "")
    stays = pc.or_(pc.match_substring_regex(paths, ABSOLUTE), pc.equal(paths, ""))
    return pc.if_else(stays, paths, pc.binary_join_element_wise(folder, plain, "/"))


def _joined(tables: Sequence[pa.Table], shown: Sequence[str]) -> pa.Table:
    """Put tables together. Raises CorpusError, which names the first that has other columns."""
    first = tables[0]
    schema = first.schema
    for table, where in zip(tables, shown, strict=True):
        if set(table.column_names) != set(first.column_names):
            odd = sorted(set(table.column_names) ^ set(first.column_names))[0]
            has, lacks = (where, shown[0]) if odd in table.column_names else (shown[0], where)
            raise CorpusError(
                f"{where} has not the same columns as {shown[0]}: {has} has {odd!r}, {lacks} has not. "
                "They are read as one table. Give all files the same columns, or name "
                "those to read in corpus.columns."
            )
        try:
            schema = pa.unify_schemas([schema, table.schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise CorpusError(
                f"{where} has a column of another type than {shown[0]}: {error}. They are read as one "
                "table. Write the column in the same type in all files."
            ) from None
    return pa.concat_tables(tables, promote_options="permissive")
