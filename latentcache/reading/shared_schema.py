"""One schema for all sample tables of a snapshot: kept columns may differ between steps of a cache."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

import pyarrow as pa

from latentcache.format.generations import Generation, Kind
from latentcache.format.schemas import SAMPLE_SCHEMA

#: Steps that copy or repeat planned rows, of which each bucket has the kept columns of its own rows.
_BY_BUCKET: frozenset[Kind] = frozenset(("retry", "repair", "compact", "merge", "copy"))


def one_of_each(
    generations: Iterable[Generation],
    places: Sequence[tuple[str, int]],
    folders: Sequence[str | None],
) -> list[tuple[str, int]]:
    """Return a shard for each set of kept columns that a cache can have, the oldest first.

    Shards of one generation have the same ones, unless a later generation changed them. places: the
    committed shards, in order; folders: of each, where its changed columns are, or None.
    """
    found: dict[tuple[int, str, str | None], tuple[str, int]] = {}
    for generation in generations:
        for part in generation.parts:
            own = part.bucket if generation.kind in _BY_BUCKET else ""
            first, last = part.first_shard, part.first_shard + part.num_shards
            start, stop = (bisect.bisect_left(places, (part.bucket, n)) for n in (first, last))
            for folder in dict.fromkeys(folders[start:stop]):
                place = places[folders.index(folder, start)]
                found.setdefault((generation.number, own, folder), place)
    return list(found.values())


def united(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return a schema with the columns of all; whole numbers become floats where some have these.

    A column whose types do not go together has its first one.
    """
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            fields[field.name] = _united(fields.get(field.name, field), field)
    return pa.schema(list(fields.values()))


def _united(one: pa.Field, other: pa.Field) -> pa.Field:
    if one.equals(other):
        return one
    schemas = [pa.schema([one]), pa.schema([other])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0)
    except pa.ArrowException:
        return one


def with_kept(table: pa.Table, names: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return a table with its kept columns as a schema has them: null where it lacks one of `names`.

    A column whose values do not fit the schema's type stays as it is.
    """
    for name in names:
        if name in SAMPLE_SCHEMA.names or name not in schema.names:
            continue
        kind, at = schema.field(name).type, table.schema.get_field_index(name)
        if at < 0:
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
        elif table.schema.field(at).type != kind:
            table = table.set_column(at, name, _converted(table.select([name]), kind))
    return table


def _converted(table: pa.Table, kind: pa.DataType) -> pa.ChunkedArray:
    like = pa.schema([(table.column_names[0], kind)]).empty_table()
    try:
        return pa.concat_tables([table, like], promote_options="permissive")[0]
    except pa.ArrowException:
        return table[0]
