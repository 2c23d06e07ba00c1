"""Repeat: sampled clips are decoded and encoded again, and compared with what is stored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from latentcache import encoders
from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.core.records import ChunkRef, ShardId
from latentcache.core.spec import LatentSpec
from latentcache.decoders.pool import DecodedClip, DecodePool
from latentcache.encoders import out_of_memory
from latentcache.encoders.protocol import Encoder
from latentcache.encoders.stored import to_stored
from latentcache.errors import ClipError
from latentcache.format.paths import sample_path
from latentcache.format.shards import get_format
from latentcache.format.tables import read_table
from latentcache.planning.planned import PlannedCache

#: How far an encoding may be off: RMS of the difference over that of the latents; for ids, the fraction
#: that differs. The same build on a CPU repeats itself bit for bit. Another GPU or kernel rounds
#: differently: bfloat16 keeps 8 bits, 0.004 of a value. Latents of another clip or model differ by about 1.
TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A clip by its position among the ok rows of a committed shard."""

    shard: ShardId
    position: int


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """What a clip gave this time. difference: see TOLERANCE; 0 if every bit is the same.

    problem: why the clip could not be read, such as a missing source; else None.
    """

    place: Drawn
    key: str
    difference: float = 0.0
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it matches what is stored; a missing source says nothing about the cache."""
        return self.difference <= TOLERANCE


def choose(rows: Sequence[Mapping[str, Any]], num_clips: int, seed: int) -> list[Drawn]:
    """Draw ok clips without repeats, as evenly over the buckets as possible.

    rows: of the snapshot. The same rows and seed give the same clips.
    """
    buckets: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["bucket"], row["shard"])):
        buckets.setdefault(row["bucket"], []).append(row)
    rng = np.random.Generator(np.random.Philox(seed))
    drawn: list[list[Drawn]] = []
    for bucket, shards in buckets.items():
        ends = np.cumsum([row["num_ok"] for row in shards])
        picked = rng.choice(ends[-1], min(num_clips, int(ends[-1])), replace=False)
        drawn.append([_drawn(bucket, shards, ends, int(n)) for n in picked])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*drawn))
    taken = itertools.islice(filter(None, turns), num_clips)
    return sorted(taken, key=lambda p: (p.shard, p.position))


def _drawn(bucket: str, shards: Sequence[Mapping[str, Any]], ends: Array, number: int) -> Drawn:
    n = int(np.searchsorted(ends, number, side="right"))
    position = number - int(ends[n] - shards[n]["num_ok"])
    return Drawn(shard=ShardId(bucket, shards[n]["shard"]), position=position)


def repeat(
    planned: PlannedCache, places: Sequence[Drawn], device: torch.device
) -> Iterator[Repeated]:
    """Decode and encode clips again, one after the other, and yield how far each is off."""
    module, config = encoders.resolve(planned.config.encoder)
    encoder = module.build(config, spec=planned.manifest.spec, device=device)
    with DecodePool.for_run(planned.config, num_processes=1, num_buffers=1) as pool:
        for place in places:
            stored, row = _read(planned, place)
            clip = planned.plan.shard(place.shard).clips[row]
            try:
                again = _encode(pool.decode(clip), encoder, clip.key, planned.manifest.spec)
            except ClipError as error:
                yield Repeated(place=place, key=clip.key, problem=str(error))
            else:
                yield Repeated(place=place, key=clip.key, difference=difference(stored, again))


def difference(stored: Array, again: Array) -> float:
    """Return the RMS of the difference over the RMS of what is stored; for ids, the differing fraction."""
    if stored.tobytes() == again.tobytes():
        return 0.0
    if np.issubdtype(stored.dtype, np.integer):
        return float((stored != again).mean())
    a, b = stored.astype(np.float64), again.astype(np.float64)
    scale = np.sqrt(np.mean(a**2))
    return float(np.sqrt(np.mean((a - b) ** 2)) / scale) if scale else float("inf")


def _read(planned: PlannedCache, place: Drawn) -> tuple[Array, int]:
    """Read a stored sample; returns it and its row. Raises CorruptionError."""
    storage, manifest = planned.storage, planned.manifest
    table = read_table(storage, sample_path(*place.shard))
    ok = table.filter(pc.equal(table["status"], "ok"))
    names = ["row", "offset", "length", "crc32c"]
    chunk = ChunkRef(**ok.select(names).slice(place.position, 1).to_pylist()[0])
    layout = manifest.layouts()[place.shard.bucket]
    out = np.empty(layout.shape, numpy_dtype(layout.dtype))
    get_format(manifest.format).read(storage, layout, place.shard.number, [chunk], [out])
    return out, chunk.row


def _encode(future: Future[DecodedClip], encoder: Encoder, key: str, spec: LatentSpec) -> Array:
    decoded = future.result()
    try:
        pixels = torch.from_numpy(decoded.pixels)[None]
        return to_stored(out_of_memory.encode(encoder, pixels), key, spec)
    finally:
        decoded.release()
