"""`write_field`: arrays per clip that a program of yours makes, as a field of a finished cache.

No encoder runs. Each shard is committed as that of any field is: created on condition, once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from latentcache.config.fields import GivenField
from latentcache.config.sections import RunConfig
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.fields import FieldArray, check_name
from latentcache.core.records import RETIRED, Bucket, ShardId
from latentcache.errors import ClipError, ConfigError
from latentcache.format.fields.commit import Sample, commit_field_shard
from latentcache.format.fields.manifest import FieldManifest, Version, field_fingerprint
from latentcache.format.fields.snapshot import committed_parts, publish_field
from latentcache.format.lease import Leaseholder
from latentcache.planning.fields.describe import describe_field
from latentcache.planning.fields.planned import create_manifest
from latentcache.reading.cache import Cache, open_cache
from latentcache.storage.folder import Storage

#: Gives a clip's arrays by its key; None where there are none.
Make = Callable[[str], Mapping[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What `write_field` did. num_ok, num_failed: clips that it wrote. num_before: shards that were there.

    reasons: of failed clips, and how many have each.
    """

    num_ok: int
    num_failed: int
    num_before: int
    reasons: Mapping[str, int]


def write_field(
    cache_or_url: Cache | str | Path,
    name: str,
    make: Make,
    *,
    arrays: Mapping[str, FieldArray] | FieldArray,
    recipe: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Written:
    """Write a field whose arrays `make(key)` gives, for each ok clip of a cache that does not have it yet.

    arrays: the field's own, or that under its name and further ones: {"ddim": .., "timesteps": ..}; `make`
    gives tensors or NumPy arrays by the same names, and batches have them as `ddim` and `ddim.timesteps`.
    With `padding`, the first axis may be shorter than the array's shape: give what is no padding. `make`
    may raise ClipError for a clip that it has nothing of. recipe: JSON values that say how the arrays were
    made; another recipe is another field, and is refused.

    Shard by shard: what is committed stays, so a program that was stopped goes on when it is run again, and
    loses at most one shard. Run it again, too, when the cache has grown. Two programs may write one field
    at once: the first to commit a shard counts. The arrays of a shard are held in memory.

    Raises ConfigError where a name, a shape or a type is wrong, RecipeMismatchError, CacheError.
    """
    if not callable(make):
        raise ConfigError(
            f"make is {make!r}: give a function of a clip's key that returns its arrays"
        )
    cache = cache_or_url
    if not isinstance(cache, Cache):
        cache = open_cache(str(cache), storage_options)
    planned = _plan(cache, name, arrays, dict(recipe or {}))
    with Leaseholder(lease_s=RunConfig().lease_s) as holder:
        storage = holder.over(cache.storage, exclusive=cache.manifest.exclusive)
        field = create_manifest(storage, cache.manifest, planned)
        return _Writer(cache, storage, field, make).write()


def _plan(
    cache: Cache, name: str, arrays: Mapping[str, FieldArray] | FieldArray, recipe: dict[str, Any]
) -> FieldManifest:
    """Return what the field is, with nothing written. Raises ConfigError."""
    check_name(name)
    if name in cache.batch_columns:
        raise ConfigError(
            f"a field cannot be named {name!r}: the cache has a column of that name, and a batch has one "
            "place for both"
        )
    try:
        json.dumps(recipe, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"recipe: it holds more than JSON values ({error}). Give texts, numbers, lists and dicts: it "
            "is stored with the field, and compared."
        ) from None
    found = {name: arrays} if isinstance(arrays, FieldArray) else dict(arrays)
    if name not in found or not all(isinstance(array, FieldArray) for array in found.values()):
        raise ConfigError(
            f"arrays: {', '.join(map(str, found)) or 'nothing'}. Give a FieldArray by each name, and the "
            f"field's own under {name!r}."
        )
    own = asdict(found.pop(name))
    _check_apart(found)
    others = [{**asdict(array), "name": key} for key, array in found.items()]
    config = GivenField(kind="given", arrays=[{**own, "name": ""}, *others], recipe=recipe)
    about = describe_field(config, cache.manifest)
    return FieldManifest(
        name=name,
        kind="given",
        fingerprint=field_fingerprint(about.recipe, about.arrays, cache.manifest.fingerprint),
        cache=cache.manifest.fingerprint,
        recipe=about.recipe,
        arrays=about.arrays,
        choices=1,
        generation=len(cache.manifest.generations),
        settings=config.model_dump(mode="json"),
    )


def _check_apart(arrays: Mapping[str, FieldArray]) -> None:
    """Raise ConfigError for an array with the name of what samples and batches say of a padded one."""
    said = {f"{key}_tokens": key for key, array in arrays.items() if array.padding}
    said |= {f"{key}_mask": key for key, array in arrays.items() if array.padding == "mask"}
    for name in sorted({*said} & {*arrays}):
        raise ConfigError(
            f"arrays: one cannot be named {name!r}: that is what batches say of {said[name]!r}, which is "
            "padded. Give it another name."
        )


class _Writer:
    def __init__(self, cache: Cache, storage: Storage, field: FieldManifest, make: Make) -> None:
        self._cache, self._storage, self._field, self._make = cache, storage, field, make
        self._reasons: Counter[str | None] = Counter()

    def write(self) -> Written:
        """Commit what is missing, and publish it, also where `make` raises."""
        manifest, there = self._cache.manifest, set[tuple[int, ShardId]]()
        there.update(committed_parts(self._storage, self._field, manifest))
        num_before = 0
        try:
            for (bucket, number), table in self._cache.scan(["key", "row", "status"]):
                shard = ShardId(bucket, number)
                wanted = [v for v in self._field.all_versions if v.rows is None or shard in v.rows]
                missing = [v for v in wanted if (v.number, shard) not in there]
                num_before += len(wanted) - len(missing)
                for version in missing:
                    self._commit(shard, version, table.to_pylist())
        finally:
            publish_field(self._storage, self._field, manifest)
        num_ok = self._reasons.pop(None, 0)
        reasons = {str(reason): num for reason, num in self._reasons.items()}
        num_failed = sum(reasons.values())
        return Written(num_ok=num_ok, num_failed=num_failed, num_before=num_before, reasons=reasons)

    def _commit(self, shard: ShardId, version: Version, clips: Sequence[Mapping[str, Any]]) -> None:
        manifest = self._cache.manifest
        rows = range(manifest.num_rows(shard))
        known = {clip["row"]: clip for clip in clips}
        numbers = rows if version.rows is None else sorted(version.rows[shard])
        samples = [self._sample(shard, row, known.get(row)) for row in numbers]
        commit_field_shard(self._storage, manifest, self._field, version.number, shard, samples)
        self._reasons.update(sample.reason for sample in samples)

    def _sample(self, shard: ShardId, row: int, clip: Mapping[str, Any] | None) -> Sample:
        """Return what becomes of a row of a shard. clip: None where it no longer counts."""
        sample = Sample(key=clip["key"] if clip else "", row=row, choice=0)
        if clip is None:
            return sample.failed(str(RETIRED.reason), RETIRED.message)
        if clip["status"] != "ok":
            return sample.failed("missing_input", "the clip has no latents")
        try:
            given = self._make(clip["key"])
            if given is None:
                return sample.failed("missing_input", "the program gave nothing")
            arrays = self._arrays(shard, clip["key"], given)
            tokens = len(arrays[0]) if self._field.arrays[0].padding else None
            return Sample(key=clip["key"], row=row, choice=0, arrays=arrays, tokens=tokens)
        except ClipError as error:
            return sample.failed(error.reason, str(error))

    def _arrays(self, shard: ShardId, key: str, given: Mapping[str, Any]) -> list[Array]:
        """Return a clip's arrays in the field's order. Raises ConfigError, ClipError."""
        names = [array.name or self._field.name for array in self._field.arrays]
        if not isinstance(given, Mapping) or set(given) != set(names):
            got = ", ".join(map(str, given)) if isinstance(given, Mapping) else repr(given)
            raise ConfigError(f"clip {key!r}: {got or 'nothing'} was given, not {', '.join(names)}")
        spec, bucket = self._cache.spec, Bucket.parse(shard.bucket)
        return [
            _to_stored(f"clip {key!r}: {name}", given[name], array, array.shape_in(bucket, spec))
            for name, array in zip(names, self._field.arrays, strict=True)
        ]


def _to_stored(where: str, value: Any, array: FieldArray, shape: tuple[int, ...]) -> Array:
    """Return an array as it is stored. Raises ConfigError, ClipError if it is not finite."""
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where} is no array: {error}") from None
    is_whole = tuple(tensor.shape) == shape
    is_part = array.ragged and tuple(tensor.shape[1:]) == shape[1:] and 0 < len(tensor) < shape[0]
    if not is_whole and not is_part:
        most = "up to " if array.ragged else ""
        raise ConfigError(f"{where} is {list(tensor.shape)}, and the field has {most}{list(shape)}")
    kept = tensor.to(torch_dtype(array.dtype)).contiguous()
    if array.dtype.startswith("uint"):
        if not torch.equal(kept.to(torch.float64), tensor.to(torch.float64)):
            raise ConfigError(f"{where} has values that {array.dtype} cannot hold")
    elif not torch.isfinite(kept).all():
        raise ClipError("non_finite", f"{where} has NaN or infinity, as {array.dtype}")
    return as_numpy(kept)
