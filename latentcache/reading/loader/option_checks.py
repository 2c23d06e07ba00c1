"""What a loader refuses before it reads anything: options, ranks and caches that do not fit together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

from latentcache.core.arguments import positive_number
from latentcache.errors import ConfigError
from latentcache.reading.cache import Cache
from latentcache.reading.loader.filters import nothing_fits
from latentcache.reading.loader.selection import ShardMap
from latentcache.reading.loader.transform import Transform
from latentcache.reading.order.epoch import Order


def check_not_collated(caller: FrameType) -> None:
    """Raise ConfigError if a DataLoader that collates, as one does by default, begins to iterate.

    caller: of the loader's iterator. A DataLoader tells its dataset nothing, but its fetcher knows.
    """
    fetcher = caller.f_locals.get("self")
    if getattr(fetcher, "auto_collation", False) and hasattr(fetcher, "collate_fn"):
        raise ConfigError(
            "a DataLoader with a batch_size (1, if none is given) would make batches of batches: the "
            "loader makes them. Use DataLoader(loader, batch_size=None), or a map-style dataset, "
            "cache.dataset()."
        )


def numbers_above_0(name: str, values: Any) -> list[float]:
    """Return a list of numbers above 0 as floats. Raises ConfigError."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} is {values!r}: it must be a list of numbers, one for each cache")
    return [positive_number(f"{name}[{n}]", value) for n, value in enumerate(values)]


def check_ranks(order: Order, rank: int, world_size: int) -> None:
    """Raise ConfigError if there is no such rank, or if the ranks of a step would not share a bucket."""
    if rank >= world_size:
        raise ConfigError(f"rank {rank} of world_size {world_size}: ranks are 0..world_size-1")
    if order.bucket_run > 1 and order.bucket_run % world_size:
        raise ConfigError(
            f"bucket_run {order.bucket_run} is no multiple of world_size {world_size}: the ranks of a "
            "step would be in different buckets"
        )


def check_mixture(
    order: Order, weights: Sequence[float] | None, epoch_batches: int | None, num_caches: int
) -> None:
    """Raise ConfigError if weights are not one positive number per cache, or epochs make no sense."""
    if weights is not None and len(weights) != num_caches:
        raise ConfigError(
            f"weights {list(weights)} for {num_caches} caches: give one positive number for each"
        )
    if order.uneven == "exact" and (num_caches > 1 or epoch_batches is not None):
        raise ConfigError(
            'uneven="exact" takes each sample once, but an epoch of a mixture of caches, or of a '
            "given length, takes some of them more often than others. Evaluate one cache after the "
            "other, without epoch_batches."
        )


def check_alike(caches: Sequence[Cache], transforms: Sequence[Transform]) -> None:
    """Raise ConfigError if no one model takes the latents of all caches, or if batches would differ."""
    facts = [
        {
            "model_class": cache.spec.model_class,
            "channels": cache.spec.channels,
            "stride": cache.spec.stride,
            "ids": cache.spec.ids,
            "dtype": transform.dtype,
        }
        for cache, transform in zip(caches, transforms, strict=True)
    ]
    for cache, fact in zip(caches, facts, strict=True):
        wrong = [name for name in fact if fact[name] != facts[0][name]]
        if wrong:
            raise ConfigError(
                "these caches cannot be mixed: "
                + "; ".join(f"{name} {facts[0][name]} and {fact[name]}" for name in wrong)
                + f", of {caches[0]!r} and {cache!r}. A model trains on the latents of one encoder; "
                "if only the dtypes differ, say with `dtype` which one batches shall have."
            )


def check_batches(order: Order, chosen: ShardMap) -> None:
    """Raise ConfigError if a cache, or one of its buckets, would never come."""
    if chosen.empty_where is not None:
        raise ConfigError(
            f"no clip of {chosen.cache!r} is chosen: "
            f"{nothing_fits(chosen.cache, chosen.empty_where)} Correct `where`."
        )
    num_batches = order.num_batches(chosen.shards)
    if num_batches == 0 and not len(chosen) and chosen.left_out:
        said = "; ".join(f"{name}: {num}" for name, num in chosen.left_out.items())
        raise ConfigError(
            f"no clip of {chosen.cache!r} has all of the fields. Clips that are left out, by field: {said}"
        )
    if num_batches == 0 and not len(chosen):
        raise ConfigError(
            f"no clip of {chosen.cache!r} is chosen: its status is ok and `where` holds for none. "
            "cache.table() has the columns of all clips."
        )
    if num_batches == 0:
        raise ConfigError(
            f"the {len(chosen)} chosen clips of {chosen.cache!r} make 0 batches of "
            f"{order.batch_size} (drop_last={order.drop_last}, bucket_run={order.bucket_run}). "
            'Use a smaller batch_size, drop_last=False, or uneven="pad".'
        )
    if empty := [
        n for n, b in zip(chosen.names, chosen.shards, strict=True) if not order.batches_of(b)
    ]:
        raise ConfigError(
            f"drop_last would leave out whole buckets of {chosen.cache!r}, since they have fewer than "
            f"batch_size={order.batch_size} clips: {', '.join(empty)}. Use drop_last=False or a smaller "
            f'batch_size, or leave them out on purpose: where="bucket not in ({str(empty)[1:-1]})".'
        )
    for name, bucket in zip(chosen.names, chosen.shards, strict=True):
        num_own = order.batches_of(bucket)
        if order.bucket_run > 1 and order.uneven == "drop" and num_own < order.bucket_run:
            raise ConfigError(
                f"bucket {name} has {num_own} batches, which make no run of bucket_run "
                f'{order.bucket_run}: none of its clips would ever come. Use uneven="pad", a smaller '
                "batch_size or bucket_run, or leave the bucket out with `where`."
            )


def check_length(order: Order, num_batches: int, num_steps: int, world_size: int) -> None:
    """Raise ConfigError if an epoch has no batch for every rank; "exact" gives some of them none."""
    if num_steps == 0 and not (order.uneven == "exact" and num_batches):
        raise ConfigError(
            f"an epoch of {num_batches} batches has too few for {world_size} ranks. Use a smaller "
            'batch_size, fewer ranks, or uneven="pad".'
        )
