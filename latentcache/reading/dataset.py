"""A cache as a map-style dataset: samples by number or key, with latents as a loader gives them.

Axes: B batch, C channels, t h w of the latent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from latentcache.core.arguments import list_of_names, sample_number, whole_number, yes_or_no
from latentcache.core.dtypes import AnyDtype, Array, as_numpy
from latentcache.errors import ConfigError
from latentcache.reading.cache import Cache
from latentcache.reading.handover import check_open_files
from latentcache.reading.inherited import leave_inherited
from latentcache.reading.loader.fields import FieldOptions, LoaderFields, condition, hiding
from latentcache.reading.loader.filters import Where
from latentcache.reading.loader.option_checks import check_batches, check_length, check_ranks
from latentcache.reading.loader.selection import ShardMap, prefix_cuts
from latentcache.reading.loader.transform import Posterior, Transform
from latentcache.reading.order.epoch import Epoch, Order, Uneven, places
from latentcache.reading.per_frame import stack_per_frame
from latentcache.reading.sample import Sample
from latentcache.reading.text_choice import SampleTexts


class LatentDataset(Dataset[dict[str, Any]]):
    """Samples of a cache by number, key or slice, for torch's DataLoader. Picklable.

    A sample: `latents` [C, t, h, w] (ids: [t, h, w]); `key`, `caption`, `source`, `bucket`, `start_s`,
    `end_s`, and the columns kept from the corpus. The latents equal those of a `LatentLoader` with the
    same posterior, normalise, dtype, frames, seed and epoch, bit for bit.

    posterior: for stored moments, "sample" draws with a seed of (seed, epoch, key), "mode" takes the mean.
    normalise: apply the encoder's (z - shift) * scale. dtype: omitted, the stored one. where: a condition
    that chooses samples, as for a loader; numbers then count the chosen ones. frames: cut longer clips to
    their first frames. numpy: give numpy arrays; their bfloat16 is that of ml_dtypes. fields: those
    without which no clip comes, by name, such as a text that is not encoded yet.

    Raises ConfigError for arguments that make no sense.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        posterior: Posterior = "sample",
        normalise: bool = True,
        dtype: AnyDtype | None = None,
        seed: int = 0,
        where: Where | None = None,
        frames: int | None = None,
        numpy: bool = False,
        fields: Sequence[str] = (),
    ) -> None:
        self.cache = cache
        self._numpy = yes_or_no("numpy", numpy)
        self._frames = None if frames is None else whole_number("frames", frames, 1)
        self._field_options = FieldOptions(normalise=normalise, dtype=dtype)
        self._transform = Transform(
            cache.spec,
            posterior=posterior,
            normalise=normalise,
            dtype=dtype,
            seed=whole_number("seed", seed, 0),
            cuts=prefix_cuts(cache, self._frames),
        )
        needed = FieldOptions(names=tuple(list_of_names("fields", fields)))
        self._texts = SampleTexts(cache, needed.names)
        of_fields = LoaderFields.of(cache, needed) if needed.names else None
        self._map: ShardMap | None = None
        if where is not None or of_fields:
            self._map = ShardMap(cache, where, fields=of_fields)
        #: Numbers in the cache of the chosen samples; None for all.
        self._numbers = None if self._map is None else self._map.numbers()
        # Shared memory lets set_epoch reach the persistent workers of a DataLoader.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return f"LatentDataset({len(self):,} clips of {self.cache!r})"

    def __len__(self) -> int:
        return len(self.cache if self._numbers is None else self._numbers)

    def keys(self) -> list[str]:
        """Return the keys of all samples, by number."""
        keys = self.cache.keys()
        return keys if self._numbers is None else [keys[n] for n in self._numbers]

    @property
    def epoch(self) -> int:
        """The epoch that posterior samples are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that posterior samples are drawn for, in the workers of a DataLoader, too."""
        self._epoch.fill_(whole_number("epoch", epoch, 0))

    @overload
    def __getitem__(self, index: int | str) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | str | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Return a sample by its number or its key, or the samples of a slice. IndexError, KeyError."""
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        if isinstance(index, str):
            leave_inherited()
            return self._finished([self._number(index)])[0]
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several samples by number, in as few requests per shard as their places allow."""
        leave_inherited()
        numbers = [sample_number(index, len(self)) for index in indices]
        if self._numbers is not None:
            numbers = self._numbers[numbers].tolist()
        return self._finished(numbers)

    def _number(self, key: str) -> int:
        number = self.cache.number(key)
        if self._numbers is not None:
            at = int(np.searchsorted(self._numbers, number))
            if at == len(self._numbers) or self._numbers[at] != number:
                raise KeyError(
                    f"the clip {key!r} is not among those that `where`, or `fields`, chose"
                )
        return number

    def _finished(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Read samples by their numbers in the cache, and make latents of what is stored."""
        samples = self.cache.stored_samples(numbers)
        check_open_files()
        for number, sample in zip(numbers, samples, strict=True):
            latents = self._latents(sample["latents"], sample["key"])
            sample["latents"] = as_numpy(latents) if self._numpy else latents
            if isinstance(sample, Sample):
                finish = functools.partial(self._field, sample["bucket"])
                sample.finish_fields(finish, functools.partial(self._texts.read, number))
            for name in self.cache.per_frame_names:
                if (values := sample.get(name)) is not None:
                    values = values[: self._frames]
                    sample[name] = values.numpy() if self._numpy else values
        return samples

    def _field(self, bucket: str, read: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was read of a field as a loader gives it: latents normalised, after their mask."""
        name = next(iter(read)).partition(".")[0]
        reader, found = self.cache.field(name), dict(read)
        for key, array in reader.arrays.items():
            if array.rule == "levels" and key in found:
                found[key] = hiding(found[key], reader, self._field_options)
            if array.rule == "latents" and key in found:
                found[key] = condition(found[key][None], reader, bucket, self._field_options)[0]
        if self._numpy:
            return {k: as_numpy(v) if torch.is_tensor(v) else v for k, v in found.items()}
        return found

    def _latents(self, stored: torch.Tensor, key: str) -> torch.Tensor:
        transform, noise = self._transform, None
        work = torch.empty(transform.shape(tuple(stored.shape)), dtype=torch.float32)
        if transform.draws:
            noise = torch.empty_like(work)
            transform.draw(noise, key, self.epoch)
        return transform(stored, noise, work).to(transform.dtype).contiguous()

    def batch_sampler(
        self,
        batch_size: int = 8,
        *,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        uneven: Uneven = "drop",
        bucket_run: int = 1,
        pool_bytes: int = 4 << 30,
    ) -> BucketBatchSampler:
        """Return a batch sampler for torch's DataLoader whose batches are each of one bucket.

        The order is that of a `LatentLoader` with the same arguments. Raises ConfigError.
        """
        order = Order(
            seed=seed,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            pool_bytes=pool_bytes,
            bucket_run=bucket_run,
            uneven=uneven,
        )
        return BucketBatchSampler(self, order, rank, world_size)

    @property
    def map(self) -> ShardMap:
        """The samples as `order` sees them."""
        if self._map is None:
            self._map = ShardMap(self.cache)
        return self._map


class BucketBatchSampler(Sampler[list[int]]):
    """Lists of numbers of a dataset's samples; each list is a batch of one bucket.

    Call `set_epoch` before each epoch: another order, and other posterior samples.
    """

    def __init__(self, dataset: LatentDataset, order: Order, rank: int, world_size: int) -> None:
        check_ranks(order, rank, world_size)
        check_batches(order, dataset.map)
        self._dataset, self._order = dataset, order
        self._rank, self._world_size = rank, world_size
        self._epoch = self._num_taken = 0
        check_length(order, order.num_batches(dataset.map.shards), len(self), world_size)

    def set_epoch(self, epoch: int, num_taken: int = 0) -> None:
        """Choose the epoch, also of the dataset.

        num_taken: batches of this rank that the next iteration leaves out, to continue after them.
        """
        self._dataset.set_epoch(epoch)
        self._epoch, self._num_taken = epoch, whole_number("num_taken", num_taken, 0)

    def __len__(self) -> int:
        return len(self._places())

    def _places(self) -> range:
        return places(
            self._order.num_batches(self._dataset.map.shards),
            rank=self._rank,
            world_size=self._world_size,
            uneven=self._order.uneven,
        )[self._num_taken :]

    def __iter__(self) -> Iterator[list[int]]:
        shards = self._dataset.map.shards
        ends = np.cumsum([0, *(int(bucket.num_samples.sum()) for bucket in shards)])
        starts = [
            end + np.cumsum(bucket.num_samples) - bucket.num_samples
            for end, bucket in zip(ends, shards, strict=False)
        ]
        epoch, todo = Epoch(self._order, shards, self._epoch), self._places()
        self._num_taken = 0
        for batch in map(epoch.batch, todo):
            yield (starts[batch.bucket][list(batch.shards)] + np.array(batch.rows)).tolist()


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a batch of samples as a loader gives it: latents [B, ...], lists, and one bucket.

    For `collate_fn`: unlike torch's own it takes captions that are null, and gives None for what only some
    samples have. Raises ConfigError for samples of several buckets.
    """
    buckets = sorted({sample["bucket"] for sample in samples})
    if len(buckets) != 1:
        raise ConfigError(
            f"samples of the buckets {', '.join(buckets)} make no batch, since their shapes differ: give "
            "DataLoader batch_sampler=dataset.batch_sampler(batch_size) in place of a batch_size"
        )
    names = dict.fromkeys(name for sample in samples for name in sample)
    batch: dict[str, Any] = {n: [_value(sample, n) for sample in samples] for n in names}
    latents = batch["latents"]
    stacked = np.stack(latents) if isinstance(latents[0], np.ndarray) else torch.stack(latents)
    per_frame: dict[str, Any] = {
        name: stack_per_frame([None if v is None else torch.as_tensor(v) for v in values])
        for name, values in batch.items()
        if name != "latents" and any(isinstance(v, torch.Tensor | np.ndarray) for v in values)
    }
    if isinstance(stacked, np.ndarray):
        per_frame = {n: v.numpy() if torch.is_tensor(v) else v for n, v in per_frame.items()}
    return {**batch, **per_frame, "latents": stacked, "bucket": buckets[0]}


def _value(sample: Mapping[str, Any], name: str) -> Any:
    """Return a value of a sample, which reads its fields now; None if it lacks the name."""
    try:
        return sample[name]
    except KeyError:
        return None


def to_numpy(latents: torch.Tensor) -> Array:
    """Return a tensor as a numpy array; its bfloat16 is that of ml_dtypes, which numpy lacks."""
    return as_numpy(latents.detach().cpu().contiguous())
