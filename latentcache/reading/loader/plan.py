"""The batches of an epoch, by place, as jobs to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentcache.errors import CorruptionError
from latentcache.reading.loader.batches import Read, ReadBatch
from latentcache.reading.loader.damage import Damage
from latentcache.reading.loader.selection import ShardMap
from latentcache.reading.loader.targets import Target
from latentcache.reading.loader.viewed import ViewedBatch
from latentcache.reading.order.mixture import Mixture


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An epoch's order, and how its batches are read. maps, targets: of each cache.

    layout: order of the latents' axes, None for that in which they are stored.
    """

    order: Mixture
    maps: Sequence[ShardMap]
    targets: Sequence[Target]
    damage: Damage
    check: bool
    layout: str | None = None

    def job(self, place: int) -> ReadBatch:
        """Return the batch at a place, to be read."""
        cache, epoch, batch = self.order.batch(place)
        make = ReadBatch if self.maps[cache].view is None else ViewedBatch
        return make(
            self.maps[cache],
            batch,
            epoch,
            self.targets[cache],
            damage=self.damage,
            check=self.check,
            cache=cache if len(self.maps) > 1 else None,
            layout=self.layout,
        )

    def instead_of(self, place: int) -> Read:
        """Read the next batch of the same bucket, for one of which no clip could be read.

        Some batch must come, or ranks would get out of step. Raises CorruptionError if there is none.
        """
        kind = self.job(place).kind
        for other in range(place + 1, place + len(self.order)):
            job = self.job(other)
            if job.kind == kind:
                for part in job.parts():
                    part()
                if (read := job.finish()).batch:
                    return read
        raise CorruptionError(
            f'no clip of {self.maps[kind[0] or 0].names[kind[1]]} can be read, so on_damaged="skip" has '
            "nothing to go on with. `latentcache verify URL --repair` marks what is damaged."
        )
