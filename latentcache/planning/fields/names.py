"""Names of fields and of columns that are kept from the corpus: a batch has one place for both."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from latentcache.errors import ConfigError
from latentcache.format.fields.manifest import field_names
from latentcache.format.kept_schema import kept_schema
from latentcache.format.manifest import Manifest
from latentcache.format.per_frame import names_in
from latentcache.format.schemas import PLAN_SCHEMA
from latentcache.planning.step import Step
from latentcache.storage.folder import Storage, redact


def check_field_name(name: str, manifest: Manifest) -> None:
    """Raise ConfigError where any step of a cache has kept a column of a field's name."""
    kept = _names(kept_schema(generation.kept) for generation in manifest.generations)
    if name in kept or name in PLAN_SCHEMA.names:
        raise ConfigError(
            f"a field cannot be named {name!r}: the corpus has a column of that name, and a batch has "
            "one place for both"
        )


def check_kept_names(storage: Storage, step: Step) -> None:
    """Raise ConfigError where a column that a step keeps has the name of one of the cache's fields."""
    tables = [table for of_bucket in step.clips.values() for table in of_bucket]
    kept = _names(table.schema for table in [*tables, *step.columns.values()])
    for name in field_names(storage) if kept else ():
        if name in kept:
            raise ConfigError(
                f"corpus.keep: the cache has a field {name!r}, and a batch has one place for it and a "
                "column of that name. Nothing was changed. Give the column another name in the corpus; or "
                f"drop the field, and make it again by another name: latentcache drop-field "
                f"{redact(storage.url)} {name} --yes"
            )


def _names(schemas: Iterable[pa.Schema]) -> set[str]:
    return {name for schema in schemas for name in (*schema.names, *names_in(schema))}
