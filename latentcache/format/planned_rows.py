"""Whether a shard's sample table is of the clips that are planned there.

A recipe says nothing of clips, and a key is a name, under which files and captions change. So tables of
shards carry a digest of what decides their latents, beside the columns that they repeat from the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from latentcache.core.columns import same_values
from latentcache.core.json_text import parse_json
from latentcache.core.records import Shard
from latentcache.format.schemas import CLIPS_FACTS, PLAN_SCHEMA, SAMPLE_SCHEMA

#: Columns of a plan that its sample tables repeat, beside places; those kept from the corpus join them.
REPEATED = ("key", "source", "start", "frames", "fps", "caption")
#: Columns of a plan that say which clip a row is, and that decide its latent, beside bucket and recipe.
DECISIVE = ("key", "kind", "identity", "start", "frames", "fps")
_COLUMNS = (*DECISIVE, "source", "caption")


def planned_rows(shard: Shard) -> pa.Table:
    """Return what is planned of a shard's clips: columns of PLAN_SCHEMA, and the kept ones."""
    rows = [{name: getattr(clip, name) for name in _COLUMNS} for clip in shard.clips]
    fields = [PLAN_SCHEMA.field(name) for name in _COLUMNS]
    return with_kept(pa.Table.from_pylist(rows, schema=pa.schema(fields)), shard)


def with_kept(rows: pa.Table, shard: Shard) -> pa.Table:
    """Return the rows of a shard's clips with the columns that they keep from the corpus."""
    for field in shard.kept.schema if shard.kept is not None else ():
        rows = rows.append_column(field, shard.kept[field.name])
    return rows


def clips_facts(planned: pa.Table) -> dict[str, Any]:
    """Return what a shard's tables say of which clips they are. planned: PLAN_SCHEMA, of its rows."""
    rows = [*zip(*(planned[name].to_pylist() for name in DECISIVE), strict=True)]
    return {CLIPS_FACTS: {"sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest()}}


def facts_of_clips(table: pa.Table) -> Mapping[str, Any]:
    """Return what a shard's table says of which clips it is; empty if it says nothing."""
    text = (table.schema.metadata or {}).get(CLIPS_FACTS.encode())
    if text is None:
        return {}
    try:
        return {CLIPS_FACTS: parse_json(text)}
    except ValueError:
        return {CLIPS_FACTS: None}


def difference(found: pa.Table, planned: pa.Table) -> str | None:
    """Say what a whole sample table has other than is planned, to be followed by "than"; None: nothing."""
    if differs(found, planned, "key"):
        return "is of other clips"
    said = facts_of_clips(found)  # nothing, in a table of an earlier version
    if said and said != clips_facts(planned):
        return "is of files with other content, or of other frames of them,"
    kept = kept_columns(planned)
    if {*found.column_names} - {*SAMPLE_SCHEMA.names} != {*kept}:
        return "keeps other columns"
    for name in (*REPEATED, *kept):
        if differs(found, planned, name):
            return f"has other values in its column {name}"
    return None


def kept_columns(planned: pa.Table) -> list[str]:
    """Return the names of a plan's columns that are kept from the corpus."""
    return [name for name in planned.column_names if name not in PLAN_SCHEMA.names]


def differs(found: pa.Table, planned: pa.Table, name: str) -> bool:
    """Tell whether a column differs. NaN is itself."""
    if name not in found.column_names or found.num_rows != planned.num_rows:
        return True
    return not all(same_values(found[name], planned[name]))
