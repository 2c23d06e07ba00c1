"""What stands for a dropped text: the encoded empty text, and named others such as negative prompts.

One table, written once, by the first worker of the field: a row per text, its arrays as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.json_text import OTHER_SHAPE, fault_of, parse_json
from latentcache.errors import CorruptionError
from latentcache.format.damage import damaged
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.paths import nulls_path
from latentcache.format.schemas import check_columns, check_facts, plan_facts
from latentcache.format.tables import read_table, to_parquet
from latentcache.storage.folder import Storage

#: The name of the empty text.
NULL = "null"
#: values: of each array, its bytes in C order, in the stored dtype; shapes: theirs, as JSON lists. message:
#: why it could not be encoded.
NULLS_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("lost_tokens", pa.int32(), nullable=False),
        pa.field("shapes", pa.list_(pa.string())),
        pa.field("values", pa.list_(pa.binary())),
        pa.field("message", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Null:
    """One of them. arrays: in the order of the field's; none if it could not be encoded: see message."""

    name: str
    text: str
    tokens: int
    lost_tokens: int
    arrays: Sequence[Array]
    message: str | None = None


def has_nulls(storage: Storage, field: FieldManifest) -> bool:
    """Tell whether they are written."""
    return storage.exists(nulls_path(field.name))


def create_nulls(storage: Storage, field: FieldManifest, nulls: Sequence[Null]) -> None:
    """Write them, unless another worker has."""
    rows = [
        {
            "name": null.name,
            "text": null.text,
            "tokens": null.tokens,
            "lost_tokens": null.lost_tokens,
            "shapes": [json.dumps(array.shape) for array in null.arrays],
            "values": [array.tobytes() for array in null.arrays],
            "message": null.message,
        }
        for null in nulls
    ]
    table = pa.Table.from_pylist(rows, schema=NULLS_SCHEMA)
    storage.create(nulls_path(field.name), to_parquet(table, plan_facts(field.fingerprint)))


def read_nulls(storage: Storage, field: FieldManifest) -> dict[str, Null]:
    """Read them, by name; none if no worker has started yet. Raises CorruptionError."""
    path = nulls_path(field.name)
    try:
        table = read_table(storage, path)
        check_facts(table, plan_facts(field.fingerprint))
        check_columns(table, NULLS_SCHEMA)
        return {row["name"]: _null(field, row) for row in table.to_pylist()}
    except FileNotFoundError:
        return {}
    except CorruptionError:
        raise
    except OTHER_SHAPE as error:
        raise damaged(storage, path, f"holds no texts of this field: {fault_of(error)}") from None


def _null(field: FieldManifest, row: dict[str, object]) -> Null:
    shapes, values = row.pop("shapes"), row.pop("values")
    assert isinstance(shapes, list)
    assert isinstance(values, list)
    arrays = [
        np.frombuffer(data, numpy_dtype(array.dtype)).reshape(parse_json(shape))
        for array, shape, data in zip(field.arrays, shapes, values, strict=False)
    ]
    return Null(**row, arrays=arrays)  # type: ignore[arg-type]
