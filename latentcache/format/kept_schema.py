"""Names and types of columns kept from the corpus, as a generation says them, so that no table is read."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import pyarrow as pa

from latentcache.core.kinds import unlike
from latentcache.format.schemas import PLAN_SCHEMA


def kept_text(schemas: Iterable[pa.Schema]) -> str:
    """Return the kept columns of plans and changed columns: Arrow's form of a schema, in base64."""
    kept = [field for field in united(schemas) if field.name not in PLAN_SCHEMA.names]
    return base64.b64encode(pa.schema(kept).serialize()).decode()


def kept_schema(text: str) -> pa.Schema:
    """Return what `kept_text` was given. Raises ValueError if it is no such text."""
    try:
        data = base64.b64decode(text, validate=True)
        schema = pa.ipc.read_schema(pa.BufferReader(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"its kept columns are no schema: {error}") from error
    if own := sorted({*schema.names} & {*PLAN_SCHEMA.names}):
        raise ValueError(f"its kept columns have names of the plan's own: {', '.join(own)}")
    return schema


def united(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Return a schema with the columns of all; whole numbers become floats where some have these.

    A column whose types do not go together has its first one.
    """
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema:
            fields[field.name] = _united(fields.get(field.name, field), field)
    return pa.schema(list(fields.values()))


def _united(one: pa.Field, other: pa.Field) -> pa.Field:
    if one.equals(other):
        return one
    schemas = [pa.schema([one]), pa.schema([other])]
    try:
        both = pa.unify_schemas(schemas, promote_options="permissive").field(0)
    except pa.ArrowException:
        return one
    is_unlike = any(unlike(field.type, both.type, may_lack=True) for field in (one, other))
    return one if is_unlike else both  # texts do not become bytes
