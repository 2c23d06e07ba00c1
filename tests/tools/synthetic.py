"""Small valid caches of random latents, written through the real formats and tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec, Normaliser
from latentcache.format.commit import derive_table
from latentcache.format.generations import Generation, Part, digest_of
from latentcache.format.kept_schema import kept_text
from latentcache.format.manifest import Manifest, fingerprint
from latentcache.format.paths import (
    CACHE_JSON,
    generation_path,
    rejected_path,
    retired_path,
    sample_path,
    sources_path,
)
from latentcache.format.schemas import (
    INDEX_SCHEMA,
    PLANNED_SOURCE_SCHEMA,
    RETIRED_SCHEMA,
    SAMPLE_SCHEMA,
    plan_facts,
)
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.format.snapshot import build_index, publish, to_index
from latentcache.format.tables import to_parquet
from latentcache.storage.folder import Storage

#: 5x32x32 pixels and 1x32x48: latents of 2x4x4 and 1x4x6.
BUCKETS = {"1x32x48": 5, "5x32x32": 11}
KEEP = [pa.field("score", pa.float64())]
PER_FRAME = pa.field(
    "per_frame",
    pa.struct(
        [
            pa.field("frame", pa.list_(pa.int32())),
            pa.field("of", pa.int32()),
            pa.field("segment", pa.list_(pa.int64())),
            pa.field("at", pa.list_(pa.int64())),
        ]
    ),
)


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
    num_rejected: int = 0,
    chunk_frames: int | None = None,
    first_shards: int | None = None,
    kept: Sequence[Sequence[pa.Field]] = ((), ()),
) -> Manifest:
    """Describe a cache of one step, or two. kept: the columns that each keeps of the corpus."""
    recipe = {"encoder": {"kind": "synthetic", "dtype": spec.dtype}, "stored": spec.stored}
    manifest = Manifest(
        fingerprint=fingerprint(recipe),
        recipe=recipe,
        spec=spec,
        format=format,
        compression={"codec": codec, "level": 5},
        shard_clips=shard_clips,
        chunk_frames=chunk_frames,
        config={},
    )
    last = max(buckets.values()) if first_shards is None else first_shards * shard_clips
    steps: list[Generation] = []
    for first, stop in [(0, last), (last, max(buckets.values()))]:
        nums = {name: min(num, stop) - first for name, num in buckets.items()}
        parts = tuple(
            Part(
                bucket=name,
                first_shard=first // shard_clips,
                num_shards=-(-num // shard_clips),
                num_clips=num,
            )
            for name, num in nums.items()
            if num > 0
        )
        if steps and not parts:
            break
        generation = Generation(
            number=len(steps) + 1,
            kind="grow" if steps else "plan",
            fingerprint=manifest.fingerprint,
            parent_sha256=steps[0].sha256 if steps else None,
            tables_sha256="0" * 64,
            created_s=0.0,
            parts=parts,
            num_sources=0 if steps else num_rejected,
            num_rejected=0 if steps else num_rejected,
            kept=kept_text([pa.schema(kept[len(steps)])]),
        )
        steps.append(generation)
    return replace(manifest, generations=tuple(steps))


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Write cache.json and the generations."""
    storage.write(CACHE_JSON, manifest.to_bytes())
    for generation in manifest.generations:
        storage.write(generation_path(generation.number), generation.to_bytes())


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
    by_frame: bool = False,
    spec: LatentSpec | None = None,
    actions: bool = False,
    chunk_frames: int | None = None,
    per_source: int = 1,
    segment: Callable[[int, int], int] | None = None,
    first_shards: int | None = None,
    bare: int = 0,
    score: Mapping[int, pa.DataType] | None = None,
) -> Synthetic:
    """Write a cache. failed: (bucket, position in it) of clips that are recorded as failed.

    make: gives the sample at a position of its bucket; omitted: normal noise. by_frame: as of an encoder of
    single frames. spec: in place of one that is made. actions: keep a column of a list with
    an entry per frame, its number. per_source: clips of each source, one after the other. segment: of a
    source, by its number in the bucket, and a frame of it: a column per frame, beside `at`, the frame.
    first_shards: of each bucket that the first step plans; a second one plans the others. bare: the step
    whose clips keep no column. score: the type that it has in each step, if not float64.
    """
    make = make or (lambda layout, rng, _: random_sample(layout, rng))
    storage = Storage(str(url), options)
    spec = spec or make_spec(dtype, stored, channels, exactness)
    if by_frame:
        spec = replace(spec, stride=(1, 8, 8), frame_rule=FrameRule(), pixel_layout="BCHW")
    always = [pa.field("actions", pa.list_(pa.int64()))] if actions else []
    last = [PER_FRAME] if segment else []
    scores = [
        [pa.field("score", kind)] if kind else KEEP for kind in map((score or {}).get, (1, 2))
    ]
    kept = [[*always, *([] if step == bare else [*scores[step - 1], *last])] for step in (1, 2)]
    manifest = make_manifest(
        spec=spec,
        buckets=buckets,
        format=format,
        codec=codec,
        shard_clips=shard_clips,
        num_rejected=rejected,
        chunk_frames=chunk_frames,
        first_shards=first_shards,
        kept=kept,
    )
    write_manifest(storage, manifest)
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
            is_first = first_shards is None or shard < first_shards
            write_shard(
                storage,
                format,
                layout,
                shard,
                rows,
                manifest.fingerprint,
                per_source=per_source,
                segment=segment,
                keep=kept[0 if is_first else 1],
            )
            arrays.update(
                {_key(name, i): a for i, a in zip(places, rows, strict=True) if a is not None}
            )
    if rejected:
        _write_rejected(storage, manifest, rejected)
    if published:
        publish(storage, build_index(storage, manifest))
    return Synthetic(storage, manifest, arrays, [_key(*place) for place in sorted(bad)])


def write_index(url: str, buckets: Mapping[str, int], shard_clips: int) -> None:
    """Write cache.json and a snapshot of `buckets`, clips each, some of which failed; no latents."""
    storage = Storage(url)
    manifest = make_manifest(spec=make_spec(channels=16), buckets=buckets, shard_clips=shard_clips)
    write_manifest(storage, manifest)
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
        "retired": pa.nulls(len(all_clips), INDEX_SCHEMA.field("retired").type),
        "columns": pa.nulls(len(all_clips), pa.string()),
    }
    table = (
        pa.table(columns)
        .cast(INDEX_SCHEMA)
        .sort_by([("bucket", "ascending"), ("shard", "ascending")])
    )
    publish(storage, table.replace_schema_metadata(to_index([], manifest).schema.metadata))


def write_shard(
    storage: Storage,
    format: str,  # noqa: A002
    layout: ArrayLayout,
    shard: int,
    rows: Sequence[Array | None],
    recipe: str,
    *,
    per_source: int = 1,
    segment: Callable[[int, int], int] | None = None,
    keep: Sequence[pa.Field] = KEEP,
) -> None:
    """Commit one shard as the pipeline does: the object, then its sample table."""
    shard_format = get_format(format)
    encoded = shard_format.encode_shard(layout, shard, rows)
    first, bucket = shard * layout.shard_rows, layout.bucket
    table: list[dict[str, Any]] = [
        {
            "key": _key(bucket.name, first + row),
            "source": f"{bucket.name}/{(first + row) // per_source}.mp4",
            "bucket": bucket.name,
            "shard": shard,
            "row": row,
            "status": "ok" if chunk else "failed",
            "reason": None if chunk else "corrupt",
            "message": None if chunk else "the decoder met damaged data",
            "caption": None if row % 3 == 2 else f"caption of {first + row}",
            "start": (first + row) % per_source * bucket.frames,
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
            "score": _score(first + row, keep),
            "actions": list(range(bucket.frames)),
        }
        for row, chunk in enumerate(encoded.chunks)
    ]
    if segment is not None:
        for n, values in enumerate(table, first):
            values["per_frame"] = _per_frame(segment, n, per_source, bucket.frames)
    schema = pa.schema([*SAMPLE_SCHEMA, *keep])
    samples = pa.Table.from_pylist(table, schema=schema)
    data = encoded.with_table(to_parquet(samples, plan_facts(recipe)))
    storage.write(encoded.path, data)
    derived = derive_table(shard_format, layout, data, recipe)
    storage.write(sample_path(bucket.name, shard), derived)


def _score(position: int, keep: Sequence[pa.Field]) -> Any:
    nested = any(f.name == "score" and pa.types.is_nested(f.type) for f in keep)
    return [float(position)] if nested else float(position)


def _per_frame(
    segment: Callable[[int, int], int], position: int, per_source: int, frames: int
) -> dict[str, Any]:
    """Return the values per frame of the clip at a position of its bucket."""
    source, clip = divmod(position, per_source)
    at = [*range(clip * frames, (clip + 1) * frames)]
    numbers = [segment(source, frame) for frame in at]
    return {"frame": at, "of": per_source * frames, "segment": numbers, "at": at}


def retire(cache: Synthetic, rows: Sequence[tuple[str, int, int]]) -> Manifest:
    """Take a step by which rows no longer count; returns the cache with it."""
    last = cache.manifest.generations[-1]
    places = [dict(zip(("bucket", "shard", "row"), row, strict=True)) for row in rows]
    named = [{**place, "why": "gone"} for place in places]
    table = to_parquet(pa.Table.from_pylist(named, schema=RETIRED_SCHEMA))
    step = Generation(
        number=last.number + 1,
        kind="grow",
        fingerprint=cache.manifest.fingerprint,
        parent_sha256=last.sha256,
        tables_sha256=digest_of({"retired": table}),
        created_s=0.0,
        num_retired=len(rows),
        kept=kept_text([]),
    )
    cache.storage.write(retired_path(step.folder), table)
    cache.storage.write(generation_path(step.number), step.to_bytes())
    return replace(cache.manifest, generations=(*cache.manifest.generations, step))


def facts_of(table: pa.Table) -> dict[str, Any]:
    """Return the facts in a table's metadata, to write it again with them."""
    texts = table.schema.metadata or {}
    return {key.decode(): json.loads(value) for key, value in texts.items()}


def _write_rejected(storage: Storage, manifest: Manifest, num: int) -> None:
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
    folder, facts = manifest.generations[0].folder, plan_facts(manifest.fingerprint)
    rejected = pa.Table.from_pylist(table, schema=schema)
    storage.write(rejected_path(folder), to_parquet(rejected, facts))
    rows = [
        {"source": row["source"], "url": row["source"], "kind": "video", "what": "rejected"}
        for row in table
    ]
    sources = pa.Table.from_pylist(rows, schema=PLANNED_SOURCE_SCHEMA)
    storage.write(sources_path(folder), to_parquet(sources, facts))


def _key(bucket: str, position: int) -> str:
    return f"{bucket}-{position:04d}"
