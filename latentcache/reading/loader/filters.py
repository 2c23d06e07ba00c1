"""Choosing samples by their columns: which ok rows of each shard an expression keeps."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentcache.core.columns import python_values
from latentcache.core.dtypes import Array
from latentcache.core.where import parse_where
from latentcache.errors import ConfigError
from latentcache.format.schemas import COMPUTED_COLUMNS
from latentcache.reading.cache import Cache

#: A condition as text (see `core.where`), an expression of columns, or filters as pyarrow.parquet takes
#: them: [("score", ">", 5), ("width", ">=", 480)].
Where: TypeAlias = str | pc.Expression | Sequence[tuple[Any, ...]]


#: Values that a message shows of a column, how long each may be, and of how many rows they are.
_EXAMPLES, _SHOWN_CHARS, _LOOKED_AT = 3, 60, 10_000
#: A text in an expression as arrow prints it.
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')


class Chosen:
    """The chosen ok rows of a bucket's shards: one bit per row; each shard starts a new byte."""

    def __init__(self, masks: Mapping[int, Array]) -> None:
        self.shards = np.array(sorted(masks), np.int64)
        ordered = [masks[shard] for shard in self.shards.tolist()]
        self.num_chosen = np.array([int(mask.sum()) for mask in ordered], np.int64)
        packed = [np.packbits(mask) for mask in ordered]
        self._ends = np.cumsum([len(bits) for bits in packed], dtype=np.int64)
        self._bits = np.concatenate([*packed, np.empty(0, np.uint8)])

    def rows(self, shard: int) -> npt.NDArray[np.int64]:
        """Return the chosen rows of a shard, numbered among its ok rows."""
        at = int(np.searchsorted(self.shards, shard))
        start = int(self._ends[at - 1]) if at else 0
        return np.flatnonzero(np.unpackbits(self._bits[start : int(self._ends[at])]))

    def digest(self) -> bytes:
        """Return a SHA-256 of what is chosen."""
        parts = (self.shards.astype("<i8"), self.num_chosen.astype("<i8"), self._bits)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).digest()


def choose(cache: Cache, where: Where) -> dict[str, Chosen]:
    """Return which samples of a cache `where` keeps, of every committed shard, by bucket.

    Reads the columns that it names from every sample table. A null keeps nothing, as in SQL.
    Raises ConfigError if the cache lacks a column, or if a comparison makes no sense.
    """
    expression = to_expression(cache, where)
    columns = _columns(cache, expression)
    masks: dict[str, dict[int, Array]] = {name: {} for name in cache.buckets}
    for (bucket, shard), table in cache.scan(columns):
        masks[bucket][shard] = _mask(cache, table, expression)
    return {name: Chosen(found) for name, found in masks.items() if found}


def nothing_fits(cache: Cache, where: Where) -> str:
    """Say that a condition keeps no clip, and what values its columns have."""
    expression = to_expression(cache, where)
    found = _named(cache, expression)
    named = [name for name in found if name != "status"]
    tables = [
        table.filter(pc.equal(table["status"], "ok")) for _, table in cache.scan([*named, "status"])
    ]
    num_ok = sum(table.num_rows for table in tables)
    if not num_ok:
        return f"{cache!r} has no ok clip yet, so `where` has nothing to choose from."
    words = [_values_in_words(name, [t.select([name]) for t in tables]) for name in named]
    if "status" in found:
        words.append("status is 'ok', for only ok clips are chosen")
    said = f" There, {'; '.join(words)}." if words else ""
    condition = where if isinstance(where, str) else str(expression)
    return f"none of the {num_ok:,} ok clips fits the condition {condition}.{said}"


def _values_in_words(name: str, tables: Sequence[pa.Table]) -> str:
    try:
        known = pa.concat_tables(tables, promote_options="permissive")[name].drop_null()
    except pa.ArrowException:  # types that do not go together
        kinds = sorted({str(table.schema.field(name).type) for table in tables})
        return f"{name} holds {' and '.join(kinds)}"
    if not len(known):
        return f"{name} is null everywhere"
    if pa.types.is_integer(known.type) or pa.types.is_floating(known.type):
        low, high = pc.min_max(known).as_py().values()
        return f"{name} is {low:g}" if low == high else f"{name} is from {low:g} to {high:g}"
    if pa.types.is_nested(known.type):
        return f"{name} holds {known.type}"
    found = python_values(pc.unique(known.slice(0, _LOOKED_AT)))
    examples = ", ".join(repr(value)[:_SHOWN_CHARS] for value in found[:_EXAMPLES])
    return f"{name} is {examples}" + (" and others" if len(found) > _EXAMPLES else "")


def to_expression(cache: Cache, where: Where) -> pc.Expression:
    """Return a condition as an expression. Raises ConfigError."""
    if isinstance(where, str):
        return parse_where(where, cache.sample_schema, COMPUTED_COLUMNS)
    if isinstance(where, pc.Expression):
        return where
    try:
        return pq.filters_to_expression(where)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise ConfigError(
            f'where: {where!r} is no condition ({error}). Write it as text, "frames > 16 and caption != '
            "''\"; or as an expression of pyarrow.compute. Functions are not taken, since whole columns "
            "are compared at once."
        ) from None


def _columns(cache: Cache, expression: pc.Expression) -> list[str]:
    """Return the columns that an expression may name, and perhaps more: arrow prints names as they are."""
    text = str(expression)
    return [name for name in cache.column_names if name == "status" or name in text]


def _named(cache: Cache, expression: pc.Expression) -> list[str]:
    """Return the columns that an expression names, for people: whole words of it that are no texts."""
    text = _TEXT.sub('""', str(expression))
    columns = _columns(cache, expression)
    return [name for name in columns if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)]


def _mask(cache: Cache, table: pa.Table, expression: pc.Expression) -> Array:
    ok = table.filter(pc.equal(table["status"], "ok"))
    numbered = ok.append_column("", pa.array(np.arange(len(ok))))
    try:
        kept = numbered.filter(expression)[""].to_numpy()
    except (pa.ArrowException, TypeError) as error:
        raise ConfigError(
            f"where: {expression} cannot be evaluated: {str(error).splitlines()[0]}. The columns of "
            f"the sample tables: {', '.join(cache.column_names)}"
        ) from None
    mask = np.zeros(len(ok), np.bool_)
    mask[kept] = True
    return mask
