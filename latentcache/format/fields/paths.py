"""Where the objects of a field lie. Pure."""

from __future__ import annotations

import re

from latentcache.core.records import ShardId

FIELDS = "fields"
FIELD_JSON = "field.json"
_VERSION = re.compile(r"(\d{6})\.parquet")


def field_folder(name: str) -> str:
    """Folder of a field, which holds everything of it."""
    return f"{FIELDS}/{name}"


def field_json_path(name: str) -> str:
    """Path of what a field is; its existence makes the field count."""
    return f"{field_folder(name)}/{FIELD_JSON}"


def versions_folder(name: str) -> str:
    """Folder of the versions after the first."""
    return f"{field_folder(name)}/versions"


def version_path(name: str, number: int) -> str:
    """Path of the rows that a version encodes, from the second on."""
    return f"{versions_folder(name)}/{number:06d}.parquet"


def number_of_version(file_name: str) -> int | None:
    """Return the number of a version by its file name; None for any other file."""
    match = _VERSION.fullmatch(file_name)
    return int(match[1]) if match else None


def array_folder(name: str, version: int, array: str) -> str:
    """Folder of an array's buckets. array: empty for the field's own."""
    folder = f"{field_folder(name)}/{version:06d}"
    return f"{folder}/{array}" if array else folder


def field_samples_folder(name: str, version: int, bucket: str) -> str:
    """Folder of the sample tables of a version."""
    return f"{field_folder(name)}/samples/{version:06d}/{bucket}"


def field_sample_path(name: str, version: int, shard: ShardId) -> str:
    """Path of a shard's sample table, which is derived from the shard's object."""
    return f"{field_samples_folder(name, version, shard.bucket)}/{shard.number:06d}.parquet"


def nulls_path(name: str) -> str:
    """Path of the encodings that stand for a dropped text."""
    return f"{field_folder(name)}/nulls.parquet"


def field_index_path(name: str) -> str:
    """Path of a field's snapshot."""
    return f"{field_folder(name)}/index.parquet"
