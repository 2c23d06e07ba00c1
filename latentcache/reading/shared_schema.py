"""One schema for all sample tables of a snapshot: kept columns may differ between steps of a cache."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import pyarrow as pa

from latentcache.format.generations import Generation
from latentcache.format.schemas import SAMPLE_SCHEMA


def steps_of(
    generations: Sequence[Generation],
    places: Sequence[tuple[str, int]],
    folders: Sequence[str | None],
) -> list[Generation]:
    """Return the generations that say which kept columns the committed shards have, the oldest first.

    That is of each shard the one that planned it, or a later one that changed its columns. places: the
    shards, in order; folders: of each, where its changed columns are, or None.
    """
    by_folder = {generation.folder: generation for generation in generations}
    found: dict[int, Generation] = {}
    for generation in generations:
        for part in generation.parts:
            first, last = part.first_shard, part.first_shard + part.num_shards
            start, stop = (bisect.bisect_left(places, (part.bucket, n)) for n in (first, last))
            for folder in dict.fromkeys(folders[start:stop]):
                of = generation if folder is None else by_folder[folder]
                found.setdefault(of.number, of)
    return list(found.values())


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
