"""A forked worker never ends what the trainer's process left as garbage: its threads are not there."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, get_worker_info

from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.synthetic import write_cache

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


class Ending:
    """Counts how often it is ended in each process, and is garbage that only a collection finds."""

    def __init__(self, ended: torch.Tensor) -> None:
        self.ended, self.itself = ended, self

    def __del__(self) -> None:
        self.ended[int(get_worker_info() is not None)] += 1


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    write_cache(str(tmp_path), buckets={"5x16x16": 6})
    return open_cache(str(tmp_path))


@pytest.fixture
def collected_late() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def collected(batch: Any) -> Any:
    gc.collect()
    return batch


@pytest.mark.usefixtures("collected_late")
@pytest.mark.parametrize("kind", ["loader", "dataset"])
def test_garbage_of_the_trainers_process_ends_only_there(kind: str, cache: Cache) -> None:
    ended = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
    data: Any = LatentLoader(cache, 2) if kind == "loader" else cache.dataset()
    Ending(ended)
    options: Any = {"num_workers": 1, "multiprocessing_context": "fork"}
    batches = list(DataLoader(data, batch_size=None, collate_fn=collected, **options))
    assert len(batches) == (3 if kind == "loader" else 6)
    assert ended.tolist() == [0, 0]
    gc.collect()
    assert ended.tolist() == [1, 0]


@pytest.mark.usefixtures("collected_late")
def test_a_worker_still_collects_its_own_garbage(cache: Cache) -> None:
    ended = torch.zeros(2, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def littered(batch: Any) -> Any:
        Ending(ended)
        return collected(batch)

    options: Any = {"num_workers": 1, "multiprocessing_context": "fork"}
    batches = list(DataLoader(LatentLoader(cache, 2), None, collate_fn=littered, **options))
    assert ended.tolist() == [0, len(batches)]
