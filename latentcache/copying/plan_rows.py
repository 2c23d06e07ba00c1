"""Rows of plans put together, which may have kept other columns from the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from latentcache.errors import CacheError
from latentcache.format.per_frame import vector_widths


def joined_rows(tables: Sequence[pa.Table]) -> pa.Table:
    """Join rows of plans: a column that some lack is null there, whole numbers become floats.

    Raises CacheError where types of kept columns do not go together.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise CacheError(
            f"kept columns have types that do not go together ({error}), so their clips cannot be in one "
            "shard. Nothing was written. Give the column one type in the corpus, and grow each cache again "
            "with precompute, which replaces the values without encoding"
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
