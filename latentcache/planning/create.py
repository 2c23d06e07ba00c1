"""Making a cache: its folder is looked at before the corpus is read; then the plan is written there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from latentcache.config.sections import Config
from latentcache.core.spec import LatentSpec
from latentcache.errors import CacheError, CorruptionError, RecipeMismatchError
from latentcache.format.manifest import Manifest, read_manifest, recipe_difference
from latentcache.format.paths import CACHE_JSON, REJECTED, plan_path, sample_path
from latentcache.format.schemas import plan_facts
from latentcache.format.shards import get_format
from latentcache.format.tables import from_parquet, read_bounded, to_parquet
from latentcache.planning.plan import Plan
from latentcache.planning.planned import PlannedCache, kept_fields, read_plan
from latentcache.planning.planner import NAMED
from latentcache.planning.recipe import make_recipe
from latentcache.redaction import printable
from latentcache.storage.folder import Storage, redact

#: Of `cache`, what all of a cache's shards have in common.
SETTINGS = ("format", "compression", "shard_clips")


def check_folder(config: Config, spec: LatentSpec, encoder_identity: Mapping[str, Any]) -> bool:
    """Refuse a folder that cannot become this cache, before the corpus is read.

    Returns whether the cache has been planned. Raises RecipeMismatchError, CacheError, StorageError.
    """
    storage = Storage(config.cache.url, config.cache.storage_options)
    found = storage.list("")
    if not storage.exists(CACHE_JSON):
        _check_unused(storage, found)
        return False
    settings = config.cache.model_dump()
    recipe = make_recipe(config, spec, encoder_identity)
    _refuse(storage, _recipe_difference(read_manifest(storage), recipe, settings))
    return True


def create_cache(config: Config, manifest: Manifest, plan: Plan) -> PlannedCache:
    """Write the plan and its cache.json, or check that the cache that is there has the same ones.

    cache.json is written last: without it there is no cache, and planning starts again.
    Raises RecipeMismatchError, CacheError, StorageError.
    """
    storage = Storage(config.cache.url, config.cache.storage_options)
    kept = kept_fields(next(iter(plan.buckets.values())).schema)
    # Listed first, or what another run makes of the folder meanwhile would look foreign.
    found = storage.list("")
    if storage.exists(CACHE_JSON):
        _check_same(storage, read_manifest(storage), manifest, plan)
    else:
        _check_unused(storage, found)
        for path, data in _planned(manifest, plan):
            storage.write(path, data)
        if not storage.create(CACHE_JSON, manifest.to_bytes()):
            _check_same(storage, read_manifest(storage), manifest, plan)
    _mend(storage, manifest, plan)
    return PlannedCache(config=config, manifest=manifest, storage=storage, kept=kept)


def _planned(manifest: Manifest, plan: Plan) -> Iterator[tuple[str, bytes]]:
    """Yield path and bytes of everything that a plan writes but cache.json."""
    for bucket, table in plan.buckets.items():
        yield plan_path(bucket.name), to_parquet(table, plan_facts(manifest.fingerprint))
    layouts = list(manifest.layouts().values())
    yield from get_format(manifest.format).metadata(layouts).items()
    yield sample_path(REJECTED, 0), to_parquet(plan.rejected)


def _mend(storage: Storage, manifest: Manifest, plan: Plan) -> None:
    """Write anew what is gone or differs; the plan's digest is that of cache.json.

    What differs is damaged, of another run that planned the same folder meanwhile, or of a corpus that
    has moved since.
    """
    for path, data in _planned(manifest, plan):
        try:
            if read_bounded(storage, path) == data:
                continue
        except (FileNotFoundError, CorruptionError):
            pass
        storage.write(path, data)


def _check_unused(storage: Storage, found: Iterable[str]) -> None:
    """Refuse a folder with somebody else's files: a cache must be the only thing in its folder."""
    foreign = set(found) - {"zarr.json"}
    if foreign:
        raise CacheError(
            f"{redact(storage.url)} is not empty and is no cache: it holds "
            f"{', '.join(sorted(foreign)[:3])}. Nothing was written. Give cache.url a folder of its own."
        )


def _check_same(storage: Storage, old: Manifest, new: Manifest, plan: Plan) -> None:
    settings = {name: getattr(new, name) for name in SETTINGS}
    lines = _recipe_difference(old, new.recipe, settings)
    if not lines:
        same = old.plan_sha256 == new.plan_sha256
        lines = (_kept_difference if same else _plan_difference)(storage, old, plan)
    _refuse(storage, lines)


def _recipe_difference(
    old: Manifest, recipe: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[str]:
    lines = recipe_difference(old.recipe, recipe)
    for name in SETTINGS:
        key = f"cache.{name}"
        lines += recipe_difference({key: getattr(old, name)}, {key: settings[name]})
    return lines


def _refuse(storage: Storage, differences: Sequence[str]) -> None:
    if differences:
        raise RecipeMismatchError(
            f"{redact(storage.url)} was made with another recipe; continuing would mix two kinds of "
            "latents. Nothing was changed. The difference:\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nTo finish that cache: latentcache resume "
            + f"{redact(storage.url)}. For the new recipe: give cache.url another folder."
        )


def _plan_difference(storage: Storage, old: Manifest, plan: Plan) -> list[str]:
    before: dict[str, str] = {}
    for bucket in old.buckets:
        try:
            table = read_plan(storage, old, bucket.name).select(["source", "identity"])
        except CacheError as error:
            return [f"another corpus; which one cannot be said: {error}"]
        before.update(zip(*table.to_pydict().values(), strict=True))
    now: dict[str, str] = {}
    for table in plan.buckets.values():
        now.update(zip(table["source"].to_pylist(), table["identity"].to_pylist(), strict=True))
    kinds = {
        "new in the corpus": sorted(now.keys() - before.keys()),
        "gone from the corpus": sorted(before.keys() - now.keys()),
        "changed": sorted(n for n in now.keys() & before.keys() if now[n] != before[n]),
    }
    lines = [
        f"{len(names)} sources {what}: {_some(names)}" for what, names in kinds.items() if names
    ]
    return lines or ["the same sources give other clips, captions or kept columns"]


def _kept_difference(storage: Storage, old: Manifest, plan: Plan) -> list[str]:
    """Say whose types differ of the kept columns: there could be no table of all clips."""
    try:
        before = read_plan(storage, old, old.buckets[0].name).schema
    except CacheError:
        return []  # it is written anew
    table = next(iter(plan.buckets.values()))
    now = from_parquet(to_parquet(table.slice(0, 0))).schema
    return [
        f"corpus.keep: {field.name} is {before.field(field.name).type} in the cache, {field.type} now"
        for field in kept_fields(now)
        if before.field(field.name).type != field.type
    ]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(printable, names[:NAMED])) + more
