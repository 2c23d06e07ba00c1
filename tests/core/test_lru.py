from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from latentcache.core.lru import Lru


def test_it_forgets_what_was_used_longest_ago() -> None:
    lru: Lru[str, int] = Lru(2)
    lru.put("a", 1)
    lru.put("b", 2)
    assert lru.get("a") == 1
    lru.put("c", 3)
    assert [lru.get(key) for key in "abc"] == [1, None, 3]
    assert len(lru) == 2


def test_it_pickles_empty() -> None:
    lru: Lru[str, int] = Lru(2)
    lru.put("a", 1)
    assert pickle.loads(pickle.dumps(lru)).get("a") is None


@pytest.mark.slow
def test_a_fork_while_it_is_locked_does_not_hang() -> None:
    lru: Lru[str, int] = Lru(2)
    lru.put("a", 1)
    with lru._lock:
        process = multiprocessing.get_context("fork").Process(target=lru.put, args=("b", 2))
        process.start()
        process.join(10)
    exitcode = process.exitcode
    process.kill()
    assert exitcode == 0


def test_one_thread_makes_what_several_want() -> None:
    lru: Lru[str, int] = Lru(2)
    everybody = threading.Barrier(4)
    made: list[str] = []

    def make() -> int:
        made.append("a")
        time.sleep(0.05)  # the others ask meanwhile
        return 1

    def want() -> int:
        everybody.wait(10)
        return lru.get_or_make("a", make)

    with ThreadPoolExecutor(4) as pool:
        assert [future.result() for future in [pool.submit(want) for _ in range(4)]] == [1] * 4
    assert made == ["a"]


def test_what_cannot_be_made_is_made_by_the_next_one() -> None:
    lru: Lru[str, int] = Lru(2)

    def fail() -> int:
        raise ValueError("not yet")

    with pytest.raises(ValueError, match="not yet"):
        lru.get_or_make("a", fail)
    assert lru.get_or_make("a", lambda: 1) == 1
