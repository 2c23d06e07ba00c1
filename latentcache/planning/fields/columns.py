"""What a field reads of the clips' columns: whether it can, before anything is written; and the texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from latentcache.config.fields import FieldConfig, path_columns
from latentcache.core.columns import is_list
from latentcache.errors import ConfigError, did_you_mean
from latentcache.format.fields.taken import Taken, Texts
from latentcache.format.kept_schema import kept_schema, united
from latentcache.format.manifest import Manifest
from latentcache.format.schemas import PLAN_SCHEMA
from latentcache.planning.fields.places import config_folder, is_relative
from latentcache.planning.masks import CHUNK_ROWS
from latentcache.planning.step import Step

_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)


def columns_of(manifest: Manifest, step: Step | None = None) -> pa.Schema:
    """Return the columns that clips have after a step, or have now: the plan's own, and all kept ones."""
    kept = [kept_schema(generation.kept) for generation in manifest.generations]
    if step is not None:
        kept += [table.schema for table in (*new_clips(step), *step.columns.values())]
    return united([PLAN_SCHEMA, *kept])


def new_clips(step: Step) -> Iterator[pa.Table]:
    """Return the clips that a step adds."""
    return (table for tables in step.clips.values() for table in tables)


def check_columns(config: FieldConfig, known: pa.Schema) -> None:
    """Raise ConfigError unless a field's columns are there, and hold texts or lists of them."""
    for name in config.columns:
        if name not in known.names:
            raise _no_column(name, known.names)
        check_type(name, known.field(name).type)


def check_type(name: str, kind: pa.DataType) -> None:
    """Raise ConfigError unless a column holds texts, or lists of them."""
    if not any(is_text(kind.value_type if is_list(kind) else kind) for is_text in _TEXTS):
        raise ConfigError(
            f"column {name!r} is {kind}, and a field reads texts, paths, or lists of these. Name another "
            "column, or give its values as texts."
        )


def check_start(
    name: str, config: FieldConfig, tables: Iterable[pa.Table], corpus: str, known: pa.Schema
) -> None:
    """Raise ConfigError where new clips have relative paths that start at no one folder.

    corpus: the folder of the corpus that these clips come from, empty if it has several.
    """
    if corpus or config_folder(config) or not path_columns(config):
        return
    num_paths = len(path_columns(config))
    for table in tables:
        for texts in taken_of(config, table, known):
            if found := next(filter(is_relative, texts[:num_paths]), None):
                raise _several_folders(name, config, found)


def taken_of(config: FieldConfig, table: pa.Table, known: pa.Schema) -> Iterator[Texts]:
    """Yield what a field takes of each row. Raises ConfigError.

    known: the columns that clips have; one that this table lacks is null in it.
    """
    taken = Taken(config)
    for first in range(0, table.num_rows, CHUNK_ROWS):
        rows = table.slice(first, CHUNK_ROWS)
        values = [_as_lists(rows, name, known) for name in taken.columns]
        yield from map(taken.of, zip(*values, strict=True))


def _as_lists(table: pa.Table, name: str, known: pa.Schema) -> list[list[str | None]]:
    """Return a list of texts per row."""
    if name not in table.column_names:
        if name not in known.names:
            raise _no_column(name, [*table.column_names, *known.names])
        check_type(name, known.field(name).type)
        return [[]] * table.num_rows
    column = table[name]
    check_type(name, column.type)
    values = column.to_pylist()
    return [value or [] for value in values] if is_list(column.type) else [[v] for v in values]


def _no_column(name: str, columns: Sequence[str]) -> ConfigError:
    fixed = {*PLAN_SCHEMA.names} - {"caption"}
    known = [column for column in dict.fromkeys(columns) if column not in fixed]
    return ConfigError(
        f"column {name!r}: the clips have no such column.{did_you_mean(name, known)} They have: "
        f"{', '.join(known)}. Columns of the corpus are kept where corpus.keep names them."
    )


def _several_folders(name: str, config: FieldConfig, path: str) -> ConfigError:
    columns = " and ".join(path_columns(config))
    return ConfigError(
        f"fields.{name}.folder: {columns} has relative paths, such as {path!r}, and the corpus has no one "
        "folder where these start: its tables are in several, or it is a cache. Nothing was written. Name "
        "the place in the field's settings, as folder: PLACE; or give absolute paths in the column."
    )
