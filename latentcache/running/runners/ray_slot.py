"""A place for one worker on a Ray cluster, and what its worker has in hand. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from latentcache.core.records import ShardReport
from latentcache.running import stall
from latentcache.running.attempt import Failed
from latentcache.running.events import Task
from latentcache.running.worker import SHARDS_IN_HAND


@dataclass(eq=False)
class Slot:
    """One place for an actor. in_hand: what it is working on, by the reference of the result.

    seat: the machine that it is for, None where any will do. node: where it is. is_late: its worker starts
    after the run had begun. num_unfit: workers there that became unfit since a shard was encoded there.
    is_retired: no worker starts there. is_leaving: its worker was told to end.
    """

    number: int
    watch: stall.Watch
    seat: str | None = None
    is_late: bool = False
    actor: Any = None
    name: str = ""
    node: str = ""
    ready: Any = None
    is_up: bool = False
    is_lost: bool = False
    is_retired: bool = False
    is_leaving: bool = False
    failed_starts: int = 0
    num_unfit: int = 0
    num_given_back: int = 0
    in_hand: dict[Any, Task] = field(default_factory=dict)
    clips_before: int = 0
    clips_done: int = 0
    num_steps: int = 0
    num_settled: int = 0

    def stands_still(self) -> bool:
        """Tell whether its work has not advanced for too long."""
        if not self.in_hand:
            self.watch.rest()
            return False
        return self.watch.stands_still(self.num_steps + self.num_settled)

    def count(self, outcome: ShardReport | Failed) -> None:
        """Forgive the place its unfit workers once a shard is encoded there."""
        if isinstance(outcome, ShardReport) and not outcome.committed_before:
            self.num_unfit = 0

    def has_room(self) -> bool:
        """Tell whether it takes another shard; one that has been tried before has its worker for itself."""
        alone = any(task.attempts for task in self.in_hand.values())
        is_free = self.is_up and not self.is_leaving and not alone
        return is_free and len(self.in_hand) < SHARDS_IN_HAND
