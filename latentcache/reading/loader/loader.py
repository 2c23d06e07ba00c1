"""Streaming a cache into training: shuffled batches, each from one bucket, read ahead by threads.

Axes: B batch, C channels, t h w of the latent.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from latentcache.core.arguments import list_of_names, text, whole_number, yes_or_no
from latentcache.core.devices import resolve_device
from latentcache.core.dtypes import AnyDtype
from latentcache.core.units import plural
from latentcache.errors import CacheError, ConfigError
from latentcache.format.columns import WEIGHT
from latentcache.format.fields.nulls import NULL
from latentcache.reading.cache import Cache
from latentcache.reading.handover import check_open_files
from latentcache.reading.inherited import leave_inherited
from latentcache.reading.loader import sources
from latentcache.reading.loader import state as loader_state
from latentcache.reading.loader.arrange import check_layout, check_names, renamed
from latentcache.reading.loader.batch_memory import Recycler
from latentcache.reading.loader.clip_weights import ClipWeights
from latentcache.reading.loader.damage import Damage, OnDamaged
from latentcache.reading.loader.fields import (
    FieldOptions,
    LoaderFields,
    arriving,
    check_fields_alike,
    check_with_fields,
)
from latentcache.reading.loader.figures import Figures, LoaderStats
from latentcache.reading.loader.filters import Where
from latentcache.reading.loader.option_checks import (
    check_alike,
    check_batches,
    check_length,
    check_mixture,
    check_not_collated,
    check_ranks,
    numbers_above_0,
)
from latentcache.reading.loader.plan import Plan
from latentcache.reading.loader.prefetch import read_ahead
from latentcache.reading.loader.selection import prefix_cuts
from latentcache.reading.loader.share import Share
from latentcache.reading.loader.source import Source
from latentcache.reading.loader.state import Position
from latentcache.reading.loader.targets import make_target
from latentcache.reading.loader.transform import Posterior, Transform
from latentcache.reading.loader.viewed import check_fields
from latentcache.reading.order.epoch import BucketShards, Order, Uneven
from latentcache.reading.order.mixture import Mixture
from latentcache.reading.views.adapt import AnyView
from latentcache.storage.urls import redact

#: Threads that read; with a remote cache they mostly wait for it.
LOCAL_THREADS = 4
REMOTE_THREADS = 16


class LatentLoader(IterableDataset[dict[str, Any]]):
    """Batches of a cache, as an iterable and as a dataset of `DataLoader(loader, batch_size=None)`.

    A batch: `latents` [B, C, t, h, w] (ids: int64 [B, t, h, w]), contiguous, in its own memory; lists of B
    for `key`, `caption` and the columns kept from the corpus, or for those in `columns`; `bucket`, the
    name that all share; and `cache`, its number, if there are several.

    What comes: every ok clip once per epoch, or only those that `where` keeps. `where` is a condition such
    as "score > 5 and caption != ''" (see `core.where`), an expression of pyarrow.compute, or its filters,
    [("score", ">", 5)]; it reads these columns from every sample table. drop_last leaves out the last short
    batch of each bucket. frames cuts longer clips to their first frames, if the encoder's latents allow it.
    clip_weight names the column that says how often a clip comes, such as 2.5 times: in n epochs n * 2.5
    times, give or take less than one. Omitted: that of `corpus.weight`, once if there is none. None: once.
    `len` is the length of the current epoch then.
    Several caches must hold latents of one kind. `weights` are their shares of batches (omitted: as many
    as each has), and an epoch has `epoch_batches` (omitted: as many as they have together): see
    `order.mixture`.

    Order: a function of the snapshot and of (seed, epoch, batch_size, shuffle, drop_last, pool_bytes,
    bucket_run, uneven), and with several caches of their weights; see `order.epoch`. Rank r of n takes
    every n-th batch. uneven says what becomes of the last batches if they do not suffice for all ranks.
    "drop" gives up to world_size - 1 to none. "pad" repeats as many of the same epoch, so that no rank
    waits in a collective for one that has run out. With "exact", for evaluation, some ranks have one
    more. bucket_run, a multiple of the world size, puts all ranks of a step in one bucket, and lets each
    read its own shards.

    Epochs: after a finished iteration the next one is the next epoch. One that was broken off starts its
    epoch again. One after `load_state_dict` continues from there. Under a DataLoader with workers this
    object does not see the batches pass: call `set_epoch` before each epoch, as with a DistributedSampler
    (it also reaches persistent workers). The order is the same for any number of workers, and for none.

    follow: each epoch uses the newest snapshot of a cache that is still being written, as rank 0 of
    torch.distributed sees it; without torch.distributed, ranks agree through `newest` and `set_epoch`.

    posterior: for stored moments, "sample" draws with a seed of (seed, epoch, key) and "mode" takes
    the mean; other caches are read as they are. normalise: apply the encoder's (z - shift) * scale.
    dtype: of the latents, such as "bfloat16"; omitted: the stored one. device: where they go; omitted: the
    CPU. For a GPU, stored bytes are copied from pinned memory and computed there, and batches that were
    read ahead wait there. Noise of posterior samples is drawn there, too, with the same
    bits as on the CPU.
    fields: names of the cache's fields, of which a batch gains each array under its key, such as `umt5`
    [B, L, D] and `umt5.pooled` [B, D]; `umt5_tokens` [B] of texts, and `umt5_mask` [B, L] where the model
    takes one. Only clips that have all of them come (`left_out` counts the others); missing="null" gives
    these the null and `umt5_missing` [B]. caption_dropout: the part of clips whose texts are dropped, all
    fields' together, to `dropped`: "null", the encoded empty text, another text of the field's `nulls`, or
    "zeros"; `dropped` [B] says which. Where a clip has several texts, `umt5_choice` says which one came,
    the same one in all fields of the same column. Both follow from (seed, epoch, key). pad="batch" cuts
    texts to the longest of a batch, if the model masks padding.
    view: what is read of each clip, and what is made of it: `Window(frames=16)` and others, or an object or
    function of yours; see docs/views.md. layout: the order of the latents' axes, such as "BTCHW". names:
    other names of what a batch holds, such as {"latents": "mp4"}.
    num_threads (omitted: 4, or 16 if a cache is remote) read, check and decompress. prefetch_bytes bounds
    what is read ahead. pool_bytes bounds the shards from which samples are drawn at a time (they are not
    held in memory). check=False leaves out the CRC32C of every clip: then a damaged one may come as wrong
    latents. on_damaged: "raise", or "skip" to leave damaged clips out of their batches, count them in
    `stats.num_skipped` and log them; the order, states and the number of batches stay the same. A batch
    without a sound clip is replaced by the next one of its bucket.
    tensorboard: a folder to which `stats` are written as scalars, every few seconds. wandb: the same, to
    the trainer's run of Weights & Biases, or to a run of its own in this project.
    """

    def __init__(
        self,
        cache_or_url: Cache | str | Path | Sequence[Cache | str | Path],
        batch_size: int = 8,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int | None = None,
        drop_last: bool = False,
        posterior: Posterior = "sample",
        normalise: bool = True,
        device: torch.device | str | None = None,
        prefetch_bytes: int = 256 << 20,
        storage_options: Mapping[str, Any] | None = None,
        dtype: AnyDtype | None = None,
        pool_bytes: int = 4 << 30,
        check: bool = True,
        uneven: Uneven = "drop",
        bucket_run: int = 1,
        where: Where | None = None,
        frames: int | None = None,
        columns: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        epoch_batches: int | None = None,
        clip_weight: str | None = WEIGHT,
        follow: bool = False,
        on_damaged: OnDamaged = "raise",
        fields: Sequence[str] = (),
        caption_dropout: float = 0.0,
        dropped: str = NULL,
        pad: Literal["spec", "batch"] = "spec",
        missing: Literal["leave_out", "null"] = "leave_out",
        view: Any = None,
        layout: str | None = None,
        names: Mapping[str, str] | None = None,
        tensorboard: str | None = None,
        wandb: str | None = None,
    ) -> None:
        for name, number in (("num_threads", num_threads), ("frames", frames)):
            if number is not None:
                whole_number(name, number, 1)
        yes_or_no("check", check)
        yes_or_no("follow", follow)
        # States are JSON, which has no numbers of numpy.
        seed, rank = whole_number("seed", seed, 0), whole_number("rank", rank, 0)
        world_size = whole_number("world_size", world_size, 1)
        if epoch_batches is not None:
            epoch_batches = whole_number("epoch_batches", epoch_batches, 1)
        options = FieldOptions(
            names=(fields,) if isinstance(fields, str) else tuple(list_of_names("fields", fields)),
            seed=seed,
            caption_dropout=caption_dropout,
            dropped=dropped,
            pad=pad,
            missing=missing,
            normalise=normalise,
            dtype=dtype,
        )
        if options.names:
            check_with_fields(frames, follow=follow, on_damaged=on_damaged)
        self.order = Order(
            seed=seed,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            pool_bytes=pool_bytes,
            bucket_run=bucket_run,
            uneven=uneven,
        )
        self.rank, self.world_size, self.follow = rank, world_size, follow
        self._share = Share(order=self.order, rank=rank, world_size=world_size)
        self.prefetch_bytes = whole_number("prefetch_bytes", prefetch_bytes, 1)
        self.device = resolve_device("cpu" if device is None else device, others=True)
        self.check = check
        self.stats = LoaderStats()
        self._figures = Figures(tensorboard=tensorboard, wandb=wandb, rank=rank)
        self._damage = Damage(on_damaged)
        self._view = None if view is None else AnyView(view, self.order.seed)
        if self._view and frames is not None:
            raise ConfigError(
                f"frames {frames} and view {self._view} both say which frames come. Leave frames out, and "
                'say it by the view: Window(frames, start="first") counts latent frames.'
            )
        self._clip_weight = None
        if clip_weight is not None:
            column = text("clip_weight", clip_weight)
            self._clip_weight = ClipWeights(column=column, seed=self.order.seed)
        self._layout, self._names = layout, check_names(names)
        self._memory = Recycler(prefetch_bytes)
        self._sources = [
            Source(
                cache,
                Transform(
                    cache.spec,
                    posterior=posterior,
                    normalise=normalise,
                    dtype=dtype,
                    seed=seed,
                    cuts=prefix_cuts(cache, frames),
                ),
                where,
                columns,
                LoaderFields.of(cache, options) if options.names else None,
                frames,
                self._view and self._view.of_cache(cache),
                self._clip_weight,
            )
            for cache in sources.open_all(cache_or_url, storage_options)
        ]
        remote = any(not source.map.cache.storage.is_local for source in self._sources)
        self.num_threads = num_threads or (REMOTE_THREADS if remote else LOCAL_THREADS)
        self._weights = None if weights is None else numbers_above_0("weights", weights)
        self._epoch_batches = epoch_batches
        # Shared memory lets set_epoch reach the persistent workers of a DataLoader.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._resume: Position | None = None  # start of the next iteration, if not 0
        self._at = Position(0)
        if follow:
            sources.take_newest(self._sources, self.world_size)
        self._check()

    def __repr__(self) -> str:
        clips = " + ".join(
            f"{len(source.map):,} clips of {redact(source.map.cache.storage.url)}"
            for source in self._sources
        )
        order, buckets = self.order, sum(len(source.map.names) for source in self._sources)
        return (
            f"LatentLoader({clips}, {plural(buckets, 'bucket')}, batch_size {order.batch_size}, "
            f"{f'shuffled with seed {order.seed}' if order.shuffle else 'in order'}: "
            f"{plural(len(self), 'batch', 'batches')} for rank {self.rank} of {self.world_size}, "
            f"epoch {self.epoch})"
        )

    def _check(self) -> None:
        caches = [source.map.cache for source in self._sources]
        check_ranks(self.order, self.rank, self.world_size)
        check_mixture(self.order, self._weights, self._epoch_batches, len(caches))
        check_alike(caches, [source.transform for source in self._sources])
        check_fields_alike([source.map.fields for source in self._sources])
        if self._view:
            check_fields([source.map for source in self._sources])
        for cache in caches:
            check_layout(self._layout, cache.spec)
        for source in self._sources:
            check_batches(self.order, source.map)
        check_length(self.order, len(self._plan(self.epoch)), len(self), self.world_size)

    @property
    def cache(self) -> Cache:
        """The snapshot of the cache, or of the first of several."""
        return self._sources[0].map.cache

    @property
    def left_out(self) -> list[Mapping[str, int]]:
        """How many clips of each cache are left out, by field: those that it lacks, and former texts'."""
        return [source.map.left_out for source in self._sources]

    @property
    def buckets(self) -> Sequence[BucketShards]:
        """What is taken from the cache, or from the first of several, as `order` sees it."""
        return self._sources[0].map.shards

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration, or of the current one."""
        return int(self._epoch)

    def set_epoch(self, epoch: int, snapshots: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Choose the epoch of the next iteration; the epoch of a loaded state continues where it was.

        snapshots: those to take, as `newest` returned them, perhaps on another rank. With `follow`,
        another epoch takes the newest ones; with several ranks that is a collective call.
        """
        epoch = whole_number("epoch", epoch, 0)
        if epoch != self.epoch:
            self._at, self._resume = Position(epoch), None
            if self.follow and snapshots is None:
                sources.take_newest(self._sources, self.world_size)
        if snapshots is not None:
            sources.choose(self._sources, snapshots)
        self._epoch.fill_(epoch)

    def newest(self) -> list[dict[str, Any]]:
        """Return the snapshots that are published now, as small JSON values for `set_epoch`.

        Of fields: what was there when this loader was made. A rank that was made before that lacks it, and
        its `set_epoch` raises CacheError.
        """
        return sources.newest(self._sources)

    def __len__(self) -> int:
        """Return the number of batches of the whole current epoch for this rank."""
        return len(self._share.of_rank(len(self._plan(self.epoch))))

    def _plan(self, epoch: int) -> Mixture:
        maps = [source.map for source in self._sources]
        return Mixture(
            self.order,
            [chosen.shards for chosen in maps],
            epoch,
            weights=self._weights,
            num_batches=self._epoch_batches,
            varying=[chosen.shards_in if chosen.is_weighted else None for chosen in maps],
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        leave_inherited()
        check_not_collated(sys._getframe(1))
        is_worker = get_worker_info() is not None
        at, self._resume = self._resume, None
        # A worker may have loaded its state by itself; then it knows the epoch better than the others.
        if at is None or (at.epoch != self.epoch and not is_worker):
            at = Position(self.epoch)
        self._at = self._share.align(at)
        batches = self._iterate(self._at, is_worker=is_worker)
        return self._figures.written(batches, self.stats, self._step)

    def _step(self) -> int:
        """Return how many batches of this epoch and those before this rank has had."""
        return self._at.epoch * len(self) + self._share.taken(self._at)

    def _readers(self, epoch: int) -> Plan:
        """Return the epoch's batches as jobs of this process."""
        for source in self._sources:
            source.map.cache.storage.connect()
        return Plan(
            order=self._plan(epoch),
            maps=[source.map for source in self._sources],
            targets=[make_target(self.device, s.transform, self._memory) for s in self._sources],
            damage=self._damage,
            check=self.check,
            layout=self._layout,
        )

    def _iterate(self, at: Position, *, is_worker: bool) -> Iterator[dict[str, Any]]:
        plan, epoch = self._readers(at.epoch), at.epoch
        todo = self._share.todo(len(plan.order), at)
        reads = read_ahead(
            map(plan.job, todo),
            num_threads=self.num_threads,
            max_bytes=self.prefetch_bytes,
            waiting=self.stats,
        )
        for place, read in zip(todo, reads, strict=True):
            self.stats.num_skipped += read.num_skipped
            if not read.batch:
                read = plan.instead_of(place)
            batch = renamed(arriving(read.batch), self._names)
            check_open_files()
            self.stats.num_batches += 1
            self.stats.num_samples += read.num_samples
            self.stats.num_bytes += read.num_bytes
            if self._at.loaded:  # by a worker, which tells the epoch to all others this way
                self._epoch.fill_(epoch)
            if self._at.epoch == epoch:  # else set_epoch has chosen what comes next
                self._at = Position(epoch, self._at.start, self._at.taken + 1)
            yield batch
        if self.epoch == epoch and not is_worker:
            self.set_epoch(epoch + 1)

    def state_dict(self, num_batches: int | None = None) -> dict[str, Any]:
        """Return where the iteration is, as JSON values that fit any rank and world size.

        num_batches: how many this rank has taken since the iteration began; one that continues a state
        counts from 0 again. It is needed if the workers of a DataLoader iterate, because their copies of
        this loader do not report back. A worker's own state, which a StatefulDataLoader takes, fits only
        that worker; `load_state_dict` takes the whole one's.
        """
        worker, at = get_worker_info(), self._at
        state = {**self._identity(), "epoch": at.epoch if worker else self.epoch}
        if worker is not None:
            own = {**self._share.process(), "taken": at.taken}
            return {**state, "batches": at.start, "worker": own}
        taken = at.taken if num_batches is None else whole_number("num_batches", num_batches, 0)
        return {**state, "batches": at.start + taken * self.world_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken, also with another world size or number of workers.

        Also takes the state of a torchdata StatefulDataLoader around a loader. Snapshots are those of the
        state, even if the caches have grown since.
        Raises CacheError if the state is of another cache or order, or if its snapshot is gone.
        """
        if not isinstance(state, Mapping):
            raise CacheError(f"the loader's state is {state!r}. Load what state_dict returned.")
        own = loader_state.plain(state)
        worker, here = own.pop("worker", None), self._share.process()
        at = loader_state.position(own)
        self._restore(own)
        if worker is None:
            at = self._share.align(at)  # as each worker does for itself
            self._epoch.fill_(at.epoch)
        elif {**worker, "taken": 0} != {**here, "taken": 0}:
            raise CacheError(
                f"the state is of worker {worker}, but this is {here}: a DataLoader continues "
                "only with as many workers and ranks as in its state. For others give the state of the "
                "whole DataLoader to load_state_dict of the loader, not of the DataLoader."
            )
        else:
            at = dataclasses.replace(at, taken=int(worker["taken"]), loaded=True)
        self._at = self._resume = at

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take the snapshots of a state, if everything else is as in this loader."""
        before = [source.identity() for source in self._sources]
        caches = loader_state.caches(state, len(before))
        try:
            for source, old, saved in zip(self._sources, before, caches, strict=True):
                if saved.get("fingerprint") == old["fingerprint"]:
                    source.choose(saved)
            loader_state.check(state, self._identity())
        except CacheError:
            sources.choose(self._sources, before)
            raise

    def _weight_column(self) -> str | None:
        is_weighted = any(source.map.is_weighted for source in self._sources)
        return self._clip_weight.column if self._clip_weight and is_weighted else None

    def _identity(self) -> dict[str, Any]:
        return {
            "version": loader_state.STATE_VERSION,
            "caches": [source.identity() for source in self._sources],
            "weights": self._weights,
            "epoch_batches": self._epoch_batches,
            "view": self._view.identity() if self._view else None,
            "clip_weight": self._weight_column(),
            **dataclasses.asdict(self.order),
        }
