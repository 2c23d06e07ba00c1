"""Types of columns by the kind of their values: which may become which. Pure.

Arrow casts more than keeps its meaning: numbers to times, times without a zone to instants, texts to bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from latentcache.core.columns import is_list

_KINDS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "truth": (pa.types.is_boolean,),
    "number": (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "bytes": (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    ),
    "day": (pa.types.is_date,),
    "time of day": (pa.types.is_time,),
    "time": (lambda kind: pa.types.is_timestamp(kind) and kind.tz is None,),
    "instant": (lambda kind: pa.types.is_timestamp(kind) and kind.tz is not None,),
    "duration": (pa.types.is_duration,),
    "list": (is_list,),
    "object": (pa.types.is_struct,),
    "map": (pa.types.is_map,),
}
#: Kinds whose values may be the same, besides each kind with itself. Text writes them down.
_WRITTEN = ("number", "day", "time of day", "time", "instant", "duration")
_SAME = {frozenset(("day", "time"))} | {frozenset(("text", kind)) for kind in _WRITTEN}


def unlike(now: pa.DataType, before: pa.DataType, *, may_lack: bool = False) -> str | None:
    """Return why values of one type are no values of another, whatever they are; None if they may be.

    may_lack: objects may lack members that the other type has.
    """
    now, before = _plain(now), _plain(before)
    if pa.types.is_null(now) or pa.types.is_null(before):
        return None
    kinds = kind_of(now), kind_of(before)
    if kinds[0] != kinds[1]:
        is_same = frozenset(kinds) in _SAME
        return None if is_same else f"{now} and {before} are not the same values"
    if kinds[0] == "object":
        return _unlike_members(now, before, may_lack)
    if kinds[0] == "map":
        keys = unlike(now.key_type, before.key_type, may_lack=may_lack)
        return keys or unlike(now.item_type, before.item_type, may_lack=may_lack)
    if kinds[0] == "list":
        return unlike(now.value_type, before.value_type, may_lack=may_lack)
    return None


def unlike_common(now: pa.DataType, before: pa.DataType, *, may_lack: bool = False) -> str | None:
    """Return the same of objects whose members may come and go: only those that both have are compared."""
    if not pa.types.is_struct(before):
        return None
    types = {field.name: field.type for field in before}
    common = (field for field in now if field.name in types)
    return next(
        filter(None, (unlike(f.type, types[f.name], may_lack=may_lack) for f in common)), None
    )


def _unlike_members(now: pa.StructType, before: pa.StructType, may_lack: bool) -> str | None:
    names, known = (sorted(field.name for field in kind) for kind in (now, before))
    if names != known and not (may_lack and {*names} <= {*known}):
        return f"its fields were {', '.join(known) or 'none'}, and are {', '.join(names) or 'none'}"
    return unlike_common(now, before, may_lack=may_lack)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def kind_of(kind: pa.DataType) -> str:
    """Return the kind of a type's values; of other types, the type's own name."""
    found = (name for name, tests in _KINDS.items() if any(is_kind(kind) for is_kind in tests))
    return next(found, str(kind))
