"""A batch of a loader with a view: of each clip only what the view picks, as what the view makes.

Everything is computed on the CPU, in the threads that read, and sent to the device as a whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from latentcache.core.records import Bucket
from latentcache.errors import ConfigError
from latentcache.reading.loader.arrange import arranged
from latentcache.reading.loader.batch_memory import Recycler
from latentcache.reading.loader.batches import Read, ReadBatch
from latentcache.reading.loader.fields import FieldsOfBatch, LoaderFields
from latentcache.reading.loader.selection import Rows
from latentcache.reading.loader.targets import Arriving, CpuTarget, Target
from latentcache.reading.per_frame import stack_per_frame
from latentcache.reading.picks import picked_shape
from latentcache.reading.shard_rows import ShardRows
from latentcache.reading.views.adapt import AnyView, latent_frames, record_of
from latentcache.reading.views.per_frame import pixel_values
from latentcache.reading.views.protocol import Pick, Record


class ViewedBatch(ReadBatch):
    """A batch to read whose samples are made by a view."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self._plan.view is not None
        self._view: AnyView = self._plan.view
        self._made: dict[int, tuple[Pick, Mapping[str, Any]]] = {}
        num, whole = len(self._batch.rows), math.prod(self._shape)
        share = self._view.most_frames(latent_frames(self._shape)) / latent_frames(self._shape)
        dtypes = (self._target.transform.stored_dtype, self._target.transform.dtype)
        # A clip is read whole, and its part is held as it is stored and as it is made.
        self.num_bytes += int(num * whole * sum(dtype.itemsize for dtype in dtypes) * share)

    def read(self, shard: int, found: Rows) -> None:
        """Read what the view picks of rows of one shard, and make the samples of it."""
        cache, transform = self._plan.cache, self._target.transform
        table = cache.rows(self._name, shard)
        records = self._records(table, found)
        picks = [
            self._view.pick(record, visit)
            for record, visit in zip(records, found.visits, strict=True)
        ]
        frames = [pick.frames for pick in picks]
        stored = [
            torch.empty(picked_shape(self._shape, some), dtype=transform.stored_dtype)
            for some in frames
        ]
        read = self._damage.read(
            cache, self._name, shard, found.rows, stored, check=self._check, picks=frames
        )
        keys = [record.key for record in records]
        if (fields := self._fields_memory()) is not None:  # before latents change in their place
            rows = [table.chunks[row].row for row in found.rows]
            fields.read(shard, rows, found.where, keys, found.visits, stored, check=self._check)
        for n in read:
            latents = transform.of_frames(
                stored[n], frames[n], self._shape, keys[n], found.visits[n]
            )
            made = self._view.make(records[n], latents, picks[n])
            self._made[found.where[n]] = picks[n], made
        if read:
            places = [found.rows[n] for n in read], [found.where[n] for n in read]
            self._found.append((table, *places))

    def _records(self, table: ShardRows, found: Rows) -> list[Record]:
        keys = table.column("key", found.rows)
        return [
            record_of(
                key,
                self._name,
                number,
                self._shape,
                self._plan.cache.spec,
                functools.partial(_value, table, row),
            )
            for key, row, number in zip(keys, found.rows, found.numbers, strict=True)
        ]

    def _fields_target(self) -> Target:
        """Fields are cut on the CPU before they are sent."""
        return CpuTarget(self._target.transform, Recycler(0))

    def finish(self) -> Read:
        """Return the batch, whose tensors may still be on their way."""
        num, sound = len(self._batch.rows), sorted(self._made)
        made = [self._made[n][1] for n in sound]
        columns = {name: [values[n] for n in sound] for name, values in self._columns(num).items()}
        columns.update(self._cut_columns(columns, [self._made[n][0] for n in sound]))
        tensors = {**self._cut_fields([self._made[n][0] for n in sound]), **self._stacked(made)}
        sent = {
            name: self._target.send_plain(value) if isinstance(value, torch.Tensor) else value
            for name, value in tensors.items()
        }
        number = {} if self._cache is None else {"cache": self._cache}
        whole = {**columns, **sent, "bucket": self._name, **number}
        return Read(
            batch=whole if sound else {},
            num_samples=len(sound),
            num_bytes=len(sound) * self._plan.shards[self._batch.bucket].sample_bytes,
            num_skipped=num - len(sound),
        )

    def _stacked(self, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what the view made of all samples, each name's tensors as one."""
        names = list(made[0]) if made else []
        for sample in made:
            if list(sample) != names:
                raise ConfigError(
                    f"view {self._view.name}: make gave {', '.join(names)} for one sample, and "
                    f"{', '.join(sample)} for another. Give the same names in the same order."
                )
        found = {name: self._stack(name, [sample[name] for sample in made]) for name in names}
        if self._layout is not None and isinstance(found.get("latents"), torch.Tensor):
            found["latents"] = arranged(found["latents"], self._layout).contiguous()
        return found

    def _stack(self, name: str, values: list[Any]) -> Any:
        if not all(isinstance(value, torch.Tensor) for value in values):
            return values
        kinds = {(value.dtype, tuple(value.shape)) for value in values}
        if len(kinds) > 1:
            raise ConfigError(
                f"view {self._view.name}: make gave {name} as "
                + " and ".join(f"{dtype} {list(shape)}" for dtype, shape in sorted(kinds, key=str))
                + ", which make no batch. Fill them up to one shape, or give lists."
            )
        shape, dtype = (len(values), *values[0].shape), values[0].dtype
        return torch.stack(values, out=self._target.empty(shape, dtype))

    def _cut_columns(self, columns: Mapping[str, Any], picks: Sequence[Pick]) -> dict[str, Any]:
        """Return the values per frame at the pixel frames of what was picked, which make one tensor."""
        spec, num_frames = self._plan.cache.spec, Bucket.parse(self._name).frames
        names = {name for table, _, _ in self._found for name in table.per_frame} & columns.keys()
        return {
            name: stack_per_frame(
                [
                    pixel_values(values, pick.frames, spec, num_frames)
                    for values, pick in zip(columns[name], picks, strict=True)
                ]
            )
            for name in names
        }

    def _cut_fields(self, picks: Sequence[Pick]) -> dict[str, Any]:
        if (memory := self._fields_memory()) is None or self._plan.fields is None:
            return {}
        return cut_fields(self._plan.fields, memory, picks)


def cut_fields(
    fields: LoaderFields, memory: FieldsOfBatch, picks: Sequence[Pick]
) -> dict[str, Any]:
    """Return a batch's fields; those with an entry per latent frame are cut as the picks say."""
    found = {
        name: value.take() if isinstance(value, Arriving) else value
        for name, value in memory.finish().items()
    }
    for reader in fields.readers:
        for key, array in reader.arrays.items():
            if array.rule in ("latents", "levels") and array.shape[1] == 0:
                samples = zip(found[key], picks, strict=True)
                found[key] = torch.stack([_cut(sample, pick.frames) for sample, pick in samples])
    return found


def check_fields(fields: Sequence[LoaderFields | None]) -> None:
    """Raise ConfigError for fields that a loader with a view cannot give."""
    for some in fields:
        for reader in some.readers if some else []:
            if reader.is_view:
                raise ConfigError(
                    f"fields: {reader.name} is a part of each clip's latents, and a view reads other "
                    "parts. Leave the field out, and have the view pick that part."
                )


def _cut(sample: torch.Tensor, frames: Sequence[int] | None) -> torch.Tensor:
    return sample if frames is None else sample[:, list(frames)]


def _value(table: ShardRows, row: int, name: str) -> Any:
    return table.column(name, [row])[0]
