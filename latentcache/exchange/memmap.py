"""1xgpt (0069734): ids of all frames in one array on disk, with the number of each frame's segment."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from latentcache.core.dtypes import numpy_dtype
from latentcache.core.json_text import OTHER_HEADER, fault_of, parse_json
from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError
from latentcache.exchange.clips import ClipRow, clip_rows
from latentcache.exchange.damage import refuse
from latentcache.exchange.export import Export, File, Options
from latentcache.exchange.files import array_of, read_part
from latentcache.exchange.records import Found, Record
from latentcache.exchange.stopping import in_turns
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage

IDS, SEGMENTS, FACTS = "video.bin", "segment_ids.bin", "metadata.json"
#: What ids may be stored as.
_TYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


def export(cache: Cache, options: Options) -> Export:
    """Return a cache of ids as 1xgpt's arrays. Raises ConfigError where that cannot be right."""
    spec = cache.spec
    if spec.ids is None or spec.ids.scales:
        raise ConfigError(
            f"1xgpt reads ids [t, h, w], and the cache stores {spec.stored} of "
            f"{spec.model_class}. Nothing was "
            "written."
        )
    rows = sorted(clip_rows(cache, options.bucket), key=lambda row: (row.source, row.start))
    grids = {tuple(cache.buckets[row.bucket].shape[1:]) for row in rows}
    if len(grids) > 1 or any(h != w for h, w in grids):
        found = ", ".join(f"{h}x{w}" for h, w in sorted(grids))
        raise ConfigError(
            f"1xgpt reads frames of one square grid of ids, and the cache has {found}. Nothing "
            f"was written. "
            "Name a bucket of square frames: --bucket"
        )
    ((side, _),) = grids
    facts = _facts(spec, rows, cache, int(side))
    files = [File(IDS, partial(_ids, cache, rows))]
    last = [
        File(SEGMENTS, partial(_segments, cache, rows)),
        File(FACTS, lambda: json.dumps(facts, indent=1).encode()),
    ]
    return Export(files=files, last=last, stanza=partial(_stanza, facts), file_bytes=1 << 30)


def _facts(spec: LatentSpec, rows: Sequence[ClipRow], cache: Cache, side: int) -> dict[str, Any]:
    assert spec.ids is not None
    rates = {row.fps for row in rows}
    return {
        "num_images": sum(cache.buckets[row.bucket].shape[0] for row in rows),
        "s": side,
        "h": side,
        "w": side,
        "token_dtype": "uint32",
        "vocab_size": spec.ids.codebook_size,
        "hz": rates.pop() if len(rates) == 1 else None,
    }


def _ids(cache: Cache, rows: Sequence[ClipRow]) -> bytes:
    parts: list[bytes] = []
    for some in in_turns(rows):
        samples = cache.stored_samples([row.number for row in some])
        parts += [array_of(sample["latents"]).astype("<u4").tobytes() for sample in samples]
    return b"".join(parts)


def _segments(cache: Cache, rows: Sequence[ClipRow]) -> bytes:
    """Return each frame's segment. Clips that follow one another make one, where frames stand alone.

    Windows of a segment run over the clips' ends, which is right only if no frame depends on others.
    """
    alone = cache.spec.pixel_layout == "BCHW" and cache.spec.stride[0] == 1
    numbers, segment = [], 0
    for before, row in zip([None, *rows[:-1]], rows, strict=True):
        follows = (
            before is not None
            and alone
            and before.source == row.source
            and before.start + before.frames == row.start
        )
        segment += before is not None and not follows
        numbers += [segment] * cache.buckets[row.bucket].shape[0]
    return np.array(numbers, "<i4").tobytes()


def _stanza(facts: dict[str, Any], url: str) -> str:
    return (
        f"# 1xgpt, arguments. Its config needs S = {facts['s'] ** 2} and image_vocab_size = "
        f"{facts['vocab_size']}.\n"
        f"--train_data_dir {shlex.quote(url)}"
    )


def find(storage: Storage, spec: LatentSpec) -> Found:
    """Return the segments of 1xgpt's arrays, each a clip. Raises ConfigError, CorpusError naming a file."""
    if spec.ids is None or spec.ids.scales or spec.stride[0] != 1:
        raise ConfigError(
            f"1xgpt's ids are one grid per frame, and {spec.model_class} gives no such ids. "
            f"Nothing was imported."
        )
    side, num, dtype = _read_facts(storage)
    frame_bytes = side * side * dtype.itemsize
    for path, wanted in ((IDS, num * frame_bytes), (SEGMENTS, 4 * num)):
        if not storage.exists(path) or storage.size(path) != wanted:
            raise refuse(
                storage, path, f"is not there, or has not the {wanted} bytes of {num} frames"
            )
    segments = np.frombuffer(storage.read(SEGMENTS), "<i4")
    firsts = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), num]
    _, sh, sw = spec.stride
    records = []
    for number, (first, end) in enumerate(itertools.pairwise(firsts)):
        place = (first * frame_bytes, (end - first) * frame_bytes)
        shape = (end - first, side, side)
        records.append(
            Record(
                key=f"{number:09d}#0",
                source=f"{number:09d}",
                path=IDS,
                bucket=Bucket(frames=end - first, height=side * sh, width=side * sw),
                shape=shape,
                dtype=spec.dtype,
                load=partial(_load, storage, spec, place, shape, dtype),
            )
        )
    return Found(
        layout="memmap", stored="ids", normalised=False, records=records, beside=(SEGMENTS, FACTS)
    )


def _read_facts(storage: Storage) -> tuple[int, int, np.dtype[Any]]:
    """Return the side of the grid, the number of frames, and the type of ids."""
    try:
        facts = parse_json(storage.read(FACTS))
        side, num = int(facts["s"]), int(facts["num_images"])
        name = str(facts.get("token_dtype", "uint32"))
        if name not in _TYPES or min(side, num) < 1:
            raise ValueError(f"{num} frames of {side}x{side} {name}")
        dtype = np.dtype(name).newbyteorder("<")
    except (*OTHER_HEADER, FileNotFoundError) as error:
        raise refuse(storage, FACTS, f"does not say what is there: {fault_of(error)}") from None
    return side, num, dtype


def _load(
    storage: Storage,
    spec: LatentSpec,
    place: tuple[int, int],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
) -> torch.Tensor:
    assert spec.ids is not None
    ids = np.frombuffer(read_part(storage, IDS, *place), dtype)
    # Here, for a narrower type would hide them.
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < spec.ids.codebook_size:
        raise refuse(
            storage, IDS, f"has ids beyond the {spec.ids.codebook_size} of {spec.model_class}"
        )
    return torch.from_numpy(ids.astype(numpy_dtype(spec.dtype)).reshape(shape))
