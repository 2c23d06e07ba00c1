"""A batch of a loader with a view: of each clip only what the view picks, as what the view makes.

Everything is computed on the CPU, in the threads that read, and sent to the device as a whole.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from latentcache.core.fields import FieldArray
from latentcache.errors import ConfigError
from latentcache.reading.loader.arrange import arranged
from latentcache.reading.loader.batch_memory import Recycler
from latentcache.reading.loader.batches import Read, ReadBatch
from latentcache.reading.loader.fields import FieldsOfBatch, LoaderFields
from latentcache.reading.loader.runs import Place
from latentcache.reading.loader.selection import Rows, ShardMap
from latentcache.reading.loader.targets import Arriving, CpuTarget, Target
from latentcache.reading.per_frame import stack_per_frame
from latentcache.reading.picks import picked_shape
from latentcache.reading.shard_rows import ShardRows
from latentcache.reading.views.adapt import AnyView, latent_frames, record_of
from latentcache.reading.views.per_frame import picked_values
from latentcache.reading.views.protocol import Pick, Record
from latentcache.reading.views.starts import by_clip


@dataclass(frozen=True, eq=False)
class _Part:
    """Latent frames of one clip that a sample has. frames: None for all. visit: see `selection.Rows`."""

    place: Place
    key: str
    visit: int
    frames: Sequence[int] | None


class _Made(NamedTuple):
    record: Record
    pick: Pick
    tensors: Mapping[str, Any]


def _parts(record: Record, pick: Pick, places: Sequence[Place], visit: int) -> list[_Part]:
    """Return what a sample has of its clip, and of those that follow. places: of these clips."""
    if pick.frames is None or not record.following:
        return [_Part(places[0], record.key, visit, pick.frames)]
    clips = (record, *record.following)
    return [
        _Part(places[clip], clips[clip].key, visit, frames)
        for clip, frames in by_clip(pick.frames, record.num_frames)
    ]


class ViewedBatch(ReadBatch):
    """A batch to read whose samples are made by a view."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        assert self._plan.view is not None
        self._view: AnyView = self._plan.view
        self._made: dict[int, _Made] = {}
        num, whole, run = len(self._batch.rows), math.prod(self._shape), self._plan.run
        num_frames = latent_frames(self._shape)
        num_next = run.num_next(num_frames) if run else 0
        share = self._view.most_frames(num_frames, num_next) / num_frames
        dtypes = (self._target.transform.stored_dtype, self._target.transform.dtype)
        # A clip is read whole, and its part is held as it is stored and as it is made.
        self.num_bytes += int(num * whole * sum(dtype.itemsize for dtype in dtypes) * share)

    def read(self, shard: int, found: Rows) -> None:
        """Read what the view picks of rows of one shard, and make the samples of it."""
        found = self._readable(shard, found)
        if not found.rows:
            return
        table = self._plan.cache.rows(self._name, shard)
        records = self._records(table, found)
        picks = [
            self._view.pick(record, visit)
            for record, visit in zip(records, found.visits, strict=True)
        ]
        parts = [
            _parts(record, pick, [Place(shard, row), *following], visit)
            for record, pick, row, following, visit in zip(
                records, picks, found.rows, found.following, found.visits, strict=True
            )
        ]
        if (fields := self._fields_memory()) is not None:
            rows, keys = [table.chunks[row].row for row in found.rows], [r.key for r in records]
            fields.read(shard, rows, found.where, keys, found.visits, (), check=self._check)
        latents = self._latents(parts)
        read = [n for n in range(len(records)) if n in latents]
        for n in read:
            made = self._view.make(records[n], latents[n], picks[n])
            self._made[found.where[n]] = _Made(records[n], picks[n], made)
        if read:
            places = [found.rows[n] for n in read], [found.where[n] for n in read]
            self._found.append((table, *places))

    def _readable(self, shard: int, found: Rows) -> Rows:
        """Return the rows whose own sample table, and those of the clips that follow, can be read."""
        shards = [
            frozenset((shard, *(place.shard for place in following)))
            for following in found.following
        ]
        sound = {
            some: self._damage.tables(self._plan.cache, self._name, sorted(some))
            for some in set(shards)
        }
        keep = [n for n, each in enumerate(shards) if sound[each]]
        return Rows(
            rows=[found.rows[n] for n in keep],
            where=[found.where[n] for n in keep],
            numbers=[found.numbers[n] for n in keep],
            visits=[found.visits[n] for n in keep],
            following=[found.following[n] for n in keep],
        )

    def _latents(self, samples: Sequence[Sequence[_Part]]) -> dict[int, torch.Tensor]:
        """Return the latents of samples, by their number, whose parts could all be read."""
        by_shard: dict[int, list[_Part]] = {}
        for part in itertools.chain.from_iterable(samples):
            by_shard.setdefault(part.place.shard, []).append(part)
        made: dict[int, torch.Tensor] = {}  # by the part's id
        for shard, parts in by_shard.items():
            made.update(self._of_shard(shard, parts))
        found: dict[int, torch.Tensor] = {}
        for n, of_sample in enumerate(samples):
            if all(id(part) in made for part in of_sample):
                pieces = [made[id(part)] for part in of_sample]
                whole = len(pieces) == 1
                found[n] = pieces[0] if whole else torch.cat(pieces, dim=pieces[0].ndim - 3)
        return found

    def _of_shard(self, shard: int, parts: Sequence[_Part]) -> dict[int, torch.Tensor]:
        """Return the latents of parts of one shard, by their ids; damaged ones are left out."""
        transform = self._target.transform
        frames = [part.frames for part in parts]
        stored = [
            torch.empty(picked_shape(self._shape, some), dtype=transform.stored_dtype)
            for some in frames
        ]
        rows, name = [part.place.row for part in parts], self._name
        read = self._damage.read(
            self._plan.cache, name, shard, rows, stored, check=self._check, picks=frames
        )
        return {
            id(parts[n]): transform.of_frames(
                stored[n], frames[n], self._shape, parts[n].key, parts[n].visit
            )
            for n in read
        }

    def _records(self, table: ShardRows, found: Rows) -> list[Record]:
        return [
            self._record(table, row, number, following)
            for row, number, following in zip(
                found.rows, found.numbers, found.following, strict=True
            )
        ]

    def _record(
        self, table: ShardRows, row: int, number: int = 0, following: Sequence[Place] = ()
    ) -> Record:
        cache = self._plan.cache
        return record_of(
            _value(table, row, "key"),
            self._name,
            number,
            self._shape,
            cache.spec,
            functools.partial(_value, table, row),
            tuple(self._record(cache.rows(self._name, n), row) for n, row in following),
            self._plan.run,
            cache.manifest.config.get("clips", {}).get("sampling", "nearest"),
        )

    def _fields_target(self) -> Target:
        """Fields are cut on the CPU before they are sent."""
        return CpuTarget(self._target.transform, Recycler(0))

    def finish(self) -> Read:
        """Return the batch, whose tensors may still be on their way."""
        num, sound = len(self._batch.rows), sorted(self._made)
        made = [self._made[n] for n in sound]
        columns = {name: [values[n] for n in sound] for name, values in self._columns(num).items()}
        columns.update({**self._cut_columns(columns, made), **self._sizes(columns)})
        fields = self._cut_fields([sample.pick for sample in made])
        tensors = {**fields, **self._stacked([sample.tensors for sample in made])}
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

    def _cut_columns(self, columns: Mapping[str, Any], made: Sequence[_Made]) -> dict[str, Any]:
        """Return the values per frame at the pixel frames of what was picked, which make one tensor."""
        names = {name for table, _, _ in self._found for name in table.per_frame} & columns.keys()
        values = {
            name: stack_per_frame(
                [picked_values(sample.record, name, sample.pick) for sample in made]
            )
            for name in names
        }
        return {
            name: self._target.send_plain(value) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
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
            if _per_latent(array):
                samples = zip(found[key], picks, strict=True)
                found[key] = torch.stack([_cut(sample, pick.frames) for sample, pick in samples])
    return found


def check_fields(maps: Sequence[ShardMap]) -> None:
    """Raise ConfigError for fields that a loader with a view cannot give."""
    for some in maps:
        for reader in some.fields.readers if some.fields else []:
            if some.run and some.run.goes_on and any(map(_per_latent, reader.arrays.values())):
                raise ConfigError(
                    f"fields: {reader.name} has an entry per latent frame, and windows that go on in the "
                    "next clip have this field of their first clip only. Leave the field out, or give "
                    "run_on=False."
                )
            if reader.is_view:
                raise ConfigError(
                    f"fields: {reader.name} is a part of each clip's latents, and a view reads other "
                    "parts. Leave the field out, and have the view pick that part."
                )


def _per_latent(array: FieldArray) -> bool:
    if array.rule == "trajectory":
        return True
    return array.rule in ("latents", "levels") and array.shape[1] == 0


def _cut(sample: torch.Tensor, frames: Sequence[int] | None) -> torch.Tensor:
    return sample if frames is None else sample[..., list(frames), :, :]


def _value(table: ShardRows, row: int, name: str) -> Any:
    return table.column(name, [row])[0]
