"""An array of a field that is read step by step, such as a trajectory from clean to noisy."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import overload

import torch

from latentcache.core.dtypes import torch_dtype
from latentcache.core.fields import BY_STEP
from latentcache.errors import ConfigError, did_you_mean
from latentcache.reading.fields import Entry, FieldReader


class Steps(Sequence[torch.Tensor]):
    """The steps of a clip's array. Each is read when it is asked for, and nothing is kept.

    `steps[i]` is step i, without its axis, as it is stored; a slice is one tensor [n, ...], of which near
    steps come in one request. `reversed(steps)` reads from the last one on.
    """

    def __init__(self, field: FieldReader, key: str, bucket: str, shard: int, entry: Entry) -> None:
        self._field, self._key, self._place, self._entry = field, key, (bucket, shard), entry
        self._shape = field.shape(field.arrays[key], bucket)
        self._dtype = torch_dtype(field.arrays[key].dtype)

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""
        return self._shape

    @overload  # type: ignore[override]  # a slice is one tensor
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> torch.Tensor: ...

    def __getitem__(self, index: int | slice) -> torch.Tensor:
        """Return a step, or those of a slice. Raises IndexError, CorruptionError."""
        if isinstance(index, slice):
            return self._read(range(len(self))[index])
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"step {number} of {len(self)}")
        return self._read([number % len(self)])[0]

    def _read(self, steps: Sequence[int]) -> torch.Tensor:
        out = torch.empty((len(steps), *self._shape[1:]), dtype=self._dtype)
        if len(steps):
            self._field.read_steps(*self._place, self._entry, self._key, steps, out)
        return out


def steps_of(field: FieldReader, key: str, place: tuple[str, int, int]) -> Steps:
    """Return the steps of an array by its key in batches. place: bucket, shard and row of the clip.

    Raises ConfigError if there is no such array, or if it has no steps; KeyError if the clip has none.
    """
    known = {name for name, array in field.arrays.items() if array.rule in BY_STEP}
    if key not in known:
        raise ConfigError(
            f"steps: the field {field.name} has no array {key!r} that is read by steps."
            f"{did_you_mean(key, known)} It has: {', '.join(sorted(known)) or 'none'}."
        )
    bucket, shard, row = place
    found = field.current(bucket, shard).get(row)
    if found is None:
        raise KeyError(key)
    return Steps(field, key, bucket, shard, found.pick(0))
