"""Rounds that a run takes because another one was first, or goes on beside it: never without end."""

from __future__ import annotations

from latentcache.errors import CacheError

#: So often in a row nobody comes second by accident.
ROUNDS = 20
OTHERS_GO_ON = (
    "another run on this cache goes on committing, so this one ends without waiting for it: what is "
    "committed is safe, and the other run publishes the rest when it ends"
)


class Rounds:
    """Counts tries. what: that is tried, for the message."""

    def __init__(self, what: str) -> None:
        self._what, self._num = what, 0

    def next(self) -> None:
        """Begin another try. Raises CacheError where there were too many."""
        if self._num == ROUNDS:
            raise CacheError(
                f"{self._what} was tried {ROUNDS} times, and each time another run on this cache was first."
                " Nothing is lost. Run the same command again when the other run has ended."
            )
        self._num += 1
