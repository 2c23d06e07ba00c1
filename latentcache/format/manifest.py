"""`cache.json`: what a cache is. Written once, when it is planned; read by all after that."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pydantic

from latentcache import __version__
from latentcache.core.json_text import OTHER_SHAPE, fault_of, parse_json
from latentcache.core.records import FORMAT_VERSION, Bucket, ShardFormat, ShardId
from latentcache.core.spec import ITEM_BYTES, LatentSpec
from latentcache.errors import CacheError, CorruptionError, LatentCacheError
from latentcache.format import checksum
from latentcache.format.generations import Generation, Part, read_generations, require
from latentcache.format.paths import CACHE_JSON, generation_path
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.format.tables import read_sealed
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

CREATED_BY = f"latentcache {__version__}"
#: The largest buffer that blosc compresses; a larger sample cannot have been written.
MAX_SAMPLE_BYTES = 2**31 - 17
#: Recipe and configuration take some kB.
MAX_MANIFEST_BYTES = 1 << 24
#: Beyond what a cache can have, and small enough for sums in 64 bits and lists of all shards.
MAX_COUNT, MAX_SHARD_CLIPS, MAX_SHARDS = 1 << 40, 1 << 20, 10_000_000
MAX_LEVEL = 22
#: Frame rules are tried one number after the other; those of real encoders go up to 32.
MAX_MULTIPLE = 1024


@dataclass(frozen=True, kw_only=True)
class BucketInfo:
    """A bucket, as all generations together plan it. `shape` is one stored sample's.

    num_clips: planned clips, failed and retired ones too. pixel_frames: for each latent frame the
    half-open range of the clip's frames that it stands for. parts: what each generation has added.
    """

    name: str
    num_clips: int
    num_shards: int
    shape: tuple[int, ...]
    pixel_frames: tuple[tuple[int, int], ...] = ()
    parts: tuple[tuple[Generation, Part], ...] = ()

    def part_of(self, shard: int) -> tuple[Generation, Part]:
        """Return the generation that planned a shard, and what it added to the bucket."""
        firsts = [part.first_shard for _, part in self.parts]
        return self.parts[bisect.bisect_right(firsts, shard) - 1]


#: How latents came to be: an encoder's of pixels; a sampler's; what the same encoder (`roundtrip`) or
#: another (`transcode`) made of a cache's decoded clips; another program's.
Origin = Literal["encoder", "sampler", "roundtrip", "transcode", "import"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a cache's latents came to be. parent: the fingerprint of the cache that was decoded for them."""

    kind: Origin = "encoder"
    parent: str | None = None

    @property
    def has_pixels(self) -> bool:
        """Whether latents can be compared with the pixels that they were encoded from."""
        return self.kind not in ("import", "sampler")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of `cache.json`, and the generations that follow it.

    compression: codec and level. chunk_frames: latent frames that are compressed together, None for all of
    a clip's. quantiser_sha256: of `quantiser.safetensors`, None if there is none. config: of the run that
    made the cache, without secrets. exclusive: the storage creates objects on condition that they are not
    there, which was tried when the cache was made.
    """

    fingerprint: str
    recipe: Mapping[str, Any]
    spec: LatentSpec
    format: str
    compression: Mapping[str, Any]
    shard_clips: int
    config: Mapping[str, Any]
    chunk_frames: int | None = None
    quantiser_sha256: str | None = None
    exclusive: bool = True
    created_by: str = CREATED_BY
    format_version: int = FORMAT_VERSION
    provenance: Provenance = field(default_factory=Provenance)
    generations: tuple[Generation, ...] = ()

    @functools.cached_property
    def buckets(self) -> tuple[BucketInfo, ...]:
        """The buckets that generations have planned, by name."""
        parts: dict[str, list[tuple[Generation, Part]]] = {}
        for generation in self.generations:
            for part in generation.parts:
                parts.setdefault(part.bucket, []).append((generation, part))
        return tuple(self._bucket(name, tuple(found)) for name, found in sorted(parts.items()))

    def _bucket(self, name: str, parts: tuple[tuple[Generation, Part], ...]) -> BucketInfo:
        bucket, spec = Bucket.parse(name), self.spec
        return BucketInfo(
            name=name,
            num_clips=sum(part.num_clips for _, part in parts),
            num_shards=sum(part.num_shards for _, part in parts),
            shape=spec.latent_shape(bucket.frames, bucket.height, bucket.width),
            pixel_frames=tuple(
                spec.pixel_frames(t, bucket.frames)
                for t in range(spec.latent_frames(bucket.frames))
            ),
            parts=parts,
        )

    @property
    def num_shards(self) -> int:
        """Shards of all buckets."""
        return sum(bucket.num_shards for bucket in self.buckets)

    @property
    def num_clips(self) -> int:
        """Clips that count: planned, and not retired."""
        planned = sum(bucket.num_clips for bucket in self.buckets)
        # Of a row and its copy one counts.
        return planned - sum(g.num_retired + g.num_copied for g in self.generations)

    def num_rows(self, shard: ShardId) -> int:
        """Return how many rows a shard has, retired ones too."""
        bucket = next(bucket for bucket in self.buckets if bucket.name == shard.bucket)
        part = bucket.part_of(shard.number)[1]
        first_row = (shard.number - part.first_shard) * self.shard_clips
        return min(self.shard_clips, part.num_clips - first_row)

    def with_exclusive(self, exclusive: bool) -> Manifest:
        """Return it with what was found of the storage."""
        return dataclasses.replace(self, exclusive=exclusive)

    def at(self, generation: int) -> Manifest:
        """Return the cache as it was planned up to a generation."""
        return dataclasses.replace(self, generations=self.generations[:generation])

    def layout(self, bucket: BucketInfo) -> ArrayLayout:
        """Return the array of a bucket, which may have been planned by a generation to come."""
        last = bucket.parts[-1][1]
        return ArrayLayout(
            bucket=Bucket.parse(bucket.name),
            shape=bucket.shape,
            dtype=self.spec.dtype,
            num_rows=last.first_shard * self.shard_clips + last.num_clips,
            shard_rows=self.shard_clips,
            codec=self.compression["codec"],
            level=self.compression["level"],
            piece=self.chunk_frames if self._is_cut(bucket.shape) else None,
            piece_axis=len(bucket.shape) - 3 if self._is_cut(bucket.shape) else 0,
        )

    def _is_cut(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a sample [.., t, h, w] is in several chunks; one of few frames is not."""
        return self.chunk_frames is not None and len(shape) >= 3 and self.chunk_frames < shape[-3]

    def layouts(self) -> dict[str, ArrayLayout]:
        """Return the array of every bucket, by its name."""
        return {bucket.name: self.layout(bucket) for bucket in self.buckets}

    def to_bytes(self) -> bytes:
        """Return the JSON text of cache.json, sealed; the same manifest gives the same bytes."""
        data = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        del data["generations"]
        data["spec"] = self.spec.to_json()
        data["provenance"] = dataclasses.asdict(self.provenance)
        return checksum.seal_json(data)

    @classmethod
    def from_bytes(cls, data: bytes, where: str = CACHE_JSON) -> Manifest:
        """Read what `to_bytes` wrote. Raises CacheError, naming `where`; CorruptionError if it changed."""
        try:
            version = _load(data)["format_version"]
            too_new = version > FORMAT_VERSION
        except OTHER_SHAPE as error:
            why = fault_of(error)
            raise CacheError(f"{where} is not the cache.json of a cache: {why}") from None
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
        except OTHER_SHAPE as error:
            raise CacheError(f"{where} is damaged: {fault_of(error)}") from None


_ADAPTER = pydantic.TypeAdapter(Manifest)


def read_manifest(storage: Storage) -> Manifest:
    """Read what a cache is, and what is planned in it. Raises CacheError if there is no plan."""
    manifest = read_all(storage)
    require(storage, manifest.generations)
    return manifest


def read_all(storage: Storage) -> Manifest:
    """Read cache.json and the generations, of which there may be none yet. Raises CacheError."""
    return refresh(storage, read_cache_json(storage))


def refresh(storage: Storage, manifest: Manifest) -> Manifest:
    """Return the manifest with the generations that there are now. Raises CacheError."""
    generations = read_generations(storage, manifest.generations)
    manifest = dataclasses.replace(manifest, generations=generations)
    url = redact(storage.url)
    for generation in generations:
        path = f"{url}/{generation_path(generation.number)}"
        if generation.fingerprint != manifest.fingerprint:
            raise CorruptionError(
                f"{path} is of another cache: its recipe is not that of {CACHE_JSON}"
            )
        try:
            _check_parts(manifest, generation)
        except (ValueError, LatentCacheError) as error:
            raise CorruptionError(f"{path} does not fit {CACHE_JSON}: {error}") from None
    if manifest.num_shards > MAX_SHARDS:
        raise CorruptionError(f"{url}: no cache has more than {MAX_SHARDS} shards")
    return manifest


def read_cache_json(storage: Storage) -> Manifest:
    """Read cache.json. Raises CacheError if there is no cache, or not one to use."""
    url = redact(storage.url)
    try:
        data = read_sealed(storage, CACHE_JSON, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise CacheError(
            f"{url}: there is no cache here (no {CACHE_JSON}). Check the URL, or make the cache: "
            f"latentcache precompute CONFIG.yaml cache.url={url}"
        ) from None
    return Manifest.from_bytes(data, f"{url}/{CACHE_JSON}")


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the canonical JSON of a recipe, in hexadecimal."""
    return hashlib.sha256(_canonical({"recipe": recipe})).hexdigest()


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
    return parse_json(data, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _checked(manifest: Manifest) -> Manifest:
    """Return the manifest where sizes and names make sense; raises ValueError otherwise."""
    if manifest.format not in get_args(ShardFormat):
        raise ValueError(f"unknown format {manifest.format!r}; a newer latentcache may know it")
    if manifest.compression.get("codec") not in ("zstd", "lz4", "none"):
        raise ValueError(f"unknown codec {manifest.compression.get('codec')!r}")
    if not checksum.is_sha256(manifest.fingerprint):  # which names folders of disk caches
        raise ValueError("the fingerprint is no SHA-256")
    if manifest.quantiser_sha256 is not None and not checksum.is_sha256(manifest.quantiser_sha256):
        raise ValueError("quantiser_sha256 is no SHA-256")
    _positive("shard_clips", MAX_SHARD_CLIPS, manifest.shard_clips)
    _positive("compression.level", MAX_LEVEL, manifest.compression.get("level"))
    if manifest.chunk_frames is not None:
        _positive("chunk_frames", MAX_COUNT, manifest.chunk_frames)
        if manifest.format != "zarr":
            raise ValueError(f"chunk_frames is for zarr, not {manifest.format}")
    _check_spec(manifest.spec)
    if manifest.generations:
        raise ValueError("generations are no part of it")
    return manifest


def _check_parts(manifest: Manifest, generation: Generation) -> None:
    """Raise ValueError, or GeometryError, unless a generation's shards are possible in this cache."""
    for part in generation.parts:
        pixels = Bucket.parse(part.bucket)
        if pixels.name != part.bucket:
            raise ValueError(f"{part.bucket!r} is not a bucket's name, which is {pixels.name}")
        if part.num_shards != -(-part.num_clips // manifest.shard_clips):
            raise ValueError(
                f"bucket {part.bucket}: {part.num_shards} shards of {manifest.shard_clips} do not hold "
                f"{part.num_clips} clips"
            )
        if not 0 < part.num_shards <= MAX_SHARDS:
            raise ValueError(f"bucket {part.bucket}: {part.num_shards} shards")
        shape = manifest.spec.latent_shape(pixels.frames, pixels.height, pixels.width)
        if math.prod(shape) * ITEM_BYTES[manifest.spec.dtype] > MAX_SAMPLE_BYTES:
            raise ValueError(f"bucket {part.bucket}: no sample is as large as {shape}")


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
