"""Making a cache, and taking a step: cache.json once, then one generation after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from latentcache.config.sections import Config
from latentcache.core.records import ShardId
from latentcache.core.spec import LatentSpec
from latentcache.errors import CacheError, ConfigError, CorruptionError, RecipeMismatchError
from latentcache.format.generations import read_generations
from latentcache.format.lease import UNGUARDED, Leaseholder
from latentcache.format.manifest import (
    Manifest,
    read_all,
    read_manifest,
    recipe_difference,
    refresh,
)
from latentcache.format.paths import (
    CACHE_JSON,
    LEASE,
    QUANTISER,
    SAMPLES,
    sample_path,
    samples_folder,
    shard_of_sample_file,
)
from latentcache.format.planned_rows import difference
from latentcache.format.quantiser import sha256, write_quantiser
from latentcache.format.rounds import Rounds
from latentcache.format.schemas import INDEX_SCHEMA, PLAN_SCHEMA, RETIRED_SCHEMA
from latentcache.format.shards import get_format
from latentcache.format.snapshot import known_index, publish_current, without_shards
from latentcache.format.tables import read_bounded, read_table
from latentcache.planning.planned import PlannedCache
from latentcache.planning.quantiser import quantiser_of
from latentcache.planning.recipe import make_manifest
from latentcache.planning.retry import plan_repair
from latentcache.planning.step import Step, joined, write_step
from latentcache.storage.folder import Storage, redact
from latentcache.storage.places import check_new_place
from latentcache.storage.urls import is_url

#: What all of a cache's shards have in common, beside the recipe.
SETTINGS = ("format", "compression", "shard_clips", "chunk_frames")


def open_or_new(
    config: Config, spec: LatentSpec, encoder_identity: Mapping[str, Any]
) -> PlannedCache:
    """Return the cache in a configuration's folder, or one that is yet to be made, with nothing planned.

    Looked at before the corpus is read. Raises RecipeMismatchError, CacheError, StorageError.
    """
    _check_place(config.cache.url)
    storage = Storage(config.cache.url, config.cache.storage_options)
    wanted = make_manifest(config, spec, encoder_identity)
    found = storage.list("")
    if storage.exists(CACHE_JSON):
        manifest = read_all(storage)
        _check_same(storage, manifest, _with_its_shards(config, wanted, manifest))
        lacks = manifest.quantiser_sha256 is not None and QUANTISER not in found
        quantiser = quantiser_of(config) if lacks else None
    else:
        check_unused(storage, found)
        quantiser = quantiser_of(config)
        digest = None if quantiser is None else sha256(quantiser)
        manifest = replace(wanted, quantiser_sha256=digest)
    return PlannedCache(config=config, manifest=manifest, storage=storage, quantiser=quantiser)


def _check_place(url: str) -> None:
    """Raise ConfigError for a file, and for a place that goes with a Ray job."""
    check_new_place(url, "cache.url")
    if not is_url(url) and Path(url).expanduser().is_file():
        raise ConfigError(
            f"cache.url {url!r} is a file, and a cache is a folder: name another place"
        )


def take_step(
    planned: PlannedCache, step: Step, holder: Leaseholder = UNGUARDED
) -> PlannedCache | None:
    """Make the cache if it is not there, and take a step; returns the cache after it.

    None: another run has taken a step meanwhile, so that this one must be planned again.
    holder: of the lease that the storage may need. Raises RecipeMismatchError, LeaseError, StorageError.
    """
    storage, manifest = planned.storage, planned.manifest
    if not manifest.generations:
        _check_leftovers(storage, manifest, step)
        storage, manifest = _create(planned, holder)
        if manifest.generations:  # planned by another run, so this step may hold the same clips
            return None
    if planned.quantiser is not None:
        write_quantiser(storage, manifest, planned.quantiser)
    taken = not step or write_step(storage, manifest, step)
    manifest = refresh(storage, manifest)
    write_metadata(storage, manifest)
    if not taken:
        return None
    return PlannedCache(config=planned.config, manifest=manifest, storage=storage)


def repair_cache(
    storage: Storage,
    damaged: Mapping[ShardId, Iterable[int]],
    *,
    derived: Iterable[ShardId] = (),
    is_index_wrong: bool = False,
) -> int:
    """Retire damaged rows, plan their clips again, and publish the snapshot; returns how many.

    Of shards whose sample tables were written again, `derived`, nothing is taken over from the published
    snapshot; is_index_wrong: nothing at all. Raises CacheError, StorageError.
    """
    rows = [
        {"bucket": shard.bucket, "shard": shard.number, "row": row, "why": ""}
        for shard, numbers in damaged.items()
        for row in numbers
    ]
    num_clips = _plan_repair(storage, pa.Table.from_pylist(rows, schema=RETIRED_SCHEMA))
    manifest = read_manifest(storage)
    known = INDEX_SCHEMA.empty_table() if is_index_wrong else known_index(storage, manifest)
    publish_current(storage, manifest, without_shards(known, derived))
    return num_clips


def _plan_repair(storage: Storage, table: pa.Table) -> int:
    """Take the step that plans damaged rows again, if there are any; returns how many."""
    rounds = Rounds("the repair")
    while table.num_rows:
        rounds.next()
        manifest = read_manifest(storage)
        step = plan_repair(storage, manifest, table)
        if not step:
            break
        if write_step(storage, manifest, step):
            write_metadata(storage, refresh(storage, manifest))
            return step.num_clips
    return 0


def _check_leftovers(storage: Storage, manifest: Manifest, step: Step) -> None:
    """Refuse to make a cache where one was whose shards are there still, and are not what is planned.

    They would be taken for committed: a recipe says nothing of clips. Those of the same clips of the same
    files, with the same captions and kept columns, are, which is how a cache whose description was lost
    is put right. Where its generations are there, its plan is, with which the corpus is then compared.
    """
    if storage.exists(CACHE_JSON) or _has_generations(storage, manifest.fingerprint):
        return
    planned = {bucket.name: tables for bucket, tables in step.clips.items()}
    for bucket in storage.folders(SAMPLES):
        rows = joined(planned.get(bucket, []), PLAN_SCHEMA)
        for name in storage.names(samples_folder(bucket)):
            number = shard_of_sample_file(name)
            if number is None:
                continue
            path = sample_path(bucket, number)
            what = difference(
                read_table(storage, path),
                rows.slice(number * manifest.shard_clips, manifest.shard_clips),
            )
            if what is not None and not storage.exists(CACHE_JSON):
                raise CacheError(
                    f"{redact(storage.url)} is no cache, but holds shards of one whose cache.json is gone, "
                    f"and {path} {what} than this corpus has there. Nothing was written. "
                    "Remove the whole folder once no run works on it, or give cache.url another one."
                )


def _has_generations(storage: Storage, fingerprint: str) -> bool:
    """Tell whether generations of this recipe are there. Raises CorruptionError."""
    generations = read_generations(storage)
    return bool(generations) and generations[0].fingerprint == fingerprint


def _create(planned: PlannedCache, holder: Leaseholder) -> tuple[Storage, Manifest]:
    """Write cache.json, or take the one that another run has written meanwhile.

    Returns the storage through which this run may write, too.
    """
    storage = planned.storage
    if not storage.exists(CACHE_JSON):
        exclusive = storage.creates_exclusively(CACHE_JSON)
        storage = holder.over(storage, exclusive=exclusive)
        storage.create(CACHE_JSON, planned.manifest.with_exclusive(exclusive).to_bytes())
    manifest = read_all(storage)
    _check_same(storage, manifest, _with_its_shards(planned.config, planned.manifest, manifest))
    return holder.over(storage, exclusive=manifest.exclusive), manifest


def sized(planned: PlannedCache, num_clips: int) -> PlannedCache:
    """Return a cache that is yet to be made, in shards for so many clips; any other as it is."""
    if planned.config.cache.shard_clips != "auto" or planned.storage.exists(CACHE_JSON):
        return planned
    config = planned.config
    shard_clips = config.cache.shard_clips_of(num_clips, config.run.workers)
    return replace(planned, manifest=replace(planned.manifest, shard_clips=shard_clips))


def _with_its_shards(config: Config, wanted: Manifest, there: Manifest) -> Manifest:
    """Return the wanted cache in shards of the size that one has, where any will do."""
    auto = config.cache.shard_clips == "auto"
    return replace(wanted, shard_clips=there.shard_clips) if auto else wanted


def write_metadata(storage: Storage, manifest: Manifest) -> None:
    """Write the latents' metadata, as `write_arrays` does."""

    def metadata(now: Manifest) -> Mapping[str, bytes]:
        return get_format(now.format).metadata(list(now.layouts().values()))

    write_arrays(storage, manifest, metadata)


def write_arrays(
    storage: Storage, manifest: Manifest, metadata: Callable[[Manifest], Mapping[str, bytes]]
) -> None:
    """Write arrays' metadata where it is missing, damaged, or of a smaller array. Arrays only grow.

    Of several runs that grow a cache at once, the last one has seen all generations. metadata: of the
    cache as it is planned now, by path.
    """
    rounds, now = Rounds("writing the metadata of the arrays"), refresh(storage, manifest)
    while True:
        rounds.next()
        manifest = now
        for path, data in metadata(manifest).items():
            if _read(storage, path) != data:
                storage.write(path, data)
        now = refresh(storage, manifest)
        if now.generations == manifest.generations:
            return


def _read(storage: Storage, path: str) -> bytes | None:
    try:
        return read_bounded(storage, path)
    except (FileNotFoundError, CorruptionError):
        return None


def check_unused(storage: Storage, found: Iterable[str]) -> None:
    """Refuse a folder with somebody else's files: a cache must be the only thing in its folder."""
    foreign = set(found) - {"zarr.json", LEASE}
    if foreign:
        raise CacheError(
            f"{redact(storage.url)} is not empty and is no cache: it holds "
            f"{', '.join(sorted(foreign)[:3])}. Nothing was written. Give cache.url a folder of its own."
        )


def _check_same(storage: Storage, old: Manifest, new: Manifest) -> None:
    """Raise RecipeMismatchError, naming what differs of all that determines latents; then of shards."""
    url = redact(storage.url)
    _refuse(
        recipe_difference(old.recipe, new.recipe),
        f"{url} was made with another recipe; continuing would mix two kinds of latents",
        f"To finish that cache: latentcache resume {url}. For the new recipe: give cache.url another "
        "folder.",
    )
    lines: list[str] = []
    for name in SETTINGS:
        key = f"cache.{name}"
        lines += recipe_difference({key: getattr(old, name)}, {key: getattr(new, name)})
    _refuse(
        lines,
        f"{url} is there, and its shards are made in another way, which cannot change in a cache",
        "Give these settings the values that they have in the cache, or give cache.url another folder.",
    )


def _refuse(differences: Sequence[str], what: str, fix: str) -> None:
    if differences:
        lines = "\n".join(f"  {line}" for line in differences)
        raise RecipeMismatchError(f"{what}. Nothing was changed. The difference:\n{lines}\n{fix}")
