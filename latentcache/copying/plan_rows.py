"""Rows of plans put together, which may have kept other columns from the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from latentcache.errors import CacheError
from latentcache.format.kept_schema import united
from latentcache.format.per_frame import vector_widths
from latentcache.planning.kept_types import converted


def joined_rows(tables: Sequence[pa.Table], kinds: pa.Schema | None = None) -> pa.Table:
    """Join rows of plans: a column that some lack is null there.

    kinds: the types that columns are to have, see `common_types`; None: rows of one cache, whose types go
    together. Raises CacheError where values do not fit these.
    """
    fitted = tables if kinds is None else [_of_types(table, kinds) for table in tables]
    return pa.concat_tables(fitted, promote_options="permissive")


def common_types(tables: Iterable[pa.Table]) -> pa.Schema:
    """Return the types that columns of several caches are to have, of those without values too.

    Whole numbers become floats where some caches have these. Of types that do not go together it is the
    first one.
    """
    return united(table.schema for table in tables)


def _of_types(table: pa.Table, kinds: pa.Schema) -> pa.Table:
    for at, field in enumerate(table.schema):
        kind = kinds.field(field.name).type
        if field.type != kind:
            table = table.set_column(at, field.name, _of_type(field, table.column(at), kind))
    return table


def _of_type(field: pa.Field, column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return converted(field.name, column, kind, may_lack=True)
    except ValueError as error:
        raise CacheError(
            f"the kept column {field.name} is {kind} by the caches before and {field.type} in another, "
            f"and the values do not fit ({error}). Nothing was written. Name the cache first "
            "whose type holds all values, as text holds numbers; or leave the caches as they are: "
            "LatentLoader takes several"
        ) from None


def check_widths(tables: Iterable[pa.Table]) -> None:
    """Raise CacheError where vectors per frame have other lengths in some rows than in others."""
    widths: dict[str, set[int]] = {}
    for table in tables:
        for name, lengths in vector_widths(table).items():
            widths.setdefault(name, set()).update(lengths)
    for name, found in widths.items():
        if len(found) > 1:
            numbers = " and ".join(map(str, sorted(found)))
            raise CacheError(
                f"the vectors of {name}, a column of corpus.per_frame, have {numbers} numbers, so their "
                "clips cannot be in one batch. Nothing was written. Keep them under other names in the "
                "corpus, and grow each cache again with precompute, which replaces the values without "
                "encoding"
            )
