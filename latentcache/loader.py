"""Streaming a cache into training: shuffled batches of one bucket each, read ahead by threads.

Axes: B batch, C channels, t h w of the latent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch.utils.data import IterableDataset, get_worker_info

from latentcache import posterior as posteriors
from latentcache.cache import Cache, ShardRows, open_cache
from latentcache.errors import CacheError, ConfigError
from latentcache.formats.dtypes import torch_dtype
from latentcache.memory import Recycler
from latentcache.prefetch import Waiting, read_ahead
from latentcache.samplers.pool import Batch, BucketShards, Order, num_steps, stripe

STATE_VERSION = 1
POSTERIORS = ("sample", "mode")


@dataclass
class LoaderStats(Waiting):
    """What this object has yielded. num_bytes: of latents in the stored dtype; wait_s: for data.

    Under a DataLoader with workers the workers' copies count, and this one stays at zero.
    """

    num_batches: int = 0
    num_samples: int = 0
    num_bytes: int = 0


class LatentLoader(IterableDataset[dict[str, Any]]):
    """Batches of a cache, as an iterable and as a dataset of `DataLoader(loader, batch_size=None)`.

    A batch: `latents` [B, C, t, h, w] (ids: [B, t, h, w]), contiguous and its own memory; `key`,
    `caption` and the columns kept from the corpus, lists of B; `bucket`, the name that all share.

    Order: a function of (seed, epoch, batch_size, shuffle, drop_last, pool_bytes) and of the
    snapshot, see `samplers.pool`. Each sample comes once an epoch; drop_last leaves out the last
    short batch of each bucket. Rank r of n takes every n-th batch, and all ranks get as many, so
    that none waits in a collective for one that has run out: up to world_size - 1 batches at the
    end of an epoch go to none.

    Epochs: an iteration that was finished moves on to the next epoch; one that was broken off
    starts its epoch again, and one after `load_state_dict` goes on from there. Under a DataLoader
    with workers this object does not see the batches go by: call `set_epoch` before each epoch, as
    with a DistributedSampler (it reaches persistent workers, too), and give `state_dict` the number
    of batches. The order is the same for any number of workers, and for none.

    posterior: for stored moments, "sample" draws with a seed of (seed, epoch, key) and "mode" takes
    the mean; other caches are read as they are. normalise: apply the encoder's (z - shift) * scale.
    dtype: of the latents; omitted: the stored one. device: where they go; omitted: the CPU.
    num_threads read, check and decompress; prefetch_bytes bounds what is read ahead, pool_bytes the
    shards that samples are drawn from at a time (nothing of them is held in memory).
    """

    def __init__(
        self,
        cache_or_url: Cache | str | Path,
        batch_size: int = 8,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int = 4,
        drop_last: bool = False,
        posterior: Literal["sample", "mode"] = "sample",
        normalise: bool = True,
        device: torch.device | str | None = None,
        prefetch_bytes: int = 256 << 20,
        storage_options: Mapping[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        pool_bytes: int = 4 << 30,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} of world_size {world_size}: ranks are 0..world_size-1")
        if posterior not in POSTERIORS:
            raise ConfigError(f"posterior {posterior!r} is not one of {', '.join(POSTERIORS)}")
        if num_threads < 1:
            raise ConfigError(f"num_threads is {num_threads}; at least one thread must read")
        if isinstance(cache_or_url, Cache):
            self.cache = cache_or_url
        else:
            self.cache = open_cache(str(cache_or_url), storage_options)
        self.order = Order(
            seed=seed,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            pool_bytes=pool_bytes,
        )
        self.rank, self.world_size = rank, world_size
        self.num_threads, self.prefetch_bytes = num_threads, prefetch_bytes
        self.device = torch.device(device or "cpu")
        self.stats = LoaderStats()
        self._transform = _Transform(self.cache, posterior, normalise, dtype, seed)
        self._plan = _Plan(self.cache)
        self._memory = Recycler(prefetch_bytes)
        # Shared memory, so that set_epoch reaches the persistent workers of a DataLoader.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        # Of all ranks: the (epoch, batch) at which the next iteration starts, if not at 0; the batch
        # at which this one started; the batch at which it is.
        self._resume: tuple[int, int] | None = None
        self._start = self._position = 0
        if len(self) == 0:
            raise ConfigError(self._why_empty())

    def _why_empty(self) -> str:
        num_batches = self.order.num_batches(self._plan.shards)
        return (
            f"the {len(self.cache)} ok clips of {self.cache!r} make {num_batches} batches of "
            f"{self.order.batch_size} (drop_last={self.order.drop_last}), none for each of "
            f"{self.world_size} ranks. Use a smaller batch_size, fewer ranks, or drop_last=False."
        )

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration, or of the one that is under way."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; that of a loaded state goes on where it was."""
        if epoch < 0:
            raise ConfigError(f"epoch {epoch}: epochs count from 0")
        if epoch != self.epoch:
            self._start = self._position = 0
            self._resume = None
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch for this rank."""
        return num_steps(self.order.num_batches(self._plan.shards), world_size=self.world_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, start = self.epoch, 0
        if self._resume is not None and self._resume[0] == epoch:
            start = self._resume[1]
        self._resume, self._start, self._position = None, start, start
        worker = get_worker_info()
        batches = stripe(
            self.order.batches(self._plan.shards, epoch),
            self.order.num_batches(self._plan.shards),
            start=start,
            rank=self.rank,
            world_size=self.world_size,
            worker=worker.id if worker else 0,
            num_workers=worker.num_workers if worker else 1,
        )
        jobs = (
            _ReadBatch(self._plan, batch, epoch, self._transform, self._memory) for batch in batches
        )
        return self._iterate(jobs, epoch, advance=worker is None)

    def _iterate(
        self, jobs: Iterator[_ReadBatch], epoch: int, *, advance: bool
    ) -> Iterator[dict[str, Any]]:
        for batch, num_bytes in read_ahead(
            jobs,
            num_threads=self.num_threads,
            max_bytes=self.prefetch_bytes,
            waiting=self.stats,
        ):
            self.stats.num_batches += 1
            self.stats.num_samples += len(batch["key"])
            self.stats.num_bytes += num_bytes
            self._position += self.world_size
            yield self._deliver(batch)
        if advance and self.epoch == epoch:
            self.set_epoch(epoch + 1)

    def _deliver(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.device.type == "cuda":
            latents = batch["latents"].pin_memory().to(self.device, non_blocking=True)
            return {**batch, "latents": latents}
        return batch if self.device.type == "cpu" else _move(batch, self.device)

    def state_dict(self, num_batches: int | None = None) -> dict[str, Any]:
        """Return where the iteration is, as a few JSON values that fit any rank and world size.

        num_batches: that this rank has taken in this iteration; needed where the workers of a
        DataLoader iterate, whose copies of this loader do not report back.
        """
        done = self._position
        if num_batches is not None:
            done = self._start + num_batches * self.world_size
        return {**self._identity(), "epoch": self.epoch, "batches": done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, also with another world size or number of workers.

        Raises CacheError where the state is of another cache, snapshot or order.
        """
        wanted = {**self._identity(), "epoch": 0, "batches": 0}
        wrong = [
            f"  {name}: {state.get(name, 'absent')} in the state, {value} here"
            for name, value in self._identity().items()
            if state.get(name) != value
        ]
        if wrong or wanted.keys() - state.keys():
            raise CacheError(
                "the loader's state is of another order of batches, so going on from it would "
                "repeat some samples and leave out others:\n"
                + "\n".join(wrong or [f"  it has no {sorted(wanted.keys() - state.keys())}"])
                + "\nMake the loader as it was made then, or start an epoch anew with set_epoch."
            )
        self._epoch.fill_(int(state["epoch"]))
        self._start = self._position = int(state["batches"])
        self._resume = (self.epoch, self._position)

    def _identity(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "fingerprint": self.cache.manifest.fingerprint,
            "snapshot": self.cache.snapshot,
            "seed": self.order.seed,
            "batch_size": self.order.batch_size,
            "shuffle": self.order.shuffle,
            "drop_last": self.order.drop_last,
            "pool_bytes": self.order.pool_bytes,
        }


def _move(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {**batch, "latents": batch["latents"].to(device)}


class _Plan:
    """The cache's shards as the sampler's arrays, and the way back from its numbers."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.names = [info.name for info in cache.buckets.values() if info.num_ok]
        found = [cache.shards(name) for name in self.names]
        self._numbers = [numbers for numbers, _ in found]
        self.shapes = [cache.buckets[name].shape for name in self.names]
        self.sample_bytes = [cache.empty(name, 1).nbytes for name in self.names]
        self.shards = [
            BucketShards(num_samples=num_ok, sample_bytes=size)
            for (_, num_ok), size in zip(found, self.sample_bytes, strict=True)
        ]

    def places(self, batch: Batch) -> dict[int, tuple[list[int], list[int]]]:
        """Return, for each shard of a batch, its rows and their places in the batch."""
        places: dict[int, tuple[list[int], list[int]]] = {}
        for n, (shard, row) in enumerate(zip(batch.shards, batch.rows, strict=True)):
            rows, where = places.setdefault(int(self._numbers[batch.bucket][shard]), ([], []))
            rows.append(row)
            where.append(n)
        return places


class _Transform:
    """What is done to a sample's latents after reading. Thread-safe."""

    def __init__(
        self,
        cache: Cache,
        posterior: Literal["sample", "mode"],
        normalise: bool,
        dtype: torch.dtype | None,
        seed: int,
    ) -> None:
        self._spec = cache.spec
        self._posterior, self._seed = posterior, seed
        self._normalise = normalise and cache.spec.normaliser.kind != "none"
        self._scratch = threading.local()
        self.dtype = dtype or torch_dtype(cache.spec.dtype)
        #: Whether samples have the stored shape and dtype, and can be read where they will stay.
        self.in_place = not self._has_moments and self.dtype == torch_dtype(cache.spec.dtype)

    @property
    def _has_moments(self) -> bool:
        return self._spec.stored == "moments"

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a sample: [C, t, h, w] where [2C, t, h, w] is stored, else the same."""
        return (stored[0] // 2, *stored[1:]) if self._has_moments else stored

    def __call__(self, stored: torch.Tensor, out: torch.Tensor, key: str, epoch: int) -> None:
        """Write one sample's latents to `out`, perhaps `stored` itself; computed in float32."""
        latents = self._draw(stored, key, epoch) if self._has_moments else stored
        if self._normalise:
            scratch = self._scratch_like(out)
            scratch.copy_(latents)
            latents = posteriors.normalise_(scratch, self._spec.normaliser)
        if latents is not out:
            out.copy_(latents)

    def _draw(self, moments: torch.Tensor, key: str, epoch: int) -> torch.Tensor:
        mean, logvar = posteriors.split(moments)
        if self._posterior == "mode":
            return mean
        seed = posteriors.sample_seed(self._seed, epoch, key)
        return posteriors.sample(mean[None], logvar[None], [seed])[0]

    def _scratch_like(self, out: torch.Tensor) -> torch.Tensor:
        """Return this thread's float32 scratch of that shape: fresh memory costs more than the sums."""
        scratch = getattr(self._scratch, "tensor", None)
        if scratch is None or scratch.shape != out.shape:
            scratch = self._scratch.tensor = torch.empty(out.shape, dtype=torch.float32)
        return cast(torch.Tensor, scratch)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scratch": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _scratch=threading.local())


class _ReadBatch:
    """A batch to read: one part a shard, straight into the rows of one tensor."""

    def __init__(
        self, plan: _Plan, batch: Batch, epoch: int, transform: _Transform, memory: Recycler
    ) -> None:
        self._plan, self._batch, self._epoch, self._transform = plan, batch, epoch, transform
        self._memory = memory
        self.num_bytes = len(batch.rows) * plan.sample_bytes[batch.bucket]
        self._name = plan.names[batch.bucket]
        self._found: list[tuple[ShardRows, list[int], list[int]]] = []

    def parts(self) -> Sequence[Callable[[], None]]:
        shape = self._transform.shape(self._plan.shapes[self._batch.bucket])
        self._latents = self._memory.empty((len(self._batch.rows), *shape), self._transform.dtype)
        return [
            _Part(self, shard, rows, where)
            for shard, (rows, where) in self._plan.places(self._batch).items()
        ]

    def read(self, shard: int, rows: list[int], where: list[int]) -> None:
        cache = self._plan.cache
        out = [self._latents[n] for n in where]
        stored = out if self._transform.in_place else list(cache.empty(self._name, len(rows)))
        cache.read(self._name, shard, rows, stored)
        table = cache.rows(self._name, shard)
        keys = table.column("key", rows)
        for source, target, key in zip(stored, out, keys, strict=True):
            self._transform(source, target, key, self._epoch)
        self._found.append((table, rows, where))

    def finish(self) -> tuple[dict[str, Any], int]:
        names = ["key", "caption", *self._found[0][0].kept]
        columns: dict[str, list[Any]] = {n: [None] * len(self._batch.rows) for n in names}
        for table, rows, where in self._found:
            for name in names:
                for n, value in zip(where, table.column(name, rows), strict=True):
                    columns[name][n] = value
        return {"latents": self._latents, **columns, "bucket": self._name}, self.num_bytes


@dataclass(frozen=True)
class _Part:
    batch: _ReadBatch
    shard: int
    rows: list[int]
    where: list[int]

    def __call__(self) -> None:
        self.batch.read(self.shard, self.rows, self.where)
