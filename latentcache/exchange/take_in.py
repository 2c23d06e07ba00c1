"""Taking a layout into a cache: planned as its first generation, then committed shard by shard."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import torch

from latentcache.copying.shards import num_threads
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.posterior import shift_and_scale
from latentcache.core.records import ClipResult, Shard, ShardFormat, ShardId, ShardReport
from latentcache.core.spec import ITEM_BYTES, LatentSpec, Normaliser
from latentcache.errors import ConfigError, CorpusError
from latentcache.exchange.checks import check_found
from latentcache.exchange.damage import NOTHING
from latentcache.exchange.records import Found, Record, identity_of
from latentcache.exchange.since_planned import Records, adopted
from latentcache.exchange.stamps import has_changed
from latentcache.format.commit import commit_shard
from latentcache.format.manifest import CREATED_BY, Manifest, Provenance, fingerprint
from latentcache.format.schemas import PLAN_SCHEMA
from latentcache.format.shards import get_format
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step
from latentcache.storage.folder import Storage, join, redact
from latentcache.storage.urls import public_name

#: What files may hold; float64 only with --dtype.
LATENTS_OF = ("bfloat16", "float16", "float32", "float64")
IDS_OF = ("uint8", "uint16", "uint32")
#: What is said of a file that turns out to be damaged, or another one, when it is read.
STAYS = (
    "What was imported stays. Once the file is whole, or removed, and nothing writes there any more, "
    "import the folder into another cache."
)
#: Shards per thread whose clips are read from the plan at a time.
AHEAD = 4


def manifest_of(
    like: Manifest,
    found: Found,
    url: str,
    *,
    dtype: str | None = None,
    shard_format: ShardFormat | None = None,
) -> Manifest:
    """Return what an imported cache at `url` is: the encoder of `like`, with the layout's latents.

    Its recipe says that it was imported, so that encoded latents are never mixed with it. Raises
    ConfigError, GeometryError where the latents cannot be those of the encoder.
    """
    check_found(like.spec, found)
    spec = dataclasses.replace(like.spec, stored=found.stored, dtype=_dtype(found, dtype))
    recipe: dict[str, Any] = {
        **like.recipe,
        "stored": spec.stored,
        "dtype": spec.dtype,
        "import": {"layout": found.layout},
    }
    name = shard_format or like.format
    chunk_frames = like.chunk_frames if name == "zarr" else None
    stored_dtype = None if spec.ids else spec.dtype
    place: dict[str, Any] = {
        "url": public_name(url),
        "format": name,
        "chunk_frames": chunk_frames,
        "dtype": stored_dtype,
        "storage_options": {},
    }
    return Manifest(
        fingerprint=fingerprint(recipe),
        recipe=recipe,
        spec=spec,
        format=name,
        compression=like.compression,
        shard_clips=like.shard_clips,
        chunk_frames=chunk_frames,
        config={**like.config, "cache": {**like.config["cache"], **place}},
        created_by=CREATED_BY,
        provenance=Provenance(kind=found.origin),
    )


def _dtype(found: Found, asked: str | None) -> str:
    """Return the data type to store: that which is asked for, or the one of all records. ConfigError."""
    dtypes = sorted({record.dtype for record in found.records})
    known = IDS_OF if found.stored == "ids" else LATENTS_OF
    if odd := [dtype for dtype in dtypes if dtype not in known]:
        raise ConfigError(
            f"there is {found.stored} of {', '.join(odd)}, and an import takes {', '.join(known)}. Nothing "
            "was imported."
        )
    if asked is not None and asked not in known:
        raise ConfigError(f"--dtype {asked}: {found.stored} are stored as they are. Leave it out.")
    if asked is None and (len(dtypes) > 1 or dtypes[0] not in ITEM_BYTES):
        raise ConfigError(
            f"the latents are of {' and '.join(dtypes)}, and a cache stores one of "
            f"{', '.join(name for name in ITEM_BYTES if name in known)}. Nothing was imported. Say which: "
            "--dtype"
        )
    return asked or dtypes[0]


def plan_import(found: Found, source: Storage) -> Step:
    """Plan a layout's clips as the first generation of a cache, in the order of their keys."""
    step = Step(kind="import", selection=in_words(found.layout, source))
    records = sorted(found.records, key=lambda record: (record.source, record.start, record.key))
    for bucket in sorted({record.bucket for record in records}):
        rows = [_planned(r, source, found.layout) for r in records if r.bucket == bucket]
        step.clips[bucket] = [pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)]
    step.add_sources(_sources(records, source, found.layout), "planned")
    return step


def _sources(records: Sequence[Record], source: Storage, layout: str) -> pa.Table:
    """Return what is said of sources: a row for each. One of several files is known by all of them."""
    names = ("source", "url", "kind", "identity")
    rows: dict[str, dict[str, object]] = {}
    files: dict[str, set[str]] = {}
    for record in records:
        rows.setdefault(record.source, _planned(record, source, layout))
        files.setdefault(record.source, set()).add(identity_of(record, layout))
    for name, identities in files.items():
        if len(identities) > 1:
            digest = hashlib.sha256("\n".join(sorted(identities)).encode()).hexdigest()
            rows[name]["identity"] = f"import:{layout}:{digest}"
    columns = {name: [row[name] for row in rows.values()] for name in names}
    table = pa.table(columns, schema=pa.schema([PLAN_SCHEMA.field(name) for name in names]))
    return table.append_column("stamp", pa.nulls(len(rows), pa.string()))


def in_words(layout: str, source: Storage) -> str:
    """Return what a generation says of where it was imported from."""
    return f"{layout} of {public_name(source.absolute_url)}"


def _planned(record: Record, source: Storage, layout: str) -> dict[str, object]:
    return {
        "key": record.key,
        "source": record.source,
        "url": public_name(join(source.absolute_url, record.path)),
        "kind": "image" if record.bucket.frames == 1 else "video",
        "identity": identity_of(record, layout),
        "start": record.start,
        "frames": record.bucket.frames,
        "fps": record.fps,
        "caption": record.text,
        "shard": 0,
        "row": 0,
    }


def import_shards(
    planned: PlannedCache, found: Found, source: Storage, missing: Sequence[ShardId]
) -> Iterator[ShardReport]:
    """Commit missing shards of an imported cache, in parallel. Raises CacheError, CorpusError."""
    records = Records(found)
    if not missing:
        return

    def commit(shard: Shard) -> ShardReport:
        return adopted(planned, shard) or _commit(planned, records, source, shard)

    threads = min(num_threads(planned.manifest, shard.bucket) for shard in missing)
    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(missing)
        while window := list(itertools.islice(waiting, AHEAD * threads)):
            # Here, for the plan is not for several threads.
            shards = [planned.plan.shard(shard) for shard in window]
            yield from pool.map(commit, shards)


def _commit(
    planned: PlannedCache,
    records: Records,
    source: Storage,
    shard: Shard,
) -> ShardReport:
    manifest, found = planned.manifest, records.found
    normaliser = manifest.spec.normaliser if found.normalised else Normaliser()
    shard_format, layout = get_format(manifest.format), manifest.layouts()[shard.bucket.name]
    wanted = [records.get(clip.key, clip.identity) for clip in shard.clips]
    there = [record for record in wanted if record is not None]
    assert len(there) == len(wanted)  # `since_planned` has refused any other
    arrays, results = [], []
    for record in there:
        array, result = _load(record, normaliser, manifest.spec, layout.shape)
        arrays.append(array)
        results.append(result)
    _refuse_changed(source, found, there)
    where = (planned.storage, shard_format, layout, shard)
    return commit_shard(*where, arrays, results, manifest.fingerprint)


def _refuse_changed(source: Storage, found: Found, records: Sequence[Record]) -> None:
    """Raise CorpusError if a file is not the one that was planned, now that its clips are read."""
    for path, record in {record.path: record for record in records}.items():
        if has_changed(source, found, record):
            url = redact(join(source.url, path))
            raise CorpusError(f"{url} has changed since this import looked at it. {STAYS}")


def _load(
    record: Record, normaliser: Normaliser, spec: LatentSpec, shape: tuple[int, ...]
) -> tuple[Array | None, ClipResult]:
    try:
        tensor = record.load()
    except CorpusError as error:
        text = str(error).replace(NOTHING, STAYS)
        raise CorpusError(
            text.replace("Nothing was imported.", "What was imported stays.")
        ) from None
    if tuple(tensor.shape) != shape:
        raise CorpusError(
            f"{record.path}: {record.key!r} had the shape {list(shape)} a moment ago, and has "
            f"{list(tensor.shape)}. {STAYS}"
        )
    times: dict[str, Any] = {"start_s": record.start_s, "end_s": record.end_s}
    raw = raw_of(tensor, normaliser).to(torch_dtype(spec.dtype)).contiguous()
    if raw.is_floating_point() and not torch.isfinite(raw).all():
        what = f"{record.path} holds NaN, infinity, or numbers beyond {spec.dtype}"
        return None, ClipResult(reason="non_finite", message=what, **times)
    array = as_numpy(raw)
    if spec.ids is not None and (array >= spec.ids.codebook_size).any():
        raise CorpusError(
            f"{record.path}: {record.key!r} has ids beyond the {spec.ids.codebook_size} of "
            f"{spec.model_class}. {STAYS}"
        )
    return array, ClipResult(decoder="import", **times)


def raw_of(latents: torch.Tensor, normaliser: Normaliser) -> torch.Tensor:
    """Return latents / scale + shift [C, t, h, w], in float64: what was stored comes out again."""
    if normaliser.kind == "none":
        return latents
    shift, scale = shift_and_scale(latents, normaliser)
    return latents.double() / scale.double() + shift.double()
