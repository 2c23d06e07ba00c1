"""Small valid caches of random latents, written through the real formats and tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import Bucket
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec, Normaliser
from latentcache.format.manifest import BucketInfo, Manifest, fingerprint
from latentcache.format.paths import CACHE_JSON, REJECTED, sample_path
from latentcache.format.schemas import INDEX_SCHEMA, SAMPLE_SCHEMA, shard_facts
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.format.snapshot import build_index, publish
from latentcache.format.tables import to_parquet
from latentcache.storage.folder import Storage

#: 5x32x32 pixels and 1x32x48: latents of 2x4x4 and 1x4x6.
BUCKETS = {"1x32x48": 5, "5x32x32": 11}
KEEP = [pa.field("score", pa.float64())]


@dataclass(frozen=True)
class Synthetic:
    """What was written. arrays: key -> sample, for ok clips, in the order of the cache."""

    storage: Storage
    manifest: Manifest
    arrays: Mapping[str, Array]
    failed: Sequence[str]

    @property
    def url(self) -> str:
        return self.storage.url


def make_spec(
    dtype: str = "bfloat16",
    stored: str = "mean",
    channels: int = 4,
    exactness: str = "prefix_exact",
) -> LatentSpec:
    shift = tuple(0.1 * c for c in range(channels))
    scale = tuple(1 + 0.5 * c for c in range(channels))
    ids = stored == "ids"
    return LatentSpec(
        encoder="synthetic",
        model_class="Synthetic",
        channels=1 if ids else channels,
        stride=(4, 8, 8),
        frame_rule=FrameRule(multiple=4, remainders=(1,)),
        stored=stored,
        dtype=dtype,
        exactness=exactness,
        ids=IdSpec(codebook_size=1 << 16) if ids else None,
        normaliser=Normaliser() if ids else Normaliser(kind="channel", shift=shift, scale=scale),
    )


def sample_shape(spec: LatentSpec, bucket: str) -> tuple[int, ...]:
    b = Bucket.parse(bucket)
    return spec.latent_shape(b.frames, b.height, b.width)


def pixel_frames(spec: LatentSpec, frames: int) -> tuple[tuple[int, int], ...]:
    return tuple(spec.pixel_frames(t, frames) for t in range(-(-frames // spec.stride[0])))


def random_sample(layout: ArrayLayout, rng: np.random.Generator) -> Array:
    if layout.dtype.startswith("uint"):
        high = np.iinfo(layout.dtype).max
        return rng.integers(0, high, layout.shape, layout.dtype, endpoint=True)
    return rng.normal(size=layout.shape).astype(numpy_dtype(layout.dtype))


def make_manifest(
    *,
    spec: LatentSpec,
    buckets: Mapping[str, int],
    format: str = "zarr",  # noqa: A002
    codec: str = "zstd",
    shard_clips: int = 4,
) -> Manifest:
    recipe = {"encoder": {"kind": "synthetic", "dtype": spec.dtype}, "stored": spec.stored}
    return Manifest(
        fingerprint=fingerprint(recipe, "0" * 64),
        recipe=recipe,
        plan_sha256="0" * 64,
        spec=spec,
        format=format,
        compression={"codec": codec, "level": 5},
        shard_clips=shard_clips,
        buckets=tuple(
            BucketInfo(
                name=name,
                num_clips=num,
                num_shards=-(-num // shard_clips),
                shape=sample_shape(spec, name),
                pixel_frames=pixel_frames(spec, Bucket.parse(name).frames),
            )
            for name, num in buckets.items()
        ),
        config={},
    )


def write_cache(
    url: str,
    *,
    format: str = "zarr",  # noqa: A002
    dtype: str = "bfloat16",
    codec: str = "zstd",
    stored: str = "mean",
    channels: int = 4,
    exactness: str = "prefix_exact",
    buckets: Mapping[str, int] = BUCKETS,
    shard_clips: int = 4,
    failed: Iterable[tuple[str, int]] = (),
    rejected: int = 0,
    seed: int = 0,
    published: bool = True,
    options: Mapping[str, Any] | None = None,
    make: Callable[[ArrayLayout, np.random.Generator, int], Array] | None = None,
) -> Synthetic:
    """Write a cache. failed: (bucket, position in it) of clips that are recorded as failed.

    make: gives the sample at a position of its bucket; omitted: normal noise.
    """
    make = make or (lambda layout, rng, _: random_sample(layout, rng))
    storage = Storage(str(url), options)
    spec = make_spec(dtype, stored, channels, exactness)
    manifest = make_manifest(
        spec=spec, buckets=buckets, format=format, codec=codec, shard_clips=shard_clips
    )
    storage.write(CACHE_JSON, manifest.to_bytes())
    layouts = manifest.layouts()
    for path, data in get_format(format).metadata(list(layouts.values())).items():
        storage.write(path, data)
    rng, bad = np.random.default_rng(seed), set(failed)
    arrays: dict[str, Array] = {}
    for name in sorted(buckets):
        layout = layouts[name]
        for shard in range(-(-layout.num_rows // shard_clips)):
            first = shard * shard_clips
            places = range(first, min(first + shard_clips, layout.num_rows))
            rows = [None if (name, i) in bad else make(layout, rng, i) for i in places]
            write_shard(storage, format, layout, shard, rows, manifest.fingerprint)
            arrays.update(
                {_key(name, i): a for i, a in zip(places, rows, strict=True) if a is not None}
            )
    if rejected:
        _write_rejected(storage, rejected)
    if published:
        publish(storage, build_index(storage))
    return Synthetic(storage, manifest, arrays, [_key(*place) for place in sorted(bad)])


def write_index(url: str, buckets: Mapping[str, int], shard_clips: int) -> None:
    """Write cache.json and a snapshot of `buckets`, clips each, some of which failed; no latents."""
    storage = Storage(url)
    manifest = make_manifest(spec=make_spec(channels=16), buckets=buckets, shard_clips=shard_clips)
    storage.write(CACHE_JSON, manifest.to_bytes())
    num_shards = [info.num_shards for info in manifest.buckets]
    num_clips = [
        np.minimum(shard_clips, info.num_clips - shard_clips * np.arange(info.num_shards))
        for info in manifest.buckets
    ]
    all_clips = np.concatenate(num_clips)
    num_ok = all_clips - np.random.default_rng(0).integers(0, 2, len(all_clips))
    columns = {
        "bucket": np.repeat(list(buckets), num_shards),
        "shard": np.concatenate([np.arange(num) for num in num_shards]),
        "num_clips": all_clips,
        "num_ok": num_ok,
        "stored_bytes": num_ok << 21,
        "table_bytes": num_ok << 8,
    }
    table = (
        pa.table(columns)
        .cast(INDEX_SCHEMA)
        .sort_by([("bucket", "ascending"), ("shard", "ascending")])
    )
    publish(storage, table)


def write_shard(
    storage: Storage,
    format: str,  # noqa: A002
    layout: ArrayLayout,
    shard: int,
    rows: Sequence[Array | None],
    recipe: str,
) -> None:
    """Commit one shard as the pipeline does: the object, then its sample table."""
    encoded = get_format(format).encode_shard(layout, shard, rows)
    storage.write(encoded.path, encoded.data)
    first, bucket = shard * layout.shard_rows, layout.bucket
    table = [
        {
            "key": _key(bucket.name, first + row),
            "source": f"{bucket.name}/{first + row}.mp4",
            "bucket": bucket.name,
            "shard": shard,
            "row": row,
            "status": "ok" if chunk else "failed",
            "reason": None if chunk else "corrupt",
            "message": None if chunk else "the decoder met damaged data",
            "caption": None if row % 3 == 2 else f"caption of {first + row}",
            "start": 0,
            "frames": bucket.frames,
            "fps": 8.0,
            "start_s": 0.0 if chunk else None,
            "end_s": bucket.frames / 8 if chunk else None,
            "height": bucket.height,
            "width": bucket.width,
            "source_height": 480,
            "source_width": 640,
            "decoder": "synthetic",
            "offset": chunk.offset if chunk else None,
            "length": chunk.length if chunk else None,
            "crc32c": chunk.crc32c if chunk else None,
            "decode_s": 0.0,
            "encode_s": 0.0,
            "score": float(first + row),
        }
        for row, chunk in enumerate(encoded.chunks)
    ]
    schema = pa.schema([*SAMPLE_SCHEMA, *KEEP])
    samples = pa.Table.from_pylist(table, schema=schema)
    facts = shard_facts(recipe, encoded.data)
    storage.write(sample_path(bucket.name, shard), to_parquet(samples, facts))


def facts_of(table: pa.Table) -> dict[str, Any]:
    """Return the facts in a table's metadata, to write it again with them."""
    texts = table.schema.metadata or {}
    return {key.decode(): json.loads(value) for key, value in texts.items()}


def _write_rejected(storage: Storage, num: int) -> None:
    table = [
        {
            "key": f"rejected-{i}",
            "source": f"bad/{i}.mp4",
            "row": i,
            "status": "failed",
            "reason": "unreadable",
            "message": "no decoder can open the file",
        }
        for i in range(num)
    ]
    schema = pa.schema([*SAMPLE_SCHEMA, *KEEP])
    storage.write(sample_path(REJECTED, 0), to_parquet(pa.Table.from_pylist(table, schema=schema)))


def _key(bucket: str, position: int) -> str:
    return f"{bucket}-{position:04d}"
