"""When a worker stands still: nothing of its work has advanced for longer than anything may take. No I/O.

Advance is a piece of a source that was read, a clip that was decoded or encoded, a shard that was written.
That a worker answers is none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from latentcache.config.sections import RunConfig
from latentcache.core.records import Bucket
from latentcache.format.manifest import Manifest

#: A worker may always take this long: for what is done once, and for trouble that is tried again.
LEAST_S = 600.0
#: Pixels of the largest clip per second that the slowest encoder on a device manages, by far.
PIXELS_PER_S = {"cpu": 20_000, "cuda": 500_000}
#: What has advanced in steps of so many seconds may take so many times as long for one.
PATIENCE = 20.0


def limit_s(run: RunConfig, manifest: Manifest, device: str) -> float:
    """Return `run.stall_s`, or what it is from the size of the largest clip. device: cpu or cuda."""
    if run.stall_s != "auto":
        return run.stall_s
    buckets = [Bucket.parse(name) for name in manifest.layouts()]
    pixels = max((b.frames * b.height * b.width for b in buckets), default=0)
    return max(LEAST_S, pixels / PIXELS_PER_S[device])


@dataclass
class Watch:
    """Looks at one worker's count of steps. limit_s: see `limit_s`; adapts: it grows with long steps."""

    limit_s: float
    adapts: bool = True
    clock: Callable[[], float] = time.monotonic
    _count: int = 0
    _since_s: float = field(default=-1.0)

    def rest(self) -> None:
        """Take in that there is nothing to do."""
        self._since_s = -1.0

    def stands_still(self, count: int) -> bool:
        """Tell whether the count has stayed for too long. Call it often, while there is work."""
        now = self.clock()
        if self._since_s < 0 or count != self._count:
            if self._since_s >= 0 and self.adapts:
                self.limit_s = max(self.limit_s, PATIENCE * (now - self._since_s))
            self._count, self._since_s = count, now
        return now - self._since_s > self.limit_s

    @property
    def why(self) -> str:
        """Say it for people."""
        return f"its worker made no progress for {self.limit_s:.0f} s (run.stall_s), so it was replaced"


def watch(run: RunConfig, manifest: Manifest, device: str) -> Watch:
    """Return what looks at one worker."""
    return Watch(limit_s(run, manifest, device), adapts=run.stall_s == "auto")
