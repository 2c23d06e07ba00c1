"""Taking a layout into a cache: planned as its first generation, then committed shard by shard."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import torch

from latentcache.copying.shards import num_threads
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.posterior import shift_and_scale
from latentcache.core.records import Clip, ClipResult, Shard, ShardFormat, ShardId, ShardReport
from latentcache.core.spec import ITEM_BYTES, LatentSpec, Normaliser
from latentcache.errors import CacheError, ConfigError, CorpusError, GeometryError
from latentcache.exchange.clips import named
from latentcache.exchange.files import NOTHING
from latentcache.exchange.records import Found, Record
from latentcache.format.commit import adopt_shard, commit_shard
from latentcache.format.manifest import (
    CREATED_BY,
    MAX_SAMPLE_BYTES,
    Manifest,
    Provenance,
    fingerprint,
)
from latentcache.format.schemas import PLAN_SCHEMA
from latentcache.format.shards import get_format
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step
from latentcache.storage.folder import Storage, join, redact
from latentcache.storage.urls import public_name

#: What files may hold; float64 only with --dtype.
LATENTS_OF = ("bfloat16", "float16", "float32", "float64")
IDS_OF = ("uint8", "uint16", "uint32")
#: What is said of a file that turns out to be damaged when it is read.
STAYS = (
    "What was imported stays. Have the trainer write the file again, and run this again; or remove it, and "
    "import into another folder."
)
#: Frames per second that a clip may have: films of explosions have fewer.
MAX_FPS = 1e7
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
    _check(like.spec, found)
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


def _check(spec: LatentSpec, found: Found) -> None:
    if not found.records:
        raise ConfigError(f"no clip of the layout {found.layout} is there. Nothing was imported.")
    keys = Counter(record.key for record in found.records)
    if twice := [key for key, count in keys.items() if count > 1]:
        raise ConfigError(
            f"{len(twice)} names are there twice: {named(twice)}. Nothing was imported."
        )
    if (spec.ids is not None) != (found.stored == "ids"):
        raise ConfigError(
            f"{spec.model_class} gives {'ids' if spec.ids else 'latents'}, and the layout holds "
            f"{found.stored}. Nothing was imported. Name the encoder that made them with --like."
        )
    wanted = dataclasses.replace(spec, stored=found.stored)
    for record in found.records:
        _check_names(record)
        _check_shape(wanted, record)


def _check_names(record: Record) -> None:
    """Raise CorpusError for what no table of a cache holds."""
    for name in (record.key, record.source, record.path):
        if not _is_text(name):
            raise CorpusError(
                f"{name!r}: a cache's tables hold UTF-8, and this name is none. Nothing was imported. "
                "Rename the file."
            )
    if not 0 <= record.start < 1 << 63:
        raise CorpusError(
            f"{record.path}: {record.key!r} begins at frame {record.start}, which no video has. Nothing "
            "was imported."
        )
    if record.fps is not None and not 0 < record.fps <= MAX_FPS:  # nor NaN
        raise CorpusError(
            f"{record.path}: {record.key!r} has {record.fps} frames per second, which no video has. "
            "Nothing was imported."
        )


def _is_text(name: str) -> bool:
    return name.encode(errors="replace").decode() == name


def _check_shape(spec: LatentSpec, record: Record) -> None:
    """Raise ConfigError unless a record's shape is that of the encoder's latents for its pixels."""
    bucket = record.bucket
    try:
        shape = spec.latent_shape(bucket.frames, bucket.height, bucket.width)
        why = f"are {list(shape)}, and {record.key!r} has {list(record.shape)}"
    except GeometryError as error:
        shape, why = (), f"are not possible: {error}"
    if record.shape == shape and math.prod(shape) * ITEM_BYTES["float32"] <= MAX_SAMPLE_BYTES:
        return
    raise ConfigError(
        f"{record.path}: {spec.stored} of {spec.model_class} for clips of {bucket.name} {why}. Nothing "
        "was imported. Name the encoder that made them with --like."
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
    names = ("source", "url", "kind", "identity")
    seen = {row["source"]: row for row in (_planned(r, source, found.layout) for r in records)}
    columns = {name: [row[name] for row in seen.values()] for name in names}
    table = pa.table(columns, schema=pa.schema([PLAN_SCHEMA.field(name) for name in names]))
    step.add_sources(table.append_column("stamp", pa.nulls(len(seen), pa.string())), "planned")
    return step


def in_words(layout: str, source: Storage) -> str:
    """Return what a generation says of where it was imported from."""
    return f"{layout} of {public_name(source.absolute_url)}"


def _planned(record: Record, source: Storage, layout: str) -> dict[str, object]:
    return {
        "key": record.key,
        "source": record.source,
        "url": public_name(join(source.absolute_url, record.path)),
        "kind": "image" if record.bucket.frames == 1 else "video",
        "identity": _identity(record, layout),
        "start": record.start,
        "frames": record.bucket.frames,
        "fps": record.fps,
        # Half a character, as JSON can have it, is no text.
        "caption": record.caption and record.caption.encode(errors="replace").decode(),
        "shard": 0,
        "row": 0,
    }


class _Records:
    """Finds the record of a planned clip: by its key, else by its file, if that holds nothing else.

    Keys of a layout may depend on its other files, and some of these may have come since.
    """

    def __init__(self, found: Found) -> None:
        self._by_key = {record.key: record for record in found.records}
        num_in = Counter(record.path for record in found.records)
        alone = [record for record in found.records if num_in[record.path] == 1]
        self._by_identity = {_identity(record, found.layout): record for record in alone}

    def get(self, clip: Clip) -> Record | None:
        """Return the record of a clip; None if it is gone."""
        return self._by_key.get(clip.key) or self._by_identity.get(clip.identity)


def _identity(record: Record, layout: str) -> str:
    return f"import:{layout}:{record.path}"


def import_shards(
    planned: PlannedCache, found: Found, missing: Sequence[ShardId]
) -> Iterator[ShardReport]:
    """Commit missing shards of an imported cache, in parallel. Raises CacheError, CorpusError."""
    records = _Records(found)
    normaliser = planned.manifest.spec.normaliser if found.normalised else Normaliser()
    if not missing:
        return
    threads = min(num_threads(planned.manifest, shard.bucket) for shard in missing)
    with ThreadPoolExecutor(threads) as pool:
        waiting = iter(missing)
        while window := list(itertools.islice(waiting, AHEAD * threads)):
            # Here, for the plan is not for several threads.
            shards = [planned.plan.shard(shard) for shard in window]
            yield from pool.map(lambda s: _import_shard(planned, records, normaliser, s), shards)


def _import_shard(
    planned: PlannedCache, records: _Records, normaliser: Normaliser, shard: Shard
) -> ShardReport:
    storage, manifest = planned.storage, planned.manifest
    shard_format, layout = get_format(manifest.format), manifest.layouts()[shard.bucket.name]
    adopted = adopt_shard(storage, shard_format, layout, shard, manifest.fingerprint)
    if adopted is not None:
        return adopted
    wanted = [records.get(clip) for clip in shard.clips]
    there = [record for record in wanted if record is not None]
    if len(there) < len(wanted):
        gone = [c.key for c, record in zip(shard.clips, wanted, strict=True) if record is None]
        raise CacheError(
            f"{redact(storage.url)}: shard {shard.name} needs clips that are not there any more: "
            f"{named(gone)}. What was imported stays. Put their files back, and run this again."
        )
    arrays, results = [], []
    for record in there:
        array, result = _load(record, normaliser, manifest.spec, layout.shape)
        arrays.append(array)
        results.append(result)
    where = (storage, shard_format, layout, shard)
    return commit_shard(*where, arrays, results, manifest.fingerprint)


def _load(
    record: Record, normaliser: Normaliser, spec: LatentSpec, shape: tuple[int, ...]
) -> tuple[Array | None, ClipResult]:
    try:
        tensor = record.load()
    except CorpusError as error:
        raise CorpusError(str(error).replace(NOTHING, STAYS)) from None
    if tuple(tensor.shape) != shape:
        raise CorpusError(
            f"{record.path}: {record.key!r} had the shape {list(shape)} a moment ago, and has "
            f"{list(tensor.shape)}. What was imported stays. Let nothing write there, and run this again."
        )
    raw = raw_of(tensor, normaliser).to(torch_dtype(spec.dtype)).contiguous()
    if raw.is_floating_point() and not torch.isfinite(raw).all():
        what = f"{record.path} holds NaN, infinity, or numbers beyond {spec.dtype}"
        return None, ClipResult(reason="non_finite", message=what)
    array = as_numpy(raw)
    if spec.ids is not None and (array >= spec.ids.codebook_size).any():
        raise CorpusError(
            f"{record.path}: {record.key!r} has ids beyond the {spec.ids.codebook_size} of "
            f"{spec.model_class}. {STAYS}"
        )
    return array, ClipResult(decoder="import")


def raw_of(latents: torch.Tensor, normaliser: Normaliser) -> torch.Tensor:
    """Return latents / scale + shift [C, t, h, w], in float64: what was stored comes out again."""
    if normaliser.kind == "none":
        return latents
    shift, scale = shift_and_scale(latents, normaliser)
    return latents.double() / scale.double() + shift.double()
