"""A planned cache: opened again, and what is left to do in it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from latentcache.config.files import load_stored_config
from latentcache.config.sections import Config
from latentcache.core.records import Bucket, Shard, ShardId
from latentcache.errors import (
    CacheError,
    CorruptionError,
    RecipeMismatchError,
)
from latentcache.format.damage import advice, damaged
from latentcache.format.manifest import (
    Manifest,
    read_manifest,
    recipe_difference,
)
from latentcache.format.paths import (
    REJECTED,
    plan_path,
    sample_path,
    samples_folder,
    shard_of_sample_file,
)
from latentcache.format.schemas import PLAN_SCHEMA, check_plan
from latentcache.format.tables import read_table
from latentcache.planning.plan import to_shard
from latentcache.planning.recipe import (
    resolve_encoder,
)
from latentcache.storage.folder import Storage, redact


class PlanReader:
    """Reads shards from the plans of a cache; each plan once. Not for several threads."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self._storage = storage
        self._manifest = manifest
        self._plans: dict[str, pa.Table] = {}

    def table(self, shard: ShardId) -> pa.Table:
        """Return the plan's rows of a shard."""
        if shard.bucket not in self._plans:
            self._plans[shard.bucket] = read_plan(self._storage, self._manifest, shard.bucket)
        rows = self._manifest.shard_clips
        return self._plans[shard.bucket].slice(shard.number * rows, rows)

    def shard(self, shard: ShardId) -> Shard:
        """Return a shard with its clips."""
        return to_shard(self.table(shard), Bucket.parse(shard.bucket), shard.number)


@dataclass(frozen=True, kw_only=True)
class PlannedCache:
    """A planned cache: what `precompute` and `resume` both work from. kept: columns of the corpus."""

    config: Config
    manifest: Manifest
    storage: Storage
    kept: tuple[pa.Field, ...]

    @functools.cached_property
    def plan(self) -> PlanReader:
        """The clips of its shards."""
        return PlanReader(self.storage, self.manifest)

    def missing_shards(self) -> list[ShardId]:
        """Return the shards without a sample table, in order."""
        shards = []
        for bucket in self.manifest.buckets:
            names = self.storage.list(samples_folder(bucket.name))
            done = {shard_of_sample_file(name) for name in names}
            numbers = (number for number in range(bucket.num_shards) if number not in done)
            shards += [ShardId(bucket.name, number) for number in numbers]
        return shards

    def num_clips(self, shards: Iterable[ShardId]) -> int:
        """Return how many clips some shards have, in all."""
        sizes = {bucket.name: bucket.num_clips for bucket in self.manifest.buckets}
        rows = self.manifest.shard_clips
        return sum(min(rows, sizes[bucket] - index * rows) for bucket, index in shards)


def kept_fields(schema: pa.Schema) -> tuple[pa.Field, ...]:
    """Return the columns of a plan that were kept from the corpus."""
    return tuple(field for field in schema if field.name not in PLAN_SCHEMA.names)


def reopen_cache(
    url: str, storage_options: Mapping[str, Any], overrides: Sequence[str] = ()
) -> PlannedCache:
    """Return the run that a cache was planned for. Raises CacheError, RecipeMismatchError, ConfigError.

    overrides: for `run.*` and for where things are, such as encoder.model; the recipe cannot change.
    """
    storage = Storage(url, storage_options)
    manifest = read_manifest(storage)
    config = load_stored_config(
        manifest.config, url=url, storage_options=storage_options, overrides=overrides
    )
    spec, identity = resolve_encoder(config)
    parts = ("encoder", "clips", "dtype")
    clips = config.clips.model_dump(mode="json")
    lines = recipe_difference(
        {part: manifest.recipe[part] for part in parts},
        {"encoder": identity, "clips": clips, "dtype": spec.dtype},
    )
    if lines:
        raise RecipeMismatchError(
            f"{redact(url)} cannot be resumed: what is installed or given is not what its recipe "
            "says, and the new latents would differ from the old. Nothing was changed. The difference:\n"
            + "\n".join(f"  {line}" for line in lines)
        )
    schema = read_plan(storage, manifest, manifest.buckets[0].name).schema
    return PlannedCache(config=config, manifest=manifest, storage=storage, kept=kept_fields(schema))


def read_plan(storage: Storage, manifest: Manifest, bucket: str) -> pa.Table:
    """Read a bucket's plan. Raises CacheError where it is missing, CorruptionError where damaged."""
    path = plan_path(bucket)
    try:
        table = read_table(storage, path)
        check_plan(table, manifest.fingerprint)
    except FileNotFoundError:
        raise CacheError(
            f"{redact(storage.url)}/{path} is missing, so what is left to do is unknown. "
            + advice(redact(storage.url), path)
        ) from None
    except CorruptionError:
        raise
    except ValueError as error:
        raise damaged(storage, path, f"is not this cache's plan: {error}") from error
    return table


def failed_shards(index: pa.Table) -> list[ShardId]:
    """Return the committed shards of a snapshot that have failed clips, to be retried."""
    failed = index.filter(pc.less(index["num_ok"], index["num_clips"]))
    return [ShardId(row["bucket"], row["shard"]) for row in failed.to_pylist()]


def num_rejected(storage: Storage) -> int:
    """Return how many sources the plan could not use."""
    try:
        return int(read_table(storage, sample_path(REJECTED, 0), ["key"]).num_rows)
    except FileNotFoundError:
        return 0
