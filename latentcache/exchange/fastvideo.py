"""FastVideo (2f3d407): Parquet files of its text-to-video schema, latents raw and in float32."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from latentcache.core.json_text import OTHER_HEADER, fault_of
from latentcache.core.lru import Lru
from latentcache.core.spec import ITEM_BYTES, LatentSpec
from latentcache.errors import ConfigError
from latentcache.exchange.clips import (
    ClipRow,
    Latents,
    clip_rows,
    expect_class,
    expect_stored,
    one_bucket,
    refuse_twice,
)
from latentcache.exchange.damage import refuse
from latentcache.exchange.export import Export, File, Options
from latentcache.exchange.files import array_of, files_in, tensor_of
from latentcache.exchange.parquet import open_parquet, parquet_bytes, read_group
from latentcache.exchange.quoting import quoted
from latentcache.exchange.records import Found, Record, bucket_from
from latentcache.exchange.stopping import in_turns
from latentcache.exchange.tar import in_groups
from latentcache.exchange.texts import Texts
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage
from latentcache.storage.urls import is_url

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("vae_latent_bytes", pa.binary()),
        pa.field("vae_latent_shape", pa.list_(pa.int64())),
        pa.field("vae_latent_dtype", pa.string()),
        pa.field("text_embedding_bytes", pa.binary()),
        pa.field("text_embedding_shape", pa.list_(pa.int64())),
        pa.field("text_embedding_dtype", pa.string()),
        pa.field("file_name", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("media_type", pa.string()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("num_frames", pa.int64()),
        pa.field("duration_sec", pa.float64()),
        pa.field("fps", pa.float64()),
    ]
)
#: Bytes are read as this, whatever the column of types says.
DTYPE = "float32"
#: A row group is read for each of its rows.
GROUP_ROWS = 1
#: What a row group of one row takes beside latents and texts at most, and a character in UTF-8.
FACTS_BYTES, CHARACTER_BYTES = 8192, 4
#: What a name of a `--data-path` cannot hold: it is cut there, and blanks around the parts are lost.
CUTS = ",:"
#: Whole files that an import has in memory.
MAX_OPEN = 4
_READ = ("id", "vae_latent_shape", "caption", "file_name", "fps", "media_type")


def export(cache: Cache, options: Options) -> Export:
    """Return a cache as a `--data-path`. Raises ConfigError where that cannot be right."""
    expect_class(cache, "FastVideo", _MODELS)
    model = _MODELS[cache.spec.model_class]
    expect_stored(cache, "FastVideo", "mean")
    if options.dtype not in (None, DTYPE):
        raise ConfigError(
            f"--dtype {options.dtype}: FastVideo reads bytes as {DTYPE}, whatever they are"
        )
    if options.text is None:
        raise ConfigError(
            "FastVideo reads a text embedding in every row. Nothing was written. Add a field of "
            "kind text with "
            "latentcache add-field, and name it: --text"
        )
    rows = clip_rows(cache, options.bucket)
    bucket = one_bucket(
        rows, "FastVideo stacks the rows of a data path, so they must be of one shape"
    )
    refuse_twice(rows, [row.key for row in rows], "FastVideo tells rows apart by their id.")
    texts = Texts(cache, options.text, rows)
    latents = Latents(cache, posterior="mode", normalise=False, dtype=DTYPE)
    shape = (cache.spec.channels, *cache.buckets[bucket.name].shape[1:])
    row_bytes = [_row_bytes(shape, texts, row) for row in rows]
    groups = in_groups(list(enumerate(rows)), row_bytes)
    files = [
        File(
            f"data-{number:06d}.parquet", partial(_file, latents, texts, [row for _, row in group])
        )
        for number, group in enumerate(groups)
    ]
    return Export(
        files=files,
        stanza=partial(model.stanza, shape[1]),
        expect_place=_expect_place,
        file_bytes=max(sum(row_bytes[n] for n, _ in group) for group in groups),
        notes=[
            "where FastVideo has read this folder before, remove its map_style_cache/",
            model.note,
            *texts.notes,
        ],
    )


def _expect_place(url: str) -> None:
    """Raise ConfigError for a folder that no `--data-path` names, see its `_parse_data_path_specs`."""
    if is_url(url):
        return  # it is to be copied, so another place is named
    if any(cut in url for cut in CUTS) or url != url.strip():
        raise ConfigError(
            f"{url}: FastVideo takes a --data-path apart at each comma and at a colon, and drops blanks "
            "around the parts, so it would read other folders or none. Nothing was written. Export to a "
            "folder whose path has no comma, colon or blank at its end."
        )


def _row_bytes(shape: Sequence[int], texts: Texts, row: ClipRow) -> int:
    """Return what a row takes in a file: latents of a shape [C, t, h, w], text states, and facts."""
    values = math.prod(shape) + texts.num_tokens(row) * texts.array.shape[1]
    return values * ITEM_BYTES[DTYPE] + CHARACTER_BYTES * len(texts.text(row)) + FACTS_BYTES


def to_row(row: ClipRow, latents: torch.Tensor, states: torch.Tensor, text: str) -> dict[str, Any]:
    """Return a record of its schema. latents: raw mean [C, t, h, w] float32; states of a text [n, D]."""
    duration = (row.end_s or 0.0) - (row.start_s or 0.0)
    fps = row.fps or (row.frames / duration if duration > 0 else 0.0)
    return {
        "id": row.key,
        "vae_latent_bytes": array_of(latents).tobytes(),
        "vae_latent_shape": list(latents.shape),
        "vae_latent_dtype": DTYPE,
        "text_embedding_bytes": array_of(states).tobytes(),
        "text_embedding_shape": list(states.shape),
        "text_embedding_dtype": DTYPE,
        "file_name": row.source,
        "caption": text,
        "media_type": "image" if row.frames == 1 else "video",
        "width": row.width,
        "height": row.height,
        "num_frames": latents.shape[1],  # t, and not T: its own script writes this
        "duration_sec": duration,
        "fps": fps,
    }


def _file(latents: Latents, texts: Texts, rows: Sequence[ClipRow]) -> bytes:
    found = [
        to_row(row, latent, texts.unpadded(row, DTYPE), texts.text(row))
        for some in in_turns(rows)
        for row, latent in zip(some, latents.of(some), strict=True)
    ]
    return parquet_bytes(pa.Table.from_pylist(found, schema=SCHEMA), GROUP_ROWS)


def _place(url: str) -> tuple[str, str]:
    """Return what to say of the folder, and what stands for it: FastVideo reads local ones only."""
    if not is_url(url):
        return "", url
    return (
        f"# FOLDER: a local copy of {quoted(url)}, without comma or colon in its path\n",
        "FOLDER",
    )


def _arguments(t: int, url: str) -> str:
    said, folder = _place(url)
    return f"# FastVideo, arguments\n{said}--data-path {shlex.quote(folder)} --num-latent-t {t}"


def _yaml(t: int, url: str) -> str:
    said, folder = _place(url)
    return (
        f"# FastVideo, YAML of fastvideo.train\n{said}"
        f"training:\n  data:\n    data_path: {quoted(folder)}\n    num_latent_t: {t}"
    )


@dataclass(frozen=True, kw_only=True)
class Model:
    """What FastVideo trains on the latents of a VAE. note: what else must be right."""

    stanza: Callable[[int, str], str]
    note: str


#: The VAEs whose raw latents its training normalises: see `normalize_dit_input`, and who calls it.
_MODELS = {
    "AutoencoderKLWan": Model(
        stanza=_arguments,
        note="these latents are raw, as FastVideo's Wan wants them. Cosmos 2.5, which has the VAE of "
        "Wan 2.1, takes them for normalised ones: do not train it on these",
    ),
    "AutoencoderKLHunyuanVideo": Model(
        stanza=_yaml,
        note="FastVideo's HunyuanVideo takes a text's first state for the pooled one of CLIP, with zeros "
        "behind it, and the others for LLaMA's: the field must hold both",
    ),
}


def find(storage: Storage, spec: LatentSpec) -> Found:
    """Return the rows of a `--data-path`. Raises ConfigError, CorpusError naming a file."""
    if spec.model_class not in _MODELS:
        raise ConfigError(
            f"FastVideo's files of {spec.model_class} are not known; nothing was imported"
        )
    reader = _Reader(storage)
    paths = files_in(storage, "", ".parquet")
    records = [record for path in paths for record in _records(storage, spec, reader, path)]
    return Found(layout="fastvideo", stored="mean", normalised=False, records=records)


class _Reader:
    """Rows of Parquet files, of which few are in memory."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._data: Lru[str, pa.Buffer] = Lru(MAX_OPEN)

    def open(self, path: str) -> pq.ParquetFile:
        """Open a file. Raises CorpusError."""

        def read() -> pa.Buffer:
            return self._data.get_or_make(path, lambda: pa.py_buffer(self._storage.read(path)))

        return open_parquet(self._storage, path, read)

    def latents(self, path: str, group: int, place: int) -> torch.Tensor:
        """Return the latents of a row, by its row group and its place in that. Raises CorpusError."""
        names = ("vae_latent_bytes", "vae_latent_shape")
        table = read_group(self._storage, path, self.open(path), group, names)
        row = table.slice(place, 1).to_pylist()[0]
        shape, data = tuple(row["vae_latent_shape"]), row["vae_latent_bytes"]
        if not isinstance(data, bytes) or len(data) != 4 * math.prod(shape):
            raise refuse(
                self._storage, path, f"has a row whose bytes are not {list(shape)} of {DTYPE}"
            )
        return tensor_of(data, DTYPE, shape)


def _records(storage: Storage, spec: LatentSpec, reader: _Reader, path: str) -> list[Record]:
    file = reader.open(path)
    if absent := [
        name for name in ("vae_latent_bytes", *_READ) if name not in file.schema_arrow.names
    ]:
        raise refuse(
            storage, path, f"is not of FastVideo's schema: it has no column {', '.join(absent)}"
        )
    found = []
    for group in range(file.num_row_groups):
        rows = read_group(storage, path, file, group, _READ).to_pylist()
        for place, row in enumerate(rows):
            found.append(_record(storage, spec, reader, path, group, place, row))
    return found


def _record(
    storage: Storage,
    spec: LatentSpec,
    reader: _Reader,
    path: str,
    group: int,
    place: int,
    row: Mapping[str, Any],
) -> Record:
    try:
        key, caption = str(row["id"]), row["caption"]
        shape = tuple(int(side) for side in row["vae_latent_shape"])
        fps = float(row["fps"] or 0.0) or None
    except OTHER_HEADER as error:
        raise refuse(storage, path, f"has a row that makes no sense: {fault_of(error)}") from None
    if not row["id"] or len(shape) != 4 or not isinstance(row["vae_latent_shape"], list):
        raise refuse(storage, path, "has a row without an id, or without latents [C, t, h, w]")
    return Record(
        key=key,
        source=str(row["file_name"] or key),
        path=path,
        bucket=bucket_from(storage, path, spec, shape),
        shape=shape,
        dtype=DTYPE,
        load=partial(reader.latents, path, group, place),
        caption=None if caption is None else str(caption),
        fps=fps,
    )
