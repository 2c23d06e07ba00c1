"""MDS, the form of mosaicml-streaming: binary shards and their index. Written without that library."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from latentcache.core.fields import FieldArray
from latentcache.core.json_text import OTHER_HEADER, fault_of, parse_json
from latentcache.core.spec import LatentSpec
from latentcache.core.units import plural
from latentcache.errors import ConfigError
from latentcache.exchange.clips import ClipRow, named
from latentcache.exchange.damage import read_whole, refuse
from latentcache.exchange.export import Export, File, Options
from latentcache.exchange.files import array_of, dtype_name, names_in
from latentcache.exchange.generic import (
    Clips,
    choice_key,
    expect_apart,
    facts_of,
    found_in,
    record_of,
    tokens_key,
)
from latentcache.exchange.quoting import quoted
from latentcache.exchange.records import Found, Record
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage, redact

INDEX = "index.json"
#: Offsets in a shard are uint32.
MAX_BYTES = (1 << 32) - 1
#: Columns, and how each is written. Those of fields follow, in bytes and JSON.
_COLUMNS = {"caption": "str", "facts": "json", "key": "str", "latents": "bytes"}


def export(cache: Cache, options: Options) -> Export:
    """Return a cache as an MDS folder. Raises ConfigError for fields that are not there."""
    clips = Clips(cache, options)
    found = [*_COLUMNS.items()]
    for key, array in clips.arrays.items():
        found += _columns_of(key, array)
    found += [(choice_key(name), "json") for name in clips.several]
    expect_apart(name for name, _ in found)
    columns = dict(sorted(found))
    _check_sizes(clips)
    names = [f"shard.{number:05d}.mds" for number in range(len(clips.groups))]
    makers = [partial(_shard, clips, columns, group) for group in clips.groups]
    files = [File(name, make) for name, make in zip(names, makers, strict=True)]
    return Export(
        files=files,
        last=clips.about(),
        finish=partial(_index, columns, names, [len(group) for group in clips.groups]),
        stanza=_stanza,
        file_bytes=clips.file_bytes,
        notes=clips.notes,
    )


def _check_sizes(clips: Clips) -> None:
    """Raise ConfigError for clips that no shard holds. Files of several clips are far smaller."""
    large = [r.key for r, size in zip(clips.rows, clips.row_bytes, strict=True) if size > MAX_BYTES]
    if large:
        raise ConfigError(
            f"{plural(len(large), 'clip')} too large for a shard of MDS, whose offsets reach to 4 GiB: "
            f"{named(large)}. Nothing was written. Leave a field out, or export to webdataset."
        )


def _columns_of(key: str, array: FieldArray) -> list[tuple[str, str]]:
    tokens = [(tokens_key(key), "json")] if array.padding else []
    return [(key, "bytes"), (f"{key}.shape", "json"), *tokens]


def config_of(columns: Mapping[str, str]) -> dict[str, Any]:
    """Return what every shard says of itself."""
    return {
        "column_encodings": list(columns.values()),
        "column_names": list(columns),
        "column_sizes": [None] * len(columns),
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": None,
        "version": 2,
    }


def _shard(clips: Clips, columns: Mapping[str, str], group: Sequence[tuple[int, ClipRow]]) -> bytes:
    """Return a shard: the number of samples, where each begins, what it is, the samples."""
    samples = [_sample(clips, columns, row, stored) for _, row, stored in clips.of(group)]
    config = json.dumps(config_of(columns), sort_keys=True).encode()
    sizes = np.cumsum([0, *map(len, samples)])
    start = 4 + 4 * len(sizes) + len(config)
    head = struct.pack("<I", len(samples)) + (sizes + start).astype("<u4").tobytes()
    return b"".join([head, config, *samples])


def _sample(clips: Clips, columns: Mapping[str, str], row: ClipRow, stored: Any) -> bytes:
    values = {
        "caption": (row.caption or "").encode(),
        "facts": json.dumps(facts_of(row, stored)).encode(),
        "key": row.key.encode(),
        "latents": array_of(stored).tobytes(),
    }
    for key, sample in clips.samples(row, stored).items():
        shape = [*sample.array.shape, dtype_name(sample.array)]
        values |= {
            key: array_of(sample.array).tobytes(),
            f"{key}.shape": json.dumps(shape).encode(),
        }
        if sample.tokens is not None:
            values[tokens_key(key)] = json.dumps(sample.tokens).encode()
        if sample.choice is not None:
            values[choice_key(key)] = json.dumps(sample.choice).encode()
    parts = [values.get(name, b"null" if kind == "json" else b"") for name, kind in columns.items()]
    return np.array([len(part) for part in parts], "<u4").tobytes() + b"".join(parts)


def _index(
    columns: Mapping[str, str], names: Sequence[str], counts: Sequence[int], out: Storage
) -> File:
    """Return the index of shards that are there."""
    config, sizes = config_of(columns), out.list("")
    shards = [
        {
            **config,
            "raw_data": {"basename": name, "bytes": sizes[name], "hashes": {}},
            "samples": count,
            "zip_data": None,
        }
        for name, count in zip(names, counts, strict=True)
    ]
    data = json.dumps({"shards": shards, "version": 2}, sort_keys=True).encode()
    return File(INDEX, lambda: data)


def _stanza(url: str) -> str:
    return (
        "# mosaicml-streaming\n"
        f"dataset = streaming.StreamingDataset(local={quoted(url)}, shuffle=True, batch_size=BATCH)\n"
        '# sample["latents"] are bytes in C order, of sample["facts"]["shape"] and ["dtype"], as stored'
    )


def find(storage: Storage, spec: LatentSpec) -> Found:
    """Return the samples of an MDS folder that `export` wrote. Raises ConfigError, CorpusError."""
    try:
        shards = parse_json(storage.read(INDEX))["shards"]
        names = [str(shard["raw_data"]["basename"]) for shard in shards]
        sizes = [int(shard["raw_data"]["bytes"]) for shard in shards]
        plain = all(s["compression"] is None and s["zip_data"] is None for s in shards)
    except FileNotFoundError:
        raise ConfigError(
            f"mds: there is no {INDEX} in {redact(storage.url)}, so which shards there are is unknown. "
            "Nothing was imported."
        ) from None
    except OTHER_HEADER as error:
        raise refuse(storage, INDEX, f"is no index of MDS: {fault_of(error)}") from None
    if not plain or any("/" in name for name in names):
        raise refuse(
            storage, INDEX, "lists compressed shards, or some elsewhere, which are not read"
        )
    there = set(names_in(storage, "", ""))
    for name, size in zip(names, sizes, strict=True):
        found = storage.size(name) if name in there else None
        if found != size:
            raise refuse(storage, name, _differs(size, found))
    records = [
        r for name, shard in zip(names, shards, strict=True) for r in _records(storage, name, shard)
    ]
    return found_in(storage, spec, "mds", records, beside=(INDEX,))


def _differs(wanted: int, found: int | None) -> str:
    if found is None:
        return f"is not there, and {INDEX} lists it"
    return f"is no whole shard of MDS: it has {found:,} bytes, and {INDEX} says {wanted:,}"


def _records(storage: Storage, path: str, shard: Mapping[str, Any]) -> list[Record]:
    read = partial(_read, storage, path)
    with read_whole(storage, path, OTHER_HEADER, _not_whole):
        count = int(shard["samples"])
        names = list(shard["column_names"])
        if any(size is not None for size in shard["column_sizes"]):
            raise ValueError("columns of a fixed size")
        if np.frombuffer(read(0, 4), "<u4")[0] != count:
            raise ValueError(f"{INDEX} says that it has {count} samples")
        ends = np.frombuffer(read(4, 4 * (count + 1)), "<u4").tolist()
        found = []
        for start in ends[:-1]:
            sizes = np.frombuffer(read(start, 4 * len(names)), "<u4").tolist()
            places, at = {}, start + 4 * len(names)
            for name, size in zip(names, sizes, strict=True):
                places[name], at = (at, size), at + size
            facts = parse_json(read(*places["facts"]))
            found.append(record_of(storage, path, facts, _at(read), places["latents"]))
    return found


def _not_whole(error: Exception) -> str:
    return f"is no whole shard of MDS: {fault_of(error)}"


def _at(read: Callable[[int, int], bytes]) -> Callable[[tuple[int, int]], bytes]:
    return lambda place: read(*place)


def _read(storage: Storage, path: str, offset: int, length: int) -> bytes:
    data = storage.read_ranges(path, [(offset, length)])[0]
    if len(data) != length:
        raise ValueError("it is cut off")
    return data
