from __future__ import annotations

import pytest

from latentcache.errors import CacheError
from latentcache.format.rounds import ROUNDS, Rounds


def test_rounds_end_with_what_was_tried() -> None:
    rounds = Rounds("a step of this corpus")
    for _ in range(ROUNDS):
        rounds.next()
    with pytest.raises(
        CacheError, match=rf"a step of this corpus was tried {ROUNDS} times.*other run"
    ):
        rounds.next()
