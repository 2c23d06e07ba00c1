"""The clips of a cache that are given away: what each is, its latents, its text. Reads only.

Axes: C channels, t h w of the latent; L tokens, D their width.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch

from latentcache.config.fields import stored_field
from latentcache.config.files import load_stored_config
from latentcache.core.dtypes import torch_dtype
from latentcache.core.records import Bucket, ShardId
from latentcache.corpus.containers import is_media
from latentcache.errors import ConfigError, did_you_mean
from latentcache.format.changes import read_changes
from latentcache.planning.fields.planned import PlannedField
from latentcache.planning.planned import PlannedCache
from latentcache.reading.cache import Cache
from latentcache.reading.fields import FieldReader
from latentcache.storage.urls import redact, without_query

#: What stands for the unknown suffix of a source's file whose stem itself ends as a file's name does.
_SUFFIX = ".mp4"
#: Names that an error gives.
NAMED = 5
_COLUMNS = (
    *("key", "source", "caption", "bucket", "shard", "row"),
    *("start", "frames", "fps", "start_s", "end_s", "height", "width"),
)


@dataclass(frozen=True, kw_only=True)
class ClipRow:
    """An ok clip. number: among the ok clips of its cache; start, frames: sampled frames; see `Clip`."""

    number: int
    key: str
    source: str
    caption: str | None
    bucket: str
    shard: int
    row: int
    start: int
    frames: int
    fps: float | None
    start_s: float | None
    end_s: float | None
    height: int
    width: int

    @property
    def stem(self) -> str:
        """The name of the source's file without folders and suffix: see `stem_of`."""
        return stem_of(self.path.name)

    @property
    def path(self) -> PurePosixPath:
        """The source's name as a path."""
        return PurePosixPath(without_query(self.source))


def stem_of(name: str) -> str:
    """Return a file's name without the suffix of a video or an image.

    Not without any other, which is none: a source that was imported, or is a key, may be called `scene.1`.
    """
    return PurePosixPath(name).stem if is_media(name) else name


def source_of(stem: str) -> str:
    """Return the name of a source of which only the stem is known: `stem_of` gives it again."""
    return f"{stem}{_SUFFIX}" if is_media(stem) else stem


def clip_rows(cache: Cache, bucket: str | None = None) -> list[ClipRow]:
    """Return the ok clips of a cache, or of one bucket, in its order. Raises ConfigError for no clip."""
    if bucket is not None and bucket not in cache.buckets:
        raise ConfigError(
            f"--bucket {bucket}: the cache has no such "
            f"bucket.{did_you_mean(bucket, cache.buckets)} It has: "
            f"{', '.join(cache.buckets)}"
        )
    table = cache.table(_COLUMNS_AND_STATUS)
    table = table.filter(pc.equal(table["status"], "ok")).select(list(_COLUMNS))
    numbers = pa.array(range(table.num_rows), pa.int64())
    table = table.append_column("number", numbers)
    if bucket is not None:
        table = table.filter(pc.equal(table["bucket"], bucket))
    rows = [ClipRow(**row) for row in table.to_pylist()]
    if not rows:
        raise ConfigError("the cache has no clip to export. Nothing was written.")
    return rows


_COLUMNS_AND_STATUS = [*_COLUMNS, "status"]


def named(names: Iterable[str]) -> str:
    """Return the first names of some, for messages."""
    found = list(dict.fromkeys(names))
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return ", ".join(map(repr, found[:NAMED])) + more


def refuse_twice(rows: Sequence[ClipRow], names: Sequence[Hashable], consequence: str) -> None:
    """Raise ConfigError if clips would have one name, and so one file."""
    counts = Counter(names)
    twice = [row.key for row, name in zip(rows, names, strict=True) if counts[name] > 1]
    if twice:
        raise ConfigError(
            f"{len(twice)} clips would have the name of another one: {named(twice)}. {consequence} Nothing "
            "was written."
        )


def one_bucket(rows: Sequence[ClipRow], why: str) -> Bucket:
    """Return the bucket of all clips. Raises ConfigError if there are several."""
    names = sorted({row.bucket for row in rows})
    if len(names) > 1:
        raise ConfigError(
            f"the cache has clips of {len(names)} buckets ({', '.join(names[:NAMED])}), and "
            f"{why}. Nothing was "
            f"written. Name one: --bucket {names[0]}"
        )
    return Bucket.parse(names[0])


def expect_class(cache: Cache, trainer: str, classes: Collection[str]) -> None:
    """Raise ConfigError unless the latents are of a model that a layout is known for."""
    found = cache.spec.model_class
    if found not in classes:
        raise ConfigError(
            f"the latents are those of {found}, and {trainer} is known to read those of "
            f"{', '.join(classes)}: it would train on numbers that its model does not know. Nothing was "
            "written."
        )


def expect_stored(cache: Cache, trainer: str, wanted: Literal["moments", "mean", "sample"]) -> None:
    """Raise ConfigError unless the cache has what a trainer reads; moments give a mean and a sample."""
    stored = cache.spec.stored
    if stored not in ("moments", wanted):
        one = {"moments": "moments", "mean": "the mean", "sample": "a sample"}
        raise ConfigError(
            f"the cache stores {stored}, and {trainer} reads {one[wanted]} of each posterior. Nothing was "
            f"written. Make a cache with encoder.store: {wanted}, or with moments, which serve "
            f"every trainer."
        )


def converted(values: torch.Tensor, dtype: str, key: str, what: str = "latents") -> torch.Tensor:
    """Return a clip's values in a data type. Raises ConfigError for numbers that it does not hold.

    Every layout converts here: beyond its largest number a type has infinity, and says nothing.
    """
    found = values.to(torch_dtype(dtype))
    if not torch.isfinite(found).all():
        raise beyond(values, dtype, key, what)
    return found


def beyond(values: torch.Tensor, dtype: str, key: str, what: str = "latents") -> ConfigError:
    """Return the error of a clip's values that are not finite in a data type."""
    if not torch.isfinite(values).all():
        return ConfigError(
            f"the {what} of {named([key])} have NaN or infinity. Their file was not written, so the "
            "export is not whole. See what latentcache verify says of the cache."
        )
    return ConfigError(
        f"the {what} of {named([key])} reach {values.abs().max().item():,.5g}, and {dtype} holds no number "
        f"beyond {torch.finfo(torch_dtype(dtype)).max:,.5g}. Their file was not written, so the export is "
        "not whole. Export to another folder with --dtype bfloat16 or float32."
    )


class Latents:
    """Latents of clips as a trainer wants them, read in parallel by whoever asks."""

    def __init__(
        self,
        cache: Cache,
        *,
        posterior: Literal["mode", "sample"] = "mode",
        normalise: bool,
        dtype: str,
        seed: int = 0,
    ) -> None:
        self._dtype = dtype
        self._dataset = cache.dataset(
            posterior=posterior, normalise=normalise, dtype="float32", seed=seed
        )

    def __call__(self, row: ClipRow) -> torch.Tensor:
        """Return one clip's latents [C, t, h, w], or its ids."""
        return self.of([row])[0]

    def of(self, rows: Sequence[ClipRow]) -> list[torch.Tensor]:
        """Return the latents of several clips. Raises ConfigError where their type does not hold them."""
        found = self._dataset.__getitems__([row.number for row in rows])
        return [
            converted(sample["latents"], self._dtype, row.key)
            for row, sample in zip(rows, found, strict=True)
        ]


class Texts:
    """A field of text states, clip by clip.

    Raises ConfigError where clips have none, or texts of more tokens than at_most.
    """

    def __init__(
        self, cache: Cache, name: str, rows: Sequence[ClipRow], at_most: int | None = None
    ) -> None:
        self._field = cache.field(name)
        self.name = name
        self.array = self._field.field.arrays[0]
        if self._field.field.kind == "joint":
            raise ConfigError(
                f"--text {name}: the field holds states of a text with an image (joint), which none of the "
                "trainers' models of this layout takes for a text's. Nothing was written. Name a field of "
                f"kind text; or export to webdataset, mds or hf, which take this one: --field {name}"
            )
        if self._field.field.kind != "text" or len(self.array.shape) != 2:
            raise ConfigError(
                f"--text {name}: the field is of kind {self._field.field.kind}, and text states [L, D] are "
                "needed. Nothing was written. Name a field of kind text."
            )
        lacking = _lacking(self._field, rows)
        if lacking:
            raise ConfigError(
                f"--text {name}: {len(lacking)} clips have no text: {named(lacking)}. Nothing "
                f"was written. Add "
                "captions to the corpus, run precompute, then latentcache add-field --update."
            )
        refuse_stale(cache, self._field, rows)
        long = [] if at_most is None else [r.key for r in rows if self.num_tokens(r) > at_most]
        if long:
            raise ConfigError(
                f"--text {name}: {len(long)} clips have texts of more than the {at_most} tokens that the "
                f"trainer takes: {named(long)}. Nothing was written. Add a field with length: {at_most}."
            )

    def num_tokens(self, row: ClipRow) -> int:
        """Return the number of the text's own tokens, without reading its states."""
        tokens = self._field.rows(row.bucket, row.shard)[row.row].pick(0).tokens[0]
        return self.array.shape[0] if tokens is None else tokens

    def unpadded(self, row: ClipRow, dtype: str | None = None) -> torch.Tensor:
        """Return the states of the text's own tokens [n, D], in the field's data type or another."""
        states, num = self._read(row)
        own = states[len(states) - num :] if self.array.side == "left" else states[:num]
        return self._converted(own, row, dtype)

    def padded(self, row: ClipRow, length: int, dtype: str | None = None) -> torch.Tensor:
        """Return the states of the text's own tokens, at most `length`, then zeros [length, D]."""
        states = self.unpadded(row, dtype)
        return torch.cat([states, states.new_zeros(length - len(states), states.shape[1])])

    def stored(self, row: ClipRow, dtype: str | None = None) -> torch.Tensor:
        """Return the states as they are stored [L, D], padding included."""
        return self._converted(self._read(row)[0], row, dtype)

    def _converted(self, states: torch.Tensor, row: ClipRow, dtype: str | None) -> torch.Tensor:
        if dtype is None:
            return states
        return converted(states, dtype, row.key, f"states {self.name}")

    def _read(self, row: ClipRow) -> tuple[torch.Tensor, int]:
        found = self._field.sample(row.bucket, row.shard, row.row)
        states: torch.Tensor = found[self.name]
        return states, int(found.get(f"{self.name}_tokens", len(states)))


def refuse_stale(cache: Cache, field: FieldReader, rows: Sequence[ClipRow]) -> None:
    """Raise ConfigError for clips whose texts, or paths, are others now than those that a field holds."""
    stale = _stale_rows(cache, field)
    keys = [row.key for row in rows if row.row in stale.get(ShardId(row.bucket, row.shard), ())]
    if keys:
        raise ConfigError(
            f"{len(keys)} clips have other texts or files now than those that the field {field.name} is "
            f"of: {named(keys)}. Its values would stand beside captions that are not theirs. Nothing was "
            "written. Encode the new ones: latentcache resume "
            f"{shlex.quote(redact(cache.storage.url))} --field {field.name}"
        )


def _stale_rows(cache: Cache, field: FieldReader) -> Mapping[ShardId, Collection[int]]:
    """Return rows whose texts have changed and are not encoded yet, whether that is planned or not."""
    changes = read_changes(cache.storage, cache.manifest)
    if field.is_view or field.field.kind == "given" or not changes.columns:
        return {}
    kinds = [str(cache.manifest.config["encoder"]["kind"])]
    config = load_stored_config(
        cache.manifest.config, url=cache.storage.url, storage_options={}, allowed_encoders=kinds
    )
    planned = PlannedCache(config=config, manifest=cache.manifest, storage=cache.storage)
    settings = stored_field(field.name, field.field.settings)
    of = PlannedField(cache=planned, field=field.field, config=settings)
    stale: dict[ShardId, frozenset[int]] = of.changed_rows()
    for shard, versions in of.missing.items():
        for rows in (v.rows for v in versions if v.kind == "update" and v.rows is not None):
            stale[shard] = stale.get(shard, frozenset()) | rows[shard]
    return stale


def _lacking(field: FieldReader, rows: Sequence[ClipRow]) -> list[str]:
    """Return the keys of clips that a field has nothing of."""
    last: dict[tuple[str, int], int] = {}
    for row in rows:
        place = (row.bucket, row.shard)
        last[place] = max(last.get(place, 0), row.row + 1)
    lacks: Mapping[tuple[str, int], frozenset[int]] = {
        place: field.lacks(*place, num_rows) for place, num_rows in last.items()
    }
    return [row.key for row in rows if row.row in lacks[row.bucket, row.shard]]
