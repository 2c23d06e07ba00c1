"""A data set of Hugging Face's `datasets`: Parquet files and a card, as `load_dataset` takes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentcache.core.fields import FieldArray
from latentcache.core.lru import Lru
from latentcache.core.spec import LatentSpec
from latentcache.errors import CorpusError
from latentcache.exchange.clips import ClipRow, named
from latentcache.exchange.damage import refuse
from latentcache.exchange.export import Export, File, Options
from latentcache.exchange.files import array_of, dtype_name, names_in
from latentcache.exchange.generic import (
    FIELDS,
    SPEC,
    Clips,
    choice_key,
    expect_apart,
    facts_of,
    found_in,
    record_of,
    tokens_key,
)
from latentcache.exchange.parquet import open_parquet, parquet_bytes, read_group
from latentcache.exchange.quoting import quoted
from latentcache.exchange.records import Found
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage, join, redact

CARD = "README.md"
SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("source", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("bucket", pa.string()),
        pa.field("start", pa.int64()),
        pa.field("fps", pa.float64()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("shape", pa.list_(pa.int64())),
        pa.field("dtype", pa.string()),
        pa.field("latents", pa.binary()),
    ]
)
#: Rows that a reader has to take in at a time.
GROUP_ROWS = 8
_NAME = re.compile(r"train-\d{5,}-of-(\d{5,6})\.parquet")
#: Row groups' latents that an import has in memory.
MAX_OPEN = 4


def export(cache: Cache, options: Options) -> Export:
    """Return a cache as a data set. Raises ConfigError for fields that are not there."""
    clips = Clips(cache, options)
    fields = [field for key, array in clips.arrays.items() for field in _columns_of(key, array)]
    choices = [pa.field(choice_key(name), pa.int64()) for name in clips.several]
    schema = pa.schema([*SCHEMA, *fields, *choices])
    expect_apart(schema.names)
    num = len(clips.groups)
    files = [
        File(f"data/{_name(n, num)}", partial(_file, clips, schema, group))
        for n, group in enumerate(clips.groups)
    ]
    card = _card(cache, clips).encode()
    return Export(
        files=files,
        last=[*clips.about(), File(CARD, lambda: card, is_free=True)],
        stanza=_stanza,
        file_bytes=clips.file_bytes,
        notes=clips.notes,
    )


def _name(number: int, total: int) -> str:
    return f"train-{number:05d}-of-{total:05d}.parquet"


def _columns_of(key: str, array: FieldArray) -> list[pa.Field]:
    tokens = [pa.field(tokens_key(key), pa.int64())] if array.padding else []
    return [
        pa.field(key, pa.binary()),
        pa.field(f"{key}.shape", pa.list_(pa.int64())),
        pa.field(f"{key}.dtype", pa.string()),
        *tokens,
    ]


def _file(clips: Clips, schema: pa.Schema, group: Sequence[tuple[int, ClipRow]]) -> bytes:
    rows = []
    for _, row, stored in clips.of(group):
        values: dict[str, Any] = {**facts_of(row, stored), "latents": array_of(stored).tobytes()}
        for key, sample in clips.samples(row, stored).items():
            values |= {
                key: array_of(sample.array).tobytes(),
                f"{key}.shape": list(sample.array.shape),
                f"{key}.dtype": dtype_name(sample.array),
            }
            if sample.tokens is not None:
                values[tokens_key(key)] = sample.tokens
            if sample.choice is not None:
                values[choice_key(key)] = sample.choice
        rows.append(values)
    return parquet_bytes(pa.Table.from_pylist(rows, schema=schema), GROUP_ROWS)


def _card(cache: Cache, clips: Clips) -> str:
    spec = cache.spec
    buckets = sorted({row.bucket for row in clips.rows})
    return (
        "---\n"
        "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "tags:\n- latents\n- latentcache\n"
        "---\n\n"
        f"# Latents of {spec.model_class}\n\n"
        f"{len(clips.rows)} clips of the buckets {', '.join(buckets)} (frames x height x "
        f"width), written by "
        "`latentcache export --to hf`.\n\n"
        f"`latents` are bytes in C order, of `shape` and `dtype`: {spec.stored} of "
        f"{spec.channels} channels, not "
        f"normalised. `{SPEC}` says what they are, the normaliser too. `latentcache import hf` "
        f"makes a cache of "
        "them again.\n"
        f"{_fields_text(clips)}"
    )


def _fields_text(clips: Clips) -> str:
    if not clips.fields:
        return ""
    lines = "".join(f"- {_about_array(key, array)}\n" for key, array in clips.arrays.items())
    return (
        "\nFields, null for clips that have none; `NAME` are bytes in C order, of `NAME.shape` and "
        f"`NAME.dtype`:\n\n{lines}\n`{FIELDS}` says the same of them.\n"
    )


def _about_array(key: str, array: FieldArray) -> str:
    if array.padding is None:
        return f"`{key}`: {array.dtype}"
    which = "last" if array.side == "left" else "first"
    return (
        f"`{key}`: {array.dtype}, padded on the {array.side}: the {which} `{tokens_key(key)}` rows are not "
        "padding"
    )


def _stanza(url: str) -> str:
    return (
        "# datasets\n"
        f'dataset = datasets.load_dataset({quoted(url)}, split="train")\n'
        '# row["latents"] are bytes in C order, of row["shape"] and row["dtype"], as they are stored'
    )


def find(storage: Storage, spec: LatentSpec) -> Found:
    """Return the rows of a data set that `export` wrote. Raises ConfigError, CorpusError."""
    groups: Lru[tuple[str, int], list[bytes]] = Lru(MAX_OPEN)
    load = partial(_latents, storage, groups)
    records = []
    files = names_in(storage, "data", ".parquet")
    _expect_all(storage, files)
    for name in files:
        path = f"data/{name}"
        file = open_parquet(storage, path, partial(storage.read, path))
        names = [name for name in SCHEMA.names if name != "latents"]
        for group in range(file.num_row_groups):
            rows = _read(storage, path, file, group, names)
            records += [
                record_of(storage, path, row, load, (path, group, n)) for n, row in enumerate(rows)
            ]
    return found_in(storage, spec, "hf", records)


def _expect_all(storage: Storage, names: Sequence[str]) -> None:
    """Raise CorpusError unless all files are there of how many their names speak."""
    totals = {int(match[1]) for name in names if (match := _NAME.fullmatch(name))}
    wanted = [_name(n, total) for total in sorted(totals) for n in range(total)]
    if gone := sorted({*wanted} - {*names}):
        raise CorpusError(
            f"{redact(join(storage.url, 'data'))}: {len(gone)} of {len(wanted)} files are not there: "
            f"{named(gone)}. Nothing was imported. Copy or download them again."
        )


def _read(
    storage: Storage, path: str, file: pq.ParquetFile, group: int, names: list[str]
) -> list[dict[str, Any]]:
    if absent := [name for name in names if name not in file.schema_arrow.names]:
        raise refuse(storage, path, f"has no column {', '.join(absent)}")
    rows: list[dict[str, Any]] = read_group(storage, path, file, group, names).to_pylist()
    return rows


def _latents(
    storage: Storage, groups: Lru[tuple[str, int], list[bytes]], place: tuple[str, int, int]
) -> bytes:
    path, group, number = place

    def read() -> list[bytes]:
        file = open_parquet(storage, path, partial(storage.read, path))
        rows = _read(storage, path, file, group, ["latents"])
        return [row["latents"] or b"" for row in rows]

    return groups.get_or_make((path, group), read)[number]
