"""Where every object of a cache lies. Pure."""

from __future__ import annotations

CACHE_JSON = "cache.json"

INDEX = "index.parquet"

#: Sources that could not be planned are rows of tables in this folder, beside the buckets' folders.
REJECTED = "rejected"


def plan_path(bucket: str) -> str:
    """Path of a bucket's plan."""
    return f"plan/{bucket}.parquet"


def samples_folder(bucket: str) -> str:
    """Folder of a bucket's sample tables."""
    return f"samples/{bucket}"


def sample_path(bucket: str, shard: int) -> str:
    """Path of the sample table whose existence commits a shard."""
    return f"{samples_folder(bucket)}/{shard:06d}.parquet"


def shard_of_sample_file(name: str) -> int | None:
    """Shard index of a sample table's file name; None for any other file."""
    stem, dot, suffix = name.partition(".")
    return int(stem) if dot and suffix == "parquet" and stem.isdigit() else None


def is_planned(path: str) -> bool:
    """Tell whether an object is written by the plan, and not by a shard's commit."""
    folders = ("plan/", f"{samples_folder(REJECTED)}/")
    return path.startswith(folders) or path == CACHE_JSON or path.endswith("zarr.json")
