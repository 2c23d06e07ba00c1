"""Recycled memory: never of a tensor that somebody holds, bounded, private after a fork."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from latentcache.reading.loader.batch_memory import LEAST_MAPPED_BYTES, Recycler

SHAPE = (4, LEAST_MAPPED_BYTES // 4)


def test_memory_of_a_tensor_that_is_gone_is_used_again() -> None:
    recycler = Recycler(1 << 30)
    first = recycler.empty(SHAPE, torch.bfloat16)
    address = first.data_ptr()
    view = first[1]
    del first
    assert recycler.empty(SHAPE, torch.bfloat16).data_ptr() != address, "a view holds it"
    del view
    addresses = {recycler.empty(SHAPE, torch.bfloat16).data_ptr() for _ in range(4)}
    assert len(addresses) <= 2


def test_tensors_in_use_have_memory_of_their_own() -> None:
    recycler = Recycler(1 << 30)
    held = [recycler.empty(SHAPE, torch.float32).fill_(i) for i in range(5)]
    del held[2]
    held.append(recycler.empty(SHAPE, torch.float32).fill_(9))
    assert [float(t.mean()) for t in held] == [0, 1, 3, 4, 9]
    assert len({t.data_ptr() for t in held}) == 5


def test_what_is_kept_is_bounded() -> None:
    recycler = Recycler(3 * LEAST_MAPPED_BYTES)
    held = [recycler.empty((LEAST_MAPPED_BYTES,), torch.uint8) for _ in range(8)]
    held.clear()
    assert recycler.free_bytes == 3 * LEAST_MAPPED_BYTES


def test_sizes_that_nobody_asks_for_any_more_make_room() -> None:
    recycler = Recycler(3 * LEAST_MAPPED_BYTES)
    held = [recycler.empty((LEAST_MAPPED_BYTES,), torch.uint8) for _ in range(3)]
    held.clear()
    other = recycler.empty((2, LEAST_MAPPED_BYTES), torch.uint8).fill_(7)
    del other
    again = recycler.empty((2, LEAST_MAPPED_BYTES), torch.uint8)
    assert int(again.min()) == 7, "fresh memory is zero"
    assert recycler.free_bytes <= 3 * LEAST_MAPPED_BYTES


def test_threads_never_get_the_same_memory() -> None:
    recycler = Recycler(4 * LEAST_MAPPED_BYTES)

    def work(number: int) -> None:
        for _ in range(50):
            mine = recycler.empty((LEAST_MAPPED_BYTES,), torch.uint8)
            mine.numpy()[:1000] = number
            assert (mine.numpy()[:1000] == number).all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


def test_small_tensors_and_pickles_work() -> None:
    recycler = pickle.loads(pickle.dumps(Recycler(100)))
    assert recycler.empty((2, 3), torch.float16).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_write_into_its_parents_tensors() -> None:
    tensor = Recycler(1 << 30).empty(SHAPE, torch.uint8).fill_(7)
    pixels = tensor.numpy()  # torch's threads do not survive a fork

    def write() -> None:
        pixels[:] = 1

    child = multiprocessing.get_context("fork").Process(target=write)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert int(tensor.min()) == 7
