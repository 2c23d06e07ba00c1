"""One schema for all sample tables of a snapshot: kept columns may differ between steps of a cache."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from latentcache.format.generations import Generation, Kind
from latentcache.format.schemas import SAMPLE_SCHEMA

#: Steps that copy or repeat planned rows, of which each bucket has the kept columns of its own rows.
_BY_BUCKET: frozenset[Kind] = frozenset(("retry", "repair", "compact", "merge", "copy"))
#: Tables that are tried where those before them are damaged.
NUM_TRIED = 8


def alike(
    generations: Sequence[Generation],
    places: Sequence[tuple[str, int]],
    folders: Sequence[str | None],
) -> list[tuple[Generation, list[tuple[str, int]]]]:
    """Return for each set of kept columns that a cache can have the generation it is of, the oldest first.

    Shards of one generation have the same ones, unless a later generation changed them. places: the
    committed shards, in order; folders: of each, where its changed columns are, or None. With each comes
    nothing where the generation says what it keeps; else the first shards that have it.
    """
    by_folder = {generation.folder: generation for generation in generations}
    found: dict[tuple[Any, ...], tuple[Generation, list[tuple[str, int]]]] = {}
    for generation in generations:
        for part in generation.parts:
            own = part.bucket if generation.kind in _BY_BUCKET else ""
            first, last = part.first_shard, part.first_shard + part.num_shards
            start, stop = (bisect.bisect_left(places, (part.bucket, n)) for n in (first, last))
            for folder in dict.fromkeys(folders[start:stop]):
                of = generation if folder is None else by_folder[folder]
                if of.kept is not None:
                    found.setdefault((of.number,), (of, []))
                    continue
                _, some = found.setdefault((generation.number, own, folder), (of, []))
                same = (places[n] for n in range(start, stop) if folders[n] == folder)
                some.extend(itertools.islice(same, NUM_TRIED - len(some)))
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
