"""Clips for forms that no trainer defines: what is stored, unchanged, with what a reader needs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from latentcache.core.fields import FieldArray
from latentcache.core.json_text import OTHER_HEADER, fault_of, parse_json
from latentcache.core.records import Bucket
from latentcache.core.spec import ITEM_BYTES, LatentSpec
from latentcache.core.units import NAMED
from latentcache.errors import ConfigError
from latentcache.exchange.clips import ClipRow, clip_rows
from latentcache.exchange.damage import read_whole, refuse
from latentcache.exchange.export import File, Options
from latentcache.exchange.files import tensor_of
from latentcache.exchange.layouts import LOOKS_FOR
from latentcache.exchange.records import Found, Record
from latentcache.exchange.stopping import in_turns
from latentcache.exchange.tar import in_groups
from latentcache.exchange.texts import columns_of, notes_on, refuse_stale
from latentcache.format.columns import CAPTION
from latentcache.reading.cache import Cache
from latentcache.reading.fields import FieldReader
from latentcache.reading.text_choice import chosen_entries, grouped
from latentcache.storage.folder import Storage, redact

#: What the latents are: a LatentSpec in JSON, beside the data.
SPEC = "latent_spec.json"
#: What the arrays of fields are, and on which side they are padded, beside the data.
FIELDS = "fields.json"
#: What stands around an array at most: its names, and the headers of torch.save and of tar.
ARRAY_BYTES = 4096
#: What a character of a text takes at most: in UTF-8, and escaped in JSON.
CHARACTER_BYTES = 4 + 12


@dataclass(frozen=True, kw_only=True)
class FieldSample:
    """A clip's array of a field, padding included. tokens: its rows that are not padding, or None.

    choice: which of the clip's texts it is of, counted from 0, where a field has several; else None.
    """

    array: torch.Tensor
    tokens: int | None = None
    choice: int | None = None


class Clips:
    """Stored samples of a cache in groups for files, with the fields that were asked for."""

    def __init__(self, cache: Cache, options: Options) -> None:
        if options.dtype is not None:
            raise ConfigError(
                "--dtype: this form holds what is stored, in its own type. Leave it out."
            )
        self.cache = cache
        self.rows = clip_rows(cache, options.bucket)
        names = [*([options.text] if options.text else []), *options.fields]
        self.fields = {name: cache.field(name) for name in dict.fromkeys(names)}
        for field in self.fields.values():
            refuse_stale(cache, field, self.rows)
        self._groups = grouped([*self.fields.values()])
        in_bucket = {name: self._bytes_in(name) for name in {row.bucket for row in self.rows}}
        #: What each row takes in a file at most.
        self.row_bytes = [in_bucket[row.bucket] + _text_bytes(row) for row in self.rows]
        self.groups = in_groups(list(enumerate(self.rows)), self.row_bytes)
        self.file_bytes = max(sum(self.row_bytes[n] for n, _ in group) for group in self.groups)

    @property
    def arrays(self) -> dict[str, FieldArray]:
        """The arrays of all fields by their keys."""
        return {key: a for field in self.fields.values() for key, a in field.arrays.items()}

    def _bytes_in(self, bucket: str) -> int:
        """Return what latents and fields of a clip of a bucket take in a file at most."""
        latents = math.prod(self.cache.buckets[bucket].shape) * ITEM_BYTES[self.cache.spec.dtype]
        arrays = [
            math.prod(field.shape(array, bucket)) * ITEM_BYTES[array.dtype]
            for field in self.fields.values()
            for array in field.arrays.values()
        ]
        return latents + sum(arrays) + ARRAY_BYTES * (1 + len(arrays))

    def of(
        self, group: Sequence[tuple[int, ClipRow]]
    ) -> Iterator[tuple[int, ClipRow, torch.Tensor]]:
        """Yield the stored samples of a group."""
        for some in in_turns(group):
            samples = self.cache.stored_samples([row.number for _, row in some])
            for (number, row), sample in zip(some, samples, strict=True):
                yield number, row, sample["latents"]

    def samples(self, row: ClipRow, stored: torch.Tensor) -> dict[str, FieldSample]:
        """Return a clip's arrays of fields by key; none of a field that has nothing of it.

        Fields of the same texts have the same one of them, the first that all have.
        """
        found: dict[str, FieldSample] = {}
        entries = chosen_entries(self._groups, row.bucket, row.shard, [row.row], [0])
        for name, field in self.fields.items():
            if field.is_view:
                found[name] = FieldSample(array=field.view(stored).contiguous())
            elif entry := entries[name][0]:
                sample = field.sample_of(row.bucket, row.shard, entry)
                for key, array in field.arrays.items():
                    tokens = sample.get(tokens_key(key)) if array.padding else None
                    choice = entry.choice if key in self.several else None
                    found[key] = FieldSample(array=sample[key], tokens=tokens, choice=choice)
        return found

    @property
    def several(self) -> list[str]:
        """The fields that have several texts of a clip, of which one is written."""
        return [name for name, f in self.fields.items() if f.is_text and f.field.choices > 1]

    @property
    def notes(self) -> list[str]:
        """What an export says of texts: each field's of which not all are written, or no captions are."""
        found = []
        for name, field in self.fields.items():
            found += notes_on(field, self.rows, self._beside(field))
            columns = columns_of(field)
            if columns not in ([], [CAPTION]):
                found.append(
                    f"the states {name} are of the texts in {', '.join(columns)}, and not of the captions "
                    "beside them"
                )
        return found

    def _beside(self, field: FieldReader) -> Sequence[FieldReader]:
        """Return the fields that are written of the same text as one, itself included."""
        return next((group for group in self._groups if field in group), ())

    def about(self) -> list[File]:
        """Return the files that say what the latents are, and what the arrays of fields are."""
        files = [_json_file(SPEC, self.cache.spec.to_json())]
        if self.fields:
            files.append(_json_file(FIELDS, {key: _about(a) for key, a in self.arrays.items()}))
        return files


def _text_bytes(row: ClipRow) -> int:
    return CHARACTER_BYTES * sum(map(len, (row.key, row.source, row.caption or "")))


def _json_file(name: str, value: Mapping[str, Any]) -> File:
    data = json.dumps(value, indent=1, sort_keys=True).encode()
    return File(name, lambda: data)


def _about(array: FieldArray) -> dict[str, Any]:
    side = array.side if array.padding else None
    return {"dtype": array.dtype, "padding": array.padding, "side": side}


def tokens_key(key: str) -> str:
    """Return the name of the number of an array's rows that are not padding."""
    return f"{key}_tokens"


def choice_key(name: str) -> str:
    """Return the name of which of a clip's texts a field's states are of."""
    return f"{name}_choice"


def expect_apart(columns: Iterable[str]) -> None:
    """Raise ConfigError if a column of a field has the name of another one."""
    if twice := sorted(name for name, count in Counter(columns).items() if count > 1):
        raise ConfigError(
            f"a field's array and something else would both be the column {', '.join(twice)}. Nothing "
            "was written. Leave the field out, or export to webdataset."
        )


def facts_of(row: ClipRow, stored: torch.Tensor) -> dict[str, Any]:
    """Return what is said of a clip."""
    return {
        "key": row.key,
        "source": row.source,
        "caption": row.caption,
        "bucket": row.bucket,
        "start": row.start,
        "fps": row.fps,
        "start_s": row.start_s,
        "end_s": row.end_s,
        "shape": list(stored.shape),
        "dtype": str(stored.dtype).removeprefix("torch."),
    }


def record_of(
    storage: Storage, path: str, facts: Mapping[str, Any], load: Any, place: Any
) -> Record:
    """Return a clip that facts say something of. load: takes the place, and returns the bytes.

    Raises CorpusError for facts that make no sense.
    """
    try:
        shape, dtype = tuple(int(side) for side in facts["shape"]), str(facts["dtype"])
        num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
        return Record(
            key=str(facts["key"]),
            source=str(facts["source"]),
            path=path,
            bucket=Bucket.parse(str(facts["bucket"])),
            shape=shape,
            dtype=dtype,
            load=partial(_load, storage, path, load, place, dtype, shape, num_bytes),
            caption=None if facts.get("caption") is None else str(facts["caption"]),
            start=int(facts.get("start") or 0),
            fps=_number(facts, "fps"),
            start_s=_number(facts, "start_s"),
            end_s=_number(facts, "end_s"),
        )
    except OTHER_HEADER as error:
        raise refuse(
            storage, path, f"has a clip of which it does not say all: {fault_of(error)}"
        ) from None


def _number(facts: Mapping[str, Any], name: str) -> float | None:
    return None if facts.get(name) is None else float(facts[name])


def _load(
    storage: Storage,
    path: str,
    load: Any,
    place: Any,
    dtype: str,
    shape: tuple[int, ...],
    num_bytes: int,
) -> torch.Tensor:
    with read_whole(storage, path, OTHER_HEADER, _unreadable):
        data = load(place)
    if not isinstance(data, bytes) or len(data) != num_bytes:
        raise refuse(storage, path, f"has a clip whose bytes are not {list(shape)} of {dtype}")
    return tensor_of(data, dtype, shape)


def _unreadable(error: Exception) -> str:
    return f"has a clip that cannot be read: {fault_of(error)}"


def found_in(
    storage: Storage,
    spec: LatentSpec,
    layout: str,
    records: Sequence[Record],
    beside: tuple[str, ...] = (),
) -> Found:
    """Return what a folder holds; see `Found`. Raises ConfigError if it says that another model made it."""
    try:
        said = LatentSpec.from_json(parse_json(storage.read(SPEC)))
    except FileNotFoundError:
        raise ConfigError(
            f"{redact(storage.url)}: there is no {SPEC}, so what the latents are is unknown. Nothing was "
            f"imported. Clips of the layout {layout} are {LOOKS_FOR[layout]}. Check path and layout; "
            f"an export writes {SPEC} last: if it was stopped, run the export again."
        ) from None
    except OTHER_HEADER as error:
        raise refuse(
            storage, SPEC, f"does not say what the latents are: {fault_of(error)}"
        ) from None
    names = ("model_class", "channels", "stride", "normaliser", "weights_sha256")
    if differ := [name for name in names if getattr(said, name) != getattr(spec, name)]:
        raise ConfigError(
            f"the latents are of another encoder than that of --like: {', '.join(differ[:NAMED])} differ. "
            "Nothing was imported."
        )
    return Found(
        layout=layout, stored=said.stored, normalised=False, records=records, beside=beside
    )
