"""A planned cache: opened again, and what is left to do in it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from latentcache.config.files import apply_overrides, load_stored_config
from latentcache.config.sections import Config
from latentcache.core.records import Bucket, ClipId, Shard, ShardId
from latentcache.errors import CacheError, ConfigError, CorruptionError, RecipeMismatchError
from latentcache.format.changes import Changes, Standing, read_changes, without_rows
from latentcache.format.columns import read_columns, with_columns
from latentcache.format.damage import advice, damaged
from latentcache.format.generations import Generation
from latentcache.format.imports import Import, Imports, read_imports
from latentcache.format.lease import Leaseholder
from latentcache.format.manifest import Manifest, read_manifest, recipe_difference
from latentcache.format.paths import plan_path
from latentcache.format.schemas import PLAN_SCHEMA, check_plan
from latentcache.format.snapshot import committed_places
from latentcache.format.tables import read_table
from latentcache.planning.moved_urls import MovedUrls
from latentcache.planning.plan import to_shard
from latentcache.planning.recipe import resolve_encoder
from latentcache.storage.folder import Storage, redact

#: Bytes of plans that are kept in memory; the one that is read stays, however large it is.
KEPT_BYTES = 1 << 29
#: Rows of a plan that shards are cut from.
WINDOW_ROWS = 1 << 16


class PlanReader:
    """Reads shards from the plans of a cache's generations. Not for several threads.

    A plan is read once, as long as those that are read take no more than KEPT_BYTES together: shards come
    bucket by bucket, and of a large cache few buckets are in memory.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self._storage = storage
        self._buckets = {bucket.name: bucket for bucket in manifest.buckets}
        self._manifest = manifest
        self._plans: dict[tuple[str, str], pa.Table] = {}
        self._num_bytes = 0
        self._window = (("", "", 0), PLAN_SCHEMA.empty_table())
        self._imports: dict[int, Imports] = {}

    @functools.cached_property
    def changes(self) -> Changes:
        """What generations have changed since the shards were planned."""
        return read_changes(self._storage, self._manifest)

    @functools.cached_property
    def standing(self) -> Standing:
        """Which rows count once every planned shard is committed."""
        return self.changes.planned()

    def table(self, shard: ShardId) -> pa.Table:
        """Return the plan's rows of a shard, with the URLs that their sources have now."""
        generation, part = self._buckets[shard.bucket].part_of(shard.number)
        first = (shard.number - part.first_shard) * self._manifest.shard_clips
        rows = self._slice(generation, shard.bucket, first)
        return self._urls.put_into(rows, generation.number)

    def _slice(self, generation: Generation, bucket: str, first: int) -> pa.Table:
        """Return a shard's rows of a plan. Shards come in order, so a slice of a slice passes by few."""
        num_rows = self._manifest.shard_clips
        key = (generation.folder, bucket, first // WINDOW_ROWS * WINDOW_ROWS)
        if self._window[0] != key:
            plan = self.plan(generation, bucket)
            self._window = (key, plan.slice(key[2], WINDOW_ROWS + num_rows))
        return self._window[1].slice(first - key[2], num_rows)

    def rows(self, shard: ShardId, standing: Standing | None = None) -> pa.Table:
        """Return the rows of a shard that count, with captions and kept columns as they are now.

        standing: omitted, those that count once every planned shard is committed.
        """
        standing = standing or self.standing
        rows = without_rows(self.table(shard), standing.rows(shard))
        folder = standing.columns.get(shard)
        if folder is None:
            return rows
        changed = read_columns(self._storage, folder, shard)
        fresh = with_columns(rows, changed)
        known = {*PLAN_SCHEMA.names, *changed.column_names}  # others the corpus no longer has
        return fresh.select([name for name in fresh.column_names if name in known])

    def plan(self, generation: Generation, bucket: str) -> pa.Table:
        """Return the clips that a generation adds to a bucket."""
        key = (generation.folder, bucket)
        if key not in self._plans:
            self._plans[key] = read_plan(self._storage, self._manifest, *key)
            self._num_bytes += self._plans[key].nbytes
            while self._num_bytes > KEPT_BYTES and len(self._plans) > 1:
                first = next(iter(self._plans))  # the one that was read first
                self._num_bytes -= self._plans.pop(first).nbytes
        return self._plans[key]

    def plans(self, bucket: str) -> Iterator[pa.Table]:
        """Yield the plans of a bucket, in the order of its shards."""
        for generation, _ in self._buckets[bucket].parts:
            yield self.plan(generation, bucket)

    def origins(self, shard: ShardId) -> Mapping[int, ClipId]:
        """Return what the rows of a shard are to be copied from; nothing if its clips are to be encoded."""
        return self.changes.origins(shard)

    def imports(self, shard: ShardId) -> Mapping[int, Import]:
        """Return what the rows of a shard are to be copied from in other caches, by row."""
        generation, _ = self._buckets[shard.bucket].part_of(shard.number)
        if not generation.num_imported:
            return {}
        if generation.number not in self._imports:
            self._imports[generation.number] = read_imports(self._storage, generation)
        return self._imports[generation.number].get(shard, {})

    def shard(self, shard: ShardId) -> Shard:
        """Return a shard with its clips."""
        retired = frozenset(self.standing.rows(shard))
        return to_shard(self.table(shard), Bucket.parse(shard.bucket), shard.number, retired)

    @functools.cached_property
    def _urls(self) -> MovedUrls:
        return MovedUrls(self._storage, self._manifest)


@dataclass(frozen=True, kw_only=True)
class PlannedCache:
    """A planned cache: what `precompute` and `resume` both work from.

    quantiser: the object that is to be created beside cache.json, None if it is there or there is none.
    """

    config: Config
    manifest: Manifest
    storage: Storage
    quantiser: bytes | None = None

    def held_by(self, holder: Leaseholder) -> PlannedCache:
        """Return the cache with the storage through which the holder's job may write. Raises LeaseError."""
        storage = holder.over(self.storage, exclusive=self.manifest.exclusive)
        return self if storage is self.storage else replace(self, storage=storage)

    @functools.cached_property
    def plan(self) -> PlanReader:
        """The clips of its shards."""
        return PlanReader(self.storage, self.manifest)

    def planned_shards(self) -> list[ShardId]:
        """Return the shards that have rows that count, in order."""
        retired = self.plan.standing.retired_shards(self.manifest)
        return [
            shard
            for bucket in self.manifest.buckets
            for shard in (ShardId(bucket.name, n) for n in range(bucket.num_shards))
            if shard not in retired
        ]

    def missing_shards(self) -> list[ShardId]:
        """Return the shards without a sample table that have rows that count, in order."""
        done = set(committed_places(self.storage, self.manifest))
        return [shard for shard in self.planned_shards() if shard not in done]

    def num_clips(self, shards: Iterable[ShardId]) -> int:
        """Return how many rows of some shards count, in all."""
        standing = self.plan.standing
        return sum(self.manifest.num_rows(shard) - len(standing.rows(shard)) for shard in shards)


def reopen_cache(
    url: str,
    storage_options: Mapping[str, Any],
    overrides: Sequence[str] = (),
    allowed_encoders: Sequence[str] = (),
) -> PlannedCache:
    """Return the run that a cache was planned for. Raises CacheError, RecipeMismatchError, ConfigError.

    overrides: for `run.*` and for where things are, such as encoder.model; the recipe cannot change.
    allowed_encoders: modules of others that may be imported if the cache names them.
    """
    _check_overrides(overrides)
    storage = Storage(url, storage_options)
    manifest = read_manifest(storage)
    config = load_stored_config(
        manifest.config,
        url=url,
        storage_options=storage_options,
        overrides=overrides,
        allowed_encoders=allowed_encoders,
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
    return PlannedCache(config=config, manifest=manifest, storage=storage)


#: Settings of a cache that is there, and why `resume` cannot change them.
_FIXED = {
    "cache.url": "which cache is resumed is the first argument",
    "cache.format": "its shards are in one format",
    "cache.dtype": "its latents have one type",
    "cache.shard_clips": "it is planned in shards of one size",
    "cache.chunk_frames": "its clips are cut in one way",
    "cache.compression": "its shards are compressed in one way",
    "corpus.source": "what it encodes is planned; run precompute with the corpus to take in what is new",
    "corpus.columns": "what it encodes is planned; run precompute with the corpus to take in what is new",
    "corpus.keep": "what it keeps is planned; run precompute with the corpus to take in what is new",
    "corpus.no_suffix": "what it encodes is planned; run precompute with the corpus to take in what is new",
    "corpus.weight": "what it keeps is planned; run precompute with the corpus to change weights",
    "corpus.per_frame": "what it keeps is planned; run precompute with the corpus to take in what is new",
}


def _check_overrides(overrides: Sequence[str]) -> None:
    """Raise ConfigError for an override that could not take effect, be it of a key or of its section."""
    given = apply_overrides({}, overrides)
    for name, why in _FIXED.items():
        section, _, key = name.partition(".")
        inner = given.get(section)
        if isinstance(inner, dict) and key in inner:
            raise ConfigError(
                f"{name} cannot be changed in a cache that is there: {why}. Leave it out; or make another "
                "cache with precompute."
            )


def read_plan(storage: Storage, manifest: Manifest, folder: str, bucket: str) -> pa.Table:
    """Read a generation's plan of a bucket. Raises CacheError if it is missing or damaged."""
    path = plan_path(folder, bucket)
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
