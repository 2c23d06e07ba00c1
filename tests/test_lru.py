from __future__ import annotations

import multiprocessing
import pickle

from latentcache.lru import Lru


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
