"""What a run says of itself while it goes on: the events that runners yield."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentcache.core.records import ShardId, ShardReport


@dataclass(kw_only=True)
class Task:
    """One shard to encode. error: why it was not done last time.

    failed_on: numbers of the workers on which it failed, one for each time. lost_on: of those that were
    lost while they had it, which says nothing of the shard; None for a process that died with several
    shards, which says nothing of its place either.
    """

    shard: ShardId
    error: str = ""
    failed_on: tuple[int, ...] = ()
    lost_on: tuple[int | None, ...] = ()

    @property
    def attempts(self) -> int:
        """How often it was tried and not done."""
        return len(self.failed_on) + len(self.lost_on)

    @property
    def tried_on(self) -> set[int | None]:
        """Workers that had it, did not finish it, and may not be the ones to do it."""
        return {*self.failed_on, *self.lost_on}


@dataclass(frozen=True, kw_only=True)
class GaveUp:
    """A shard that failed more often than `max_retries` allows."""

    task: Task


@dataclass(frozen=True, kw_only=True)
class Retried:
    """A shard that failed, or whose worker was lost, and that will be tried again."""

    task: Task


@dataclass(frozen=True, kw_only=True)
class Started:
    """A worker is up. name: as `worker_name` gives it; gpus: those that it was assigned."""

    worker: int
    name: str
    gpus: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Died:
    """A worker, or the machine it was on, is gone. name: empty where it had not started yet."""

    name: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Left:
    """A worker that was told to end has finished or given back all that it had in hand.

    num_given_back: shards that others do in its place; for them this is no failure.
    """

    name: str
    num_given_back: int


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Clips done since the start of the run, committed or not, and workers that are up.

    shards_in_hand: those that workers are working on. warnings: what workers have logged since the last
    time.
    """

    clips_done: int
    workers: int
    shards_in_hand: int = 0
    warnings: tuple[str, ...] = ()


#: What the time of a shard goes to: fields of `ShardReport`.
STAGES = ("fetch_s", "decode_s", "encode_s", "wait_s", "write_s")

Event = ShardReport | GaveUp | Retried | Started | Died | Left | Progress


def worker_name(host: str, gpus: Sequence[object], number: int, *, shares: bool = False) -> str:
    """Return what people know a worker by: `host/gpu3`; `host/worker3` where it has no GPU.

    shares: others have the same GPU: `host/gpu3/worker5`.
    """
    parts = [host]
    if gpus:
        parts.append(f"gpu{'+'.join(map(str, gpus))}")
    if shares or not gpus:
        parts.append(f"worker{number}")
    return "/".join(parts)
