"""Clips that a field of texts has nothing of: not encoded yet, failed, or without a text."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from latentcache.core.records import ShardId
from latentcache.core.units import plural
from latentcache.errors import ConfigError
from latentcache.exchange.clips import ClipRow, named
from latentcache.format.fields.commit import read_field_table
from latentcache.format.fields.snapshot import newest_versions, part_of, read_field_index, rows_of
from latentcache.planning.fields.planned import PlannedField
from latentcache.reading.fields import FieldReader
from latentcache.storage.urls import redact

#: Why a clip has no states, beside the reasons of failures: it waits to be encoded.
_PENDING = "pending"
#: The reason of a failure that a caption ends.
_NO_TEXT = "no_caption"


def lacking_rows(field: FieldReader, rows: Sequence[ClipRow]) -> list[ClipRow]:
    """Return the clips that a field has nothing of."""
    last: dict[tuple[str, int], int] = {}
    for row in rows:
        place = (row.bucket, row.shard)
        last[place] = max(last.get(place, 0), row.row + 1)
    lacks: Mapping[tuple[str, int], frozenset[int]] = {
        place: field.lacks(*place, num_rows) for place, num_rows in last.items()
    }
    return [row for row in rows if row.row in lacks[row.bucket, row.shard]]


def not_there(of: PlannedField, lacking: Sequence[ClipRow]) -> ConfigError:
    """Return what is said of clips that a field has nothing of: why, and what makes it."""
    waiting, reasons = _waiting(of, lacking), _reasons(of, lacking)
    why = {
        row.key: _PENDING if row.key in waiting else reasons.get(row.key, _PENDING)
        for row in lacking
    }
    pending = [key for key, reason in why.items() if reason == _PENDING]
    without = [key for key, reason in why.items() if reason == _NO_TEXT]
    failed = {key: reason for key, reason in why.items() if reason not in (_PENDING, _NO_TEXT)}
    name = of.field.name
    resume = f"latentcache resume {shlex.quote(redact(of.storage.url))} --field {name}"
    lines = []
    if pending:
        lines.append(f"not encoded yet: {_counted(pending)}. Run: {resume}")
    if failed:
        why_failed = ", ".join(f"{reason} {n}" for reason, n in Counter(failed.values()).items())
        again = f"To try again, run: {resume} --retry-failed"
        lines.append(f"failed ({why_failed}): {_counted(failed)}. {again}")
    if without:
        lines.append(
            f"without a text: {_counted(without)}. Add captions to the corpus, run precompute, then: "
            f"{resume}"
        )
    return ConfigError(
        f"--text {name}: clips have no states of a text. Nothing was written.\n"
        + "\n".join(f"  {line}" for line in lines)
    )


def _counted(keys: Collection[str]) -> str:
    return f"{plural(len(keys), 'clip')} ({named(keys)})"


def _waiting(of: PlannedField, lacking: Sequence[ClipRow]) -> set[str]:
    """Return the keys of those that the next `resume` encodes: planned, or of a text that changed."""
    changed = of.changed_rows()
    found = set()
    for row in lacking:
        shard = ShardId(row.bucket, row.shard)
        versions = of.missing.get(shard, ())
        is_planned = any(v.rows is None or row.row in v.rows[shard] for v in versions)
        if is_planned or row.row in changed.get(shard, ()):
            found.add(row.key)
    return found


def _reasons(of: PlannedField, lacking: Sequence[ClipRow]) -> dict[str, str]:
    """Return why clips failed, by key, as the newest version of each that is committed says."""
    newest = newest_versions(of.field, read_field_index(of.storage, of.field))
    in_shard: dict[ShardId, dict[int, str]] = {}
    for row in lacking:
        in_shard.setdefault(ShardId(row.bucket, row.shard), {})[row.row] = row.key
    found = {}
    for shard, keys in in_shard.items():
        for version in newest.get(shard, ()):
            held = set(rows_of(of.field, of.cache.manifest, part_of(version))).intersection(keys)
            if not held:
                continue
            table, _ = read_field_table(of.storage, of.field, version["version"], shard)
            said = zip(table["row"].to_pylist(), table["reason"].to_pylist(), strict=True)
            found.update({keys.pop(n): reason for n, reason in said if reason and n in keys})
            for n in held:
                keys.pop(n, None)
    return found
