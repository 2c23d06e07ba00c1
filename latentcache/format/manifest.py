"""`cache.json`: what a cache is. Written once, when it is planned; read by all after that."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import pydantic

from latentcache import __version__
from latentcache.core.records import FORMAT_VERSION, Bucket, ShardFormat
from latentcache.core.spec import ITEM_BYTES, LatentSpec
from latentcache.errors import CacheError, CorruptionError
from latentcache.format import checksum
from latentcache.format.paths import CACHE_JSON
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.format.tables import read_bounded
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

CREATED_BY = f"latentcache {__version__}"
#: The largest buffer that blosc compresses; a larger sample cannot have been written.
MAX_SAMPLE_BYTES = 2**31 - 17
#: With 21 latent frames, the JSON text of a bucket is 1 kB: this is enough for thousands of them.
MAX_MANIFEST_BYTES = 1 << 24
#: Beyond what a cache can have, and small enough for sums in 64 bits and lists of all shards.
MAX_COUNT, MAX_SHARD_CLIPS, MAX_SHARDS = 1 << 40, 1 << 20, 10_000_000
MAX_LEVEL = 22
#: Frame rules are tried one number after the other; those of real encoders go up to 32.
MAX_MULTIPLE = 1024


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
        """Return the JSON text, sealed; the same manifest gives the same bytes."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["spec"] = self.spec.to_json()
        data["buckets"] = [dataclasses.asdict(bucket) for bucket in self.buckets]
        return seal_json(data)

    @classmethod
    def from_bytes(cls, data: bytes, where: str = CACHE_JSON) -> Manifest:
        """Read what `to_bytes` wrote. Raises CacheError, naming `where`; CorruptionError if it changed."""
        try:
            version = _load(data)["format_version"]
            too_new = version > FORMAT_VERSION
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CacheError(f"{where} is not the cache.json of a cache: {_short(error)}") from None
        if too_new:
            raise CacheError(
                f"{where} has format version {version}; this latentcache reads up to "
                f"{FORMAT_VERSION} and would misread it. Install a newer latentcache."
            )
        try:
            checksum.check(data)
        except ValueError as error:
            raise CorruptionError(
                f"{where} is not as it was written: {error}. A changed digit in it would give other "
                "latents without a word, so nothing is read. Restore it from a copy; it is written "
                "once, and never changes."
            ) from None
        try:
            return _checked(_ADAPTER.validate_json(data, strict=True))
        except pydantic.ValidationError as error:
            raise CacheError(f"{where} is damaged: {_first(error)}") from None
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            raise CacheError(f"{where} is damaged: {_short(error)}") from None


_ADAPTER = pydantic.TypeAdapter(Manifest)


def seal_json(data: Mapping[str, Any]) -> bytes:
    """Return JSON text that carries its own CRC32C."""
    text = json.dumps(
        {**data, checksum.KEY: checksum.EMPTY}, indent=2, sort_keys=True, allow_nan=False
    )
    return checksum.seal(text.encode() + b"\n")


def read_manifest(storage: Storage) -> Manifest:
    """Read a cache's manifest. Raises CacheError where there is no cache, or not one to use."""
    url = redact(storage.url)
    try:
        data = read_bounded(storage, CACHE_JSON, MAX_MANIFEST_BYTES)
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


def _load(data: bytes) -> Any:
    return json.loads(data, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _checked(manifest: Manifest) -> Manifest:
    """Return the manifest where sizes and names make sense; raises ValueError otherwise."""
    if manifest.format not in get_args(ShardFormat):
        raise ValueError(f"unknown format {manifest.format!r}; a newer latentcache may know it")
    if manifest.compression.get("codec") not in ("zstd", "none"):
        raise ValueError(f"unknown codec {manifest.compression.get('codec')!r}")
    _positive("shard_clips", MAX_SHARD_CLIPS, manifest.shard_clips)
    _positive("compression.level", MAX_LEVEL, manifest.compression.get("level"))
    _check_spec(manifest.spec)
    names = [bucket.name for bucket in manifest.buckets]
    if not names or len(set(names)) < len(names):
        raise ValueError("it has no bucket, or one twice")
    for bucket in manifest.buckets:
        _check_bucket(manifest, bucket)
    if sum(bucket.num_shards for bucket in manifest.buckets) > MAX_SHARDS:
        raise ValueError(f"no cache has more than {MAX_SHARDS} shards")
    return manifest


def _check_bucket(manifest: Manifest, bucket: BucketInfo) -> None:
    pixels = Bucket.parse(bucket.name)
    if pixels.name != bucket.name:
        raise ValueError(f"{bucket.name!r} is not a bucket's name, which is {pixels.name}")
    _positive(f"bucket {bucket.name}", MAX_COUNT, bucket.num_clips, bucket.num_shards)
    _positive(f"bucket {bucket.name}", MAX_COUNT, *bucket.shape)
    spec = manifest.spec
    if math.prod(bucket.shape) * ITEM_BYTES[spec.dtype] > MAX_SAMPLE_BYTES:
        raise ValueError(f"bucket {bucket.name}: no sample is as large as {bucket.shape}")
    if bucket.num_shards != -(-bucket.num_clips // manifest.shard_clips):
        raise ValueError(
            f"bucket {bucket.name}: {bucket.num_shards} shards of {manifest.shard_clips} do "
            f"not hold {bucket.num_clips} clips"
        )
    expected = spec.latent_shape(pixels.frames, pixels.height, pixels.width)
    if bucket.shape != expected:
        raise ValueError(f"bucket {bucket.name}: its latents are {expected}, not {bucket.shape}")


def _check_spec(spec: LatentSpec) -> None:
    """Raise ValueError for numbers that no encoder has, which loops and tensors would follow."""
    rules = (spec.frame_rule, *(spec.size_rules or ()))
    if any(rule.multiple > MAX_MULTIPLE or len(rule.remainders) > MAX_MULTIPLE for rule in rules):
        raise ValueError(f"a frame rule of a multiple above {MAX_MULTIPLE}")
    scales = spec.ids.scales if spec.ids else ()
    _positive("spec", MAX_COUNT, spec.channels, *spec.stride, *scales)
    normaliser = spec.normaliser
    if not all(map(math.isfinite, (*normaliser.shift, *normaliser.scale, *spec.pixel_range))):
        raise ValueError("the normaliser or the pixel range is not finite")


def _positive(what: str, at_most: int, *values: Any) -> None:
    if not all(type(value) is int and 0 < value <= at_most for value in values):
        raise ValueError(f"{what}: {values} are not positive whole numbers up to {at_most}")


def _first(error: pydantic.ValidationError) -> str:
    """Return what is wrong first, in one line."""
    details = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, details["loc"]))
    return f"{place}: {details['msg']}" if place else details["msg"]


def _short(error: Exception) -> str:
    return f"no {error} in it" if isinstance(error, KeyError) else str(error)
