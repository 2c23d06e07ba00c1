"""`cache.json`: what a cache is. Written once, when it is planned; read by all after that."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from latentcache.errors import CacheError
from latentcache.interfaces import ArrayLayout
from latentcache.records import FORMAT_VERSION, ITEM_BYTES, Bucket, LatentSpec, ShardFormat
from latentcache.storage import Storage
from latentcache.tables import CACHE_JSON
from latentcache.urls import redact

CREATED_BY = "latentcache 0.1.0"
#: The largest buffer that blosc compresses; a larger sample cannot have been written.
MAX_SAMPLE_BYTES = 2**31 - 17


@dataclass(frozen=True, kw_only=True)
class BucketInfo:
    """A bucket of the plan. `shape` is one stored sample's; `num_clips` counts failed clips too.

    pixel_frames: for each latent frame the half-open range of the clip's frames that it stands for.
    """

    name: str
    num_clips: int
    num_shards: int
    shape: tuple[int, ...]
    pixel_frames: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of `cache.json`. `compression` holds codec and level, `config` no secrets."""

    fingerprint: str
    recipe: Mapping[str, Any]
    plan_sha256: str
    spec: LatentSpec
    format: str
    compression: Mapping[str, Any]
    shard_clips: int
    buckets: tuple[BucketInfo, ...]
    config: Mapping[str, Any]
    created_by: str = CREATED_BY
    format_version: int = FORMAT_VERSION

    def layouts(self) -> dict[str, ArrayLayout]:
        """Return the array of every bucket, by its name."""
        return {
            bucket.name: ArrayLayout(
                bucket=Bucket.parse(bucket.name),
                shape=bucket.shape,
                dtype=self.spec.dtype,
                num_rows=bucket.num_clips,
                shard_rows=self.shard_clips,
                codec=self.compression["codec"],
                level=self.compression["level"],
            )
            for bucket in self.buckets
        }

    def to_bytes(self) -> bytes:
        """Return the JSON text; the same manifest gives the same bytes."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["spec"] = self.spec.to_json()
        data["buckets"] = [dataclasses.asdict(bucket) for bucket in self.buckets]
        return json.dumps(data, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, where: str = CACHE_JSON) -> Manifest:
        """Read what `to_bytes` wrote. Raises CacheError, naming `where`."""
        try:
            content = json.loads(data)
            version = content["format_version"]
            too_new = version > FORMAT_VERSION
        except (ValueError, TypeError, KeyError) as error:
            raise CacheError(f"{where} is not the cache.json of a cache: {_short(error)}") from None
        if too_new:
            raise CacheError(
                f"{where} has format version {version}; this latentcache reads up to "
                f"{FORMAT_VERSION} and would misread it. Run: pip install -U latentcache"
            )
        try:
            return _checked(_parse(content))
        except (ValueError, TypeError, KeyError) as error:
            raise CacheError(f"{where} is damaged: {_short(error)}") from None


def read_manifest(storage: Storage) -> Manifest:
    """Read a cache's manifest. Raises CacheError where there is no cache, or not one to use."""
    url = redact(storage.url)
    try:
        data = storage.read(CACHE_JSON)
    except FileNotFoundError:
        raise CacheError(
            f"{url}: there is no cache here (no {CACHE_JSON}). Check the URL, or make the cache: "
            f"latentcache precompute CONFIG.yaml cache.url={url}"
        ) from None
    return Manifest.from_bytes(data, f"{url}/{CACHE_JSON}")


def fingerprint(recipe: Mapping[str, Any], plan_sha256: str) -> str:
    """Return the SHA-256 of the canonical JSON of recipe and plan, in hexadecimal."""
    return hashlib.sha256(_canonical({"recipe": recipe, "plan_sha256": plan_sha256})).hexdigest()


def recipe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line a difference: `encoder.dtype: bfloat16 in the cache, float32 now`."""
    return list(_differences("", json.loads(_canonical(old)), json.loads(_canonical(new))))


_ABSENT = object()


def _differences(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            inner = f"{path}.{key}" if path else key
            yield from _differences(inner, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(f"{path}[{i}]", a, b)
    elif _show(old) != _show(new):
        plain = isinstance(old, str) and isinstance(new, str)
        a, b = (old, new) if plain else (_show(old), _show(new))
        yield f"{path}: {a} in the cache, {b} now"


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, sort_keys=True)


def _canonical(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _parse(content: Mapping[str, Any]) -> Manifest:
    known = {field.name: content[field.name] for field in dataclasses.fields(Manifest)}
    buckets = [
        BucketInfo(
            name=bucket["name"],
            num_clips=bucket["num_clips"],
            num_shards=bucket["num_shards"],
            shape=tuple(bucket["shape"]),
            pixel_frames=tuple((start, end) for start, end in bucket.get("pixel_frames", ())),
        )
        for bucket in content["buckets"]
    ]
    spec = LatentSpec.from_json(content["spec"])
    return Manifest(**{**known, "buckets": tuple(buckets), "spec": spec})


def _checked(manifest: Manifest) -> Manifest:
    """Return the manifest where sizes and names make sense; raises ValueError otherwise."""
    if manifest.format not in get_args(ShardFormat):
        raise ValueError(f"unknown format {manifest.format!r}; a newer latentcache may know it")
    if manifest.compression["codec"] not in ("zstd", "none"):
        raise ValueError(f"unknown codec {manifest.compression['codec']!r}")
    _positive("shard_clips", manifest.shard_clips)
    _positive("compression.level", manifest.compression["level"])
    for bucket in manifest.buckets:
        Bucket.parse(bucket.name)
        _positive(f"bucket {bucket.name}", bucket.num_clips, bucket.num_shards, *bucket.shape)
        if math.prod(bucket.shape) * ITEM_BYTES[manifest.spec.dtype] > MAX_SAMPLE_BYTES:
            raise ValueError(f"bucket {bucket.name}: no sample is as large as {bucket.shape}")
        if bucket.num_shards != -(-bucket.num_clips // manifest.shard_clips):
            raise ValueError(
                f"bucket {bucket.name}: {bucket.num_shards} shards of {manifest.shard_clips} do "
                f"not hold {bucket.num_clips} clips"
            )
    return manifest


def _positive(what: str, *values: Any) -> None:
    if not all(type(value) is int and value > 0 for value in values):
        raise ValueError(f"{what}: {values} are not positive whole numbers")


def _short(error: Exception) -> str:
    return f"no {error} in it" if isinstance(error, KeyError) else str(error)
