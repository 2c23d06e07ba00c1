"""What columns of a table hold, by their Arrow types."""

from __future__ import annotations

import pyarrow as pa

from latentcache.core.columns import is_list


def is_text(kind: pa.DataType) -> bool:
    """Tell whether a column's values are strings."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(kind) for is_kind in kinds)


def is_list_of_text(kind: pa.DataType) -> bool:
    """Tell whether a column's values are lists of strings."""
    return is_list(kind) and is_text(kind.value_type)
