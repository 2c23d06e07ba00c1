"""From a configuration to a planned cache, and from a cache back to what is left to do.

Everything a user can get wrong is found here, before a model is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentcache import encoders
from latentcache.config.files import load_stored_config
from latentcache.config.sections import Config
from latentcache.core.records import REASONS, Bucket, LatentSpec, Shard
from latentcache.corpus.probe import probe_sources
from latentcache.corpus.saved_probes import SavedProbes
from latentcache.corpus.sources import Corpus, read_corpus
from latentcache.decoders.identity import identify_url
from latentcache.decoders.pool import DecodePool
from latentcache.errors import (
    CacheError,
    ClipError,
    ConfigError,
    CorpusError,
    CorruptionError,
    RecipeMismatchError,
)
from latentcache.format.damage import advice, damaged, read_table
from latentcache.format.manifest import (
    BucketInfo,
    Manifest,
    fingerprint,
    read_manifest,
    recipe_difference,
)
from latentcache.format.tables import (
    PLAN_SCHEMA,
    REJECTED,
    check_plan,
    plan_path,
    sample_path,
    samples_folder,
    shard_of_sample_file,
)
from latentcache.planning.plan import Plan, check_geometry, make_plan, to_shard
from latentcache.running.queue import Task
from latentcache.running.runners.local import num_cpus
from latentcache.storage.folder import Storage, redact

RECIPE_VERSION = 1
DEFAULT_DTYPE = "bfloat16"
#: Clips whose sources are looked at before a run goes on: of remote ones, some 30 s.
MAX_CHECKED = 10_000
#: Clips that an error names before it says how many more there are.
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A planned run: what `precompute` and `resume` both work from."""

    config: Config
    manifest: Manifest
    storage: Storage
    kept: tuple[pa.Field, ...]


def resolve_encoder(config: Config) -> tuple[LatentSpec, Mapping[str, Any]]:
    """Return the encoder's spec and its part of the recipe, without loading it. Raises ConfigError."""
    module, encoder_config = encoders.resolve(config.encoder)
    spec = module.describe(encoder_config, dtype=config.cache.dtype or DEFAULT_DTYPE)
    if spec.ids is not None and config.cache.dtype is not None:
        raise ConfigError(
            f"cache.dtype is {config.cache.dtype}, and {spec.model_class} gives ids, which are stored as "
            f"{spec.dtype}: remove cache.dtype"
        )
    packages = {**spec.packages, "torch": version("torch")}
    return replace(spec, packages=packages), module.identity(encoder_config)


def plan_corpus(
    config: Config,
    spec: LatentSpec,
    on_sources: Callable[[Corpus], object] = lambda _: None,
    on_probed: Callable[[], object] = lambda: None,
    saved: SavedProbes | None = None,
    max_sources: int | None = None,
) -> Plan:
    """Read, probe and plan the corpus, or `max_sources` of it, drawn at random.

    Raises CorpusError, GeometryError; of `saved` StorageError.
    """
    check_geometry(config.clips, spec)
    corpus = read_corpus(config.corpus)
    on_sources(corpus)
    processes = config.run.decode_processes
    with DecodePool(
        num_processes=num_cpus() if processes == "auto" else processes,
        num_buffers=num_cpus() if processes == "auto" else processes,
        timeout_s=config.run.decode_timeout_s,
        storage_options=config.corpus.storage_options,
        max_pixels=config.corpus.max_pixels,
        memory_bytes=config.run.decode_memory_bytes,
    ) as pool:
        sources = probe_sources(_some(corpus.table, max_sources), pool, on_probed, saved)
    plan = make_plan(sources, config.clips, spec, shard_clips=config.cache.shard_clips)
    if not plan.num_clips:
        raise CorpusError(_nothing_to_encode(config, plan))
    return plan


def _some(sources: pa.Table, number: int | None) -> pa.Table:
    if number is None or number >= sources.num_rows:
        return sources
    mask = np.zeros(sources.num_rows, bool)
    mask[np.random.default_rng(0).choice(sources.num_rows, number, replace=False)] = True
    return sources.filter(pa.array(mask))


def _nothing_to_encode(config: Config, plan: Plan) -> str:
    reasons = Counter(plan.rejected["reason"].to_pylist())
    lines = [f"  {count} x {reason}: {REASONS[reason]}" for reason, count in reasons.most_common()]
    examples = plan.rejected.slice(0, NAMED).to_pylist()
    lines += [f"  {row['source']}: {row['message']}" for row in examples]
    head = f"{redact(config.corpus.source)}: no source gives a clip, so there is nothing to encode:"
    return "\n".join([head, *lines])


def make_recipe(
    config: Config, spec: LatentSpec, encoder_identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that determines the latents' values but the corpus."""
    return {
        "version": RECIPE_VERSION,
        "clips": config.clips.model_dump(mode="json"),
        "decoder": {"family": "ffmpeg", "frames": "presentation order", "rotation": "applied"},
        "resize": "antialiased, cover, centre crop",
        "encoder": dict(encoder_identity),
        "stored": spec.stored,
        "dtype": spec.dtype,
    }


def make_manifest(
    config: Config, spec: LatentSpec, encoder_identity: Mapping[str, Any], plan: Plan
) -> Manifest:
    """Return the cache.json of a plan."""
    recipe = make_recipe(config, spec, encoder_identity)
    digest = plan.digest()
    buckets = tuple(
        BucketInfo(
            name=bucket.name,
            num_clips=table.num_rows,
            num_shards=-(-table.num_rows // config.cache.shard_clips),
            shape=spec.latent_shape(bucket.frames, bucket.height, bucket.width),
            pixel_frames=tuple(
                spec.pixel_frames(t, bucket.frames)
                for t in range(-(-bucket.frames // spec.stride[0]))
            ),
        )
        for bucket, table in sorted(plan.buckets.items())
    )
    return Manifest(
        fingerprint=fingerprint(recipe, digest),
        recipe=recipe,
        plan_sha256=digest,
        spec=spec,
        format=config.cache.format,
        compression=config.cache.compression.model_dump(),
        shard_clips=config.cache.shard_clips,
        buckets=buckets,
        config=config.without_secrets(),
    )


def kept_fields(schema: pa.Schema) -> tuple[pa.Field, ...]:
    """Return the columns of a plan that were kept from the corpus."""
    return tuple(field for field in schema if field.name not in PLAN_SCHEMA.names)


def reopen_cache(
    url: str, storage_options: Mapping[str, Any], overrides: Sequence[str] = ()
) -> Prepared:
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
    return Prepared(config=config, manifest=manifest, storage=storage, kept=kept_fields(schema))


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


class ShardLoader:
    """Reads shards from the plans of a cache; each plan once. Not for several threads."""

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self._storage = storage
        self._manifest = manifest
        self._plans: dict[str, pa.Table] = {}

    def table(self, task: Task) -> pa.Table:
        """Return the plan's rows of a task's shard."""
        if task.bucket not in self._plans:
            self._plans[task.bucket] = read_plan(self._storage, self._manifest, task.bucket)
        rows = self._manifest.shard_clips
        return self._plans[task.bucket].slice(task.index * rows, rows)

    def __call__(self, task: Task) -> Shard:
        """Return a task's shard with its clips."""
        return to_shard(self.table(task), Bucket.parse(task.bucket), task.index)


def missing_shards(storage: Storage, manifest: Manifest) -> list[Task]:
    """Return the shards without a sample table, in order."""
    tasks = []
    for bucket in manifest.buckets:
        names = storage.list(samples_folder(bucket.name))
        done = {shard_of_sample_file(name) for name in names}
        tasks += [
            Task(bucket=bucket.name, index=index)
            for index in range(bucket.num_shards)
            if index not in done
        ]
    return tasks


def num_clips(manifest: Manifest, task: Task) -> int:
    """Return how many clips a task's shard has."""
    bucket = next(b for b in manifest.buckets if b.name == task.bucket)
    return min(manifest.shard_clips, bucket.num_clips - task.index * manifest.shard_clips)


def failed_shards(index: pa.Table) -> list[Task]:
    """Return the committed shards that have failed clips, to be retried."""
    failed = index.filter(pc.less(index["num_ok"], index["num_clips"]))
    return [
        Task(bucket=row["bucket"], index=row["shard"], retry_failed=True)
        for row in failed.to_pylist()
    ]


def num_rejected(storage: Storage) -> int:
    """Return how many sources the plan could not use."""
    try:
        return int(read_table(storage, sample_path(REJECTED, 0), ["key"]).num_rows)
    except FileNotFoundError:
        return 0


def check_sources(prepared: Prepared, tasks: Sequence[Task]) -> int | None:
    """Refuse where a source of these shards is gone or is not the file that was planned.

    Of many clips, every k-th shard is looked at, for MAX_CHECKED clips or so; decoding looks at each.
    Returns how many sources were looked at, None where it was all.
    """
    loader = ShardLoader(prepared.storage, prepared.manifest)
    expected: dict[str, str] = {}
    clips = sum(num_clips(prepared.manifest, task) for task in tasks)
    for task in tasks[:: max(1, -(-clips // MAX_CHECKED))]:
        table = loader.table(task)
        expected.update(zip(table["url"].to_pylist(), table["identity"].to_pylist(), strict=True))
    options = prepared.config.corpus.storage_options

    def changed(item: tuple[str, str]) -> str | None:
        try:
            found = identify_url(item[0], options)
        except ClipError as error:
            return str(error)
        return None if found == item[1] else f"{item[0]}: {item[1]} in the plan, {found} now"

    with ThreadPoolExecutor(16) as pool:
        lines = [line for line in pool.map(changed, expected.items()) if line]
    if lines:
        more = [f"  and {len(lines) - NAMED} more"] if len(lines) > NAMED else []
        raise RecipeMismatchError(
            f"{redact(prepared.storage.url)} cannot be resumed: {len(lines)} of {len(expected)} source "
            "files are not the ones that were planned (size and digest differ). Nothing was changed.\n"
            + "\n".join([*(f"  {line}" for line in lines[:NAMED]), *more])
            + "\nIf the corpus has moved, run precompute with the new corpus.source, which keeps what is "
            "committed where sources have the names that they had. Else restore them; or add "
            "--skip-changed to record their clips as failed."
        )
    return len(expected) if clips > MAX_CHECKED else None
