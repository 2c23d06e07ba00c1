"""Which of its texts a clip comes with: one that all fields of the same texts have.

Fields of the same columns have the same list of texts of a clip, and each may lack some, whose encoding
failed. Fields of other columns choose by themselves, by the same random number.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from latentcache.core.fields import SUFFIXES
from latentcache.errors import CacheError, CorruptionError
from latentcache.format.fields.manifest import FieldManifest, read_field
from latentcache.reading.cache import Cache
from latentcache.reading.fields import TEXT_KINDS, Entry, FieldReader, FieldRow, chosen_text


def columns_of(field: FieldManifest) -> tuple[str, ...]:
    """Return the columns that a field's texts are of, in order; none if it is of no text."""
    if field.kind not in TEXT_KINDS:
        return ()
    column = field.settings["column"]
    return (column,) if isinstance(column, str) else tuple(dict.fromkeys(column))


def grouped(readers: Sequence[FieldReader]) -> list[list[FieldReader]]:
    """Return fields with those that have the same texts; any other by itself; views are left out."""
    groups: dict[Any, list[FieldReader]] = {}
    for reader in readers:
        if not reader.is_view:
            groups.setdefault(columns_of(reader.field) or reader.name, []).append(reader)
    return list(groups.values())


def chosen_entries(
    groups: Sequence[Sequence[FieldReader]],
    bucket: str,
    shard: int,
    rows: Sequence[int],
    numbers: Sequence[int],
) -> dict[str, list[Entry | None]]:
    """Return what each field gives of rows of a shard, by its name; None where it has nothing to give.

    A value of texts that a clip no longer has is none.

    Fields of one group give the same text; none of them gives one where they have none in common, though
    one that lacks the whole clip does not keep others from it. numbers: a random one for each row.
    """
    found: dict[str, list[Entry | None]] = {}
    for group in groups:
        known = {reader.name: reader.current(bucket, shard) for reader in group}
        texts = [
            _chosen([there[row] for there in known.values() if row in there], number)
            for row, number in zip(rows, numbers, strict=True)
        ]
        for name, there in known.items():
            found[name] = [
                there[row].entry(text) if text is not None and row in there else None
                for row, text in zip(rows, texts, strict=True)
            ]
    return found


def _chosen(rows: Sequence[FieldRow], number: int) -> int | None:
    return chosen_text(rows, number) if rows else None


def without_common_text(group: Sequence[FieldReader], bucket: str, shard: int) -> frozenset[int]:
    """Return the rows of a shard of which fields have texts, but none in common.

    Reads sample tables only where some texts failed.
    """
    if len(group) == 1:
        return frozenset()
    maybe = sorted(frozenset().union(*(r.with_failed_texts(bucket, shard) for r in group)))
    if not maybe:
        return frozenset()
    found = chosen_entries([group], bucket, shard, maybe, [0] * len(maybe))
    return frozenset(
        row
        for n, row in enumerate(maybe)
        if not any(entries[n] for entries in found.values())
        and any(row in reader.current(bucket, shard) for reader in group)
    )


class SampleTexts:
    """The texts of a cache's samples by number: of each clip the first one that a column's fields have.

    named: fields that are read together. Fields of other columns are chosen with all of their column.
    """

    def __init__(self, cache: Cache, named: Sequence[str] = ()) -> None:
        self._cache, self._named = cache, named
        self._groups: dict[tuple[str, ...], list[FieldReader]] = {}

    def __reduce__(self) -> tuple[type[SampleTexts], tuple[Any, ...]]:
        return type(self), (self._cache, self._named)

    def read(self, number: int, key: str) -> Mapping[str, Any] | None:
        """Return what a field of several texts has of a clip, by its number; None of any other field.

        key: one of the field's. Raises KeyError where it has nothing that the others have, too.
        """
        name = _field_of(key)
        if name not in self._names:
            return None
        reader = self._cache.field(name)
        if reader.field.choices == 1 or not reader.is_text:
            return None
        bucket, shard, row = self._cache.place(number)
        entry = self._entry(reader, bucket, shard, row)
        if entry is None:
            reader.check_current(bucket, shard, row)
            raise KeyError(key)
        return {**reader.sample_of(bucket, shard, entry), f"{name}_choice": entry.choice}

    def _entry(self, reader: FieldReader, bucket: str, shard: int, row: int) -> Entry | None:
        own = reader.current(bucket, shard).get(row)
        if own is None:
            return None
        group = self._beside(columns_of(reader.field))
        failed = any(row in other.with_failed_texts(bucket, shard) for other in group)
        if not failed:
            return own.entry(0)
        found = (other.current(bucket, shard).get(row) for other in group)
        text = _chosen([there for there in found if there is not None], 0)
        return None if text is None else own.entry(text)

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self._cache.field_names)

    def _beside(self, columns: tuple[str, ...]) -> list[FieldReader]:
        """Return the fields of some columns that are read together."""
        if columns not in self._groups:
            named = [self._cache.field(name) for name in self._named]
            several = [reader for reader in named if columns_of(reader.field) == columns]
            self._groups[columns] = several or self._all_of(columns)
        return self._groups[columns]

    def _all_of(self, columns: tuple[str, ...]) -> list[FieldReader]:
        """Return the cache's fields of some columns of which anything is committed; opens no others."""
        found = []
        for name in (name for name, of in self._columns.items() if of == columns):
            try:
                found.append(self._cache.field(name))
            except CorruptionError:
                raise
            except CacheError:  # it has no snapshot yet
                continue
        return found

    @functools.cached_property
    def _columns(self) -> dict[str, tuple[str, ...]]:
        """The columns of the cache's fields by name; without fields of which it cannot be read."""
        found = {}
        for name in sorted(self._names):
            # None of those that cannot be read is given to a trainer beside another one.
            with contextlib.suppress(CacheError):
                field = read_field(self._cache.storage, name, self._cache.manifest)
                found[name] = columns_of(field)
        return found


def _field_of(key: str) -> str:
    """Return the name of the field that a key of a sample is of."""
    name = key.partition(".")[0]
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name
