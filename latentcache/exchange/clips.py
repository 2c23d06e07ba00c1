"""The clips of a cache that are given away: what each is, and its latents. Reads only.

Axes: C channels, t h w of the latent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch

from latentcache.core.dtypes import torch_dtype
from latentcache.core.records import Bucket
from latentcache.core.units import NAMED, some_of
from latentcache.corpus.containers import is_media
from latentcache.errors import ConfigError, did_you_mean
from latentcache.reading.cache import Cache
from latentcache.storage.urls import without_query

#: What stands for the unknown suffix of a source's file whose stem itself ends as a file's name does.
_SUFFIX = ".mp4"
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
    return some_of([repr(name) for name in dict.fromkeys(names)])


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
            f"the latents are those of {found}, and an export for {trainer} is of those of "
            f"{' or '.join(classes)}. Nothing was written. Make a cache with one of these, or export to "
            "webdataset, mds or hf, which hold the latents of any model."
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
