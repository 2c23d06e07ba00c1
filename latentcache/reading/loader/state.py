"""A loader's state as JSON values: read from a DataLoader's form of it, and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentcache.errors import CacheError

STATE_VERSION = 2


@dataclass(frozen=True)
class Position:
    """A place in an epoch: `taken` batches of this process after the first `start` of all ranks.

    loaded: a worker of a DataLoader loaded its own state.
    """

    epoch: int
    start: int = 0
    taken: int = 0
    loaded: bool = False


def position(state: Mapping[str, Any]) -> Position:
    """Return where a state is. Raises CacheError if it does not say."""
    numbers = [state.get("epoch"), state.get("batches")]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise CacheError(
            f"the loader's state has epoch {numbers[0]!r} and batches {numbers[1]!r}, which are no "
            "place in an epoch. Load what state_dict returned."
        )
    return Position(state["epoch"], state["batches"])


def caches(state: Mapping[str, Any], num_caches: int) -> list[Mapping[str, Any]]:
    """Return what a state says of each cache; nothing of any if it has another number of caches."""
    found = state.get("caches")
    if isinstance(found, list) and len(found) == num_caches:
        return [cache if isinstance(cache, Mapping) else {} for cache in found]
    return [{}] * num_caches


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the loader's own state, also from that of a torchdata StatefulDataLoader around it.

    That state then fits any rank, world size and number of workers, unlike a DataLoader's.
    Raises CacheError if its workers disagree.
    """
    if "_snapshot" not in state:
        return dict(state.get("dataset_state") or state)
    workers = [
        worker["dataset_state"] for worker in state["_snapshot"]["_worker_snapshots"].values()
    ]
    if not all(isinstance(worker, Mapping) and "worker" in worker for worker in workers):
        raise CacheError("the state is of a DataLoader around something other than this loader")
    orders = [{k: v for k, v in worker.items() if k != "worker"} for worker in workers]
    if not orders or any(order != orders[0] for order in orders):
        raise CacheError("the workers of the DataLoader's state were not in the same iteration")
    if state["_iterator_finished"]:
        return {**orders[0], "epoch": orders[0]["epoch"] + 1, "batches": 0}
    steps = sum(worker["worker"]["taken"] for worker in workers) + state["_steps_since_snapshot"]
    world_size = workers[0]["worker"]["world_size"]
    return {**orders[0], "batches": orders[0]["batches"] + steps * world_size}


def check(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise CacheError if a state is of another order than `identity` describes."""
    wrong = _differences(state, identity)
    if wrong:
        raise CacheError(
            "the loader's state is of another order of batches, so continuing from it would "
            "repeat some samples and leave out others:\n"
            + "\n".join(wrong)
            + "\nMake the loader as it was made then, or start the epoch again with set_epoch."
        )


def _differences(state: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, here in identity.items():
        there = state.get(name, "absent")
        if name == "caches" and isinstance(there, list) and len(there) == len(here):
            for a, b in zip(there, here, strict=True):
                lines += _differences(a if isinstance(a, Mapping) else {}, b)
        # The snapshot's digest shows a difference of shards already, and fields do not change the order.
        elif there != here and name not in ("shards", "fields"):
            lines.append(f"  {name}: {there} in the state, {here} here")
    return lines
