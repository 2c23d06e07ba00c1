"""Where every object of a cache lies. Pure."""

from __future__ import annotations

CACHE_JSON = "cache.json"
INDEX = "index.parquet"
LEASE = "lease.json"
QUANTISER = "quantiser.safetensors"
GENERATIONS = "generations"
PLAN = "plan"
RETIRED = "retired"
COPIED = "copied"
IMPORTED = "imported"
COLUMNS = "columns"
SAMPLES = "samples"
#: Sample tables that are listed together.
PREFIXED = 2000


def generation_path(number: int) -> str:
    """Path of a generation, whose existence makes it count."""
    return f"{GENERATIONS}/{number:06d}.json"


def number_of_generation(name: str) -> int | None:
    """Return the number of a generation by its file name; None for any other file."""
    return _number(name, "json")


def plan_path(folder: str, bucket: str) -> str:
    """Path of the clips that a generation adds to a bucket. folder: `Generation.folder`."""
    return f"{PLAN}/{folder}/{bucket}.parquet"


def sources_path(folder: str) -> str:
    """Path of the sources that a generation looked at: those that give clips, and those that do not."""
    return f"{PLAN}/{folder}/sources.parquet"


def rejected_path(folder: str) -> str:
    """Path of the rejected sources of a generation, as rows of the cache's table."""
    return f"{PLAN}/{folder}/rejected.parquet"


def retired_path(folder: str) -> str:
    """Path of the rows that no longer count since a generation."""
    return f"{RETIRED}/{folder}.parquet"


def copied_path(folder: str) -> str:
    """Path of the rows that a generation copies into other shards."""
    return f"{COPIED}/{folder}.parquet"


def imported_path(folder: str) -> str:
    """Path of the rows of a generation that are copied from other caches."""
    return f"{IMPORTED}/{folder}.parquet"


def columns_index_path(folder: str) -> str:
    """Path of the list of shards of which a generation has changed captions or kept columns."""
    return f"{COLUMNS}/{folder}/shards.parquet"


def columns_path(folder: str, bucket: str, shard: int) -> str:
    """Path of a shard's captions and kept columns since a generation."""
    return f"{COLUMNS}/{folder}/{bucket}/{shard:06d}.parquet"


def samples_folder(bucket: str) -> str:
    """Folder of a bucket's sample tables."""
    return f"{SAMPLES}/{bucket}"


def sample_path(bucket: str, shard: int) -> str:
    """Path of a shard's sample table, which is derived from the shard's object."""
    return f"{samples_folder(bucket)}/{shard:06d}.parquet"


def sample_prefixes(num_shards: int) -> list[str]:
    """Return beginnings of the file names of so many sample tables, about 1,000 of which each covers.

    None if there are few. Those of longer numbers have some names in common.
    """
    if num_shards <= PREFIXED:
        return []
    return [f"{number:06d}"[:-3] for number in range(0, num_shards, 1000)]


def shard_of_sample_file(name: str) -> int | None:
    """Shard number of a sample table's file name; None for any other file."""
    return _number(name, "parquet")


def is_planned(path: str) -> bool:
    """Tell whether an object is written by planning, and not by a shard's commit."""
    folders = tuple(f"{name}/" for name in (GENERATIONS, PLAN, RETIRED, COPIED, IMPORTED, COLUMNS))
    return path.startswith(folders) or path == CACHE_JSON or path.endswith("zarr.json")


def _number(name: str, wanted: str) -> int | None:
    stem, dot, suffix = name.partition(".")
    return int(stem) if dot and suffix == wanted and stem.isdigit() else None
