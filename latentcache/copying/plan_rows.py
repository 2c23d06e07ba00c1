"""Rows of plans put together, which may have kept other columns from the corpus."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from latentcache.errors import CacheError


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
