"""States through DataLoaders: after any batch, with prefetch in flight, for other ranks and workers."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

from latentcache.errors import CacheError
from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.synthetic import write_cache

#: More workers than this machine may have cores, and forks beside threads: both on purpose.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return open_cache(write_cache(str(tmp_path_factory.mktemp("cache"))).url)


def keys(batches: Any) -> list[list[str]]:
    return [batch["key"] for batch in batches]


def wrap(loader: LatentLoader, num_workers: int, **options: Any) -> StatefulDataLoader[Any]:
    context = "fork" if num_workers else None
    return StatefulDataLoader(
        loader,
        batch_size=None,
        num_workers=num_workers,
        multiprocessing_context=context,
        **options,
    )


def as_json(state: Any) -> Any:
    return json.loads(json.dumps(state))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.long), 3])
def test_a_stateful_dataloader_goes_on_with_the_next_batch(num_workers: int, cache: Cache) -> None:
    """After any number of batches, the end of the epoch included, and on into the next one."""
    reference = LatentLoader(cache, batch_size=2)
    expected = [keys(reference) for _ in range(2)]
    for num in range(0, len(expected[0]) + 1, 1 if num_workers == 0 else 3):
        data = wrap(LatentLoader(cache, batch_size=2), num_workers)
        running = iter(data)
        taken = keys(itertools.islice(running, num))
        if num == len(expected[0]):
            taken += keys(running)  # sees the end
        state = as_json(data.state_dict())
        loader = LatentLoader(cache, batch_size=2)
        resumed = wrap(loader, num_workers)
        resumed.load_state_dict(state)
        if num < len(expected[0]):
            assert taken + keys(resumed) == expected[0]
            assert loader.epoch == (0 if num_workers else 1)
        loader.set_epoch(1)
        assert keys(resumed) == expected[1]


@pytest.mark.slow
def test_a_state_taken_every_few_steps_counts_those_since(cache: Cache) -> None:
    expected = keys(LatentLoader(cache, batch_size=2))
    for num in range(1, 6):
        data = wrap(LatentLoader(cache, batch_size=2), 2, snapshot_every_n_steps=3)
        taken = keys(itertools.islice(data, num))
        state = as_json(data.state_dict())
        loader = LatentLoader(cache, batch_size=2)
        loader.load_state_dict(state)
        assert loader.state_dict()["batches"] == num
        assert taken + keys(loader) == expected


@pytest.mark.slow
def test_persistent_workers_go_on_with_the_epoch_of_their_state(cache: Cache) -> None:
    reference = LatentLoader(cache, batch_size=1)
    reference.set_epoch(4)
    expected = [keys(reference) for _ in range(2)]
    loader = LatentLoader(cache, batch_size=1)
    loader.set_epoch(4)
    data = wrap(loader, 2, persistent_workers=True)
    taken = keys(itertools.islice(data, 5))
    state = as_json(data.state_dict())
    again = LatentLoader(cache, batch_size=1)
    resumed = wrap(again, 2, persistent_workers=True)
    resumed.load_state_dict(state)
    assert taken + keys(resumed) == expected[0]
    assert again.epoch == 4
    again.set_epoch(5)
    assert keys(resumed) == expected[1]


def rest_of(loaders: list[LatentLoader], num_workers: int) -> Iterator[list[str]]:
    parts = [keys(wrap(loader, num_workers)) for loader in loaders]
    return (batch for step in itertools.zip_longest(*parts) for batch in step if batch)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    before=st.integers(1, 4),
    workers=st.integers(0, 2),
    num=st.integers(0, 4),
    after=st.integers(1, 4),
    workers_after=st.integers(0, 2),
)
def test_the_state_of_a_dataloader_fits_any_ranks_and_workers(
    before: int, workers: int, num: int, after: int, workers_after: int, cache: Cache
) -> None:
    def make(rank: int, world_size: int) -> LatentLoader:
        return LatentLoader(
            cache, batch_size=1, rank=rank, world_size=world_size, uneven="exact", seed=8
        )

    whole = keys(make(0, 1))
    states = []
    for rank in range(before):
        data = wrap(make(rank, before), workers)
        running = iter(data)
        assert keys(itertools.islice(running, num)) == whole[rank : num * before : before]
        states.append(make(rank, before))
        states[-1].load_state_dict(as_json(data.state_dict()))
        del running, data
    first = states[0].state_dict()
    assert all(loader.state_dict() == first for loader in states)
    loaders = [make(rank, after) for rank in range(after)]
    for loader in loaders:
        loader.load_state_dict(as_json(first))
    assert list(rest_of(loaders, workers_after)) == whole[num * before :]


@pytest.mark.slow
def test_the_state_at_the_end_of_an_epoch_is_the_start_of_the_next(cache: Cache) -> None:
    for num_workers in (0, 2):
        data = wrap(LatentLoader(cache, batch_size=2), num_workers)
        list(data)
        loader = LatentLoader(cache, batch_size=2)
        loader.load_state_dict(as_json(data.state_dict()))
        assert loader.epoch == 1
        assert loader.state_dict()["batches"] == 0


def refusal(data: StatefulDataLoader[Any]) -> str:
    try:
        iter(data)
    except CacheError as error:
        # Its traceback is a cycle around the iterator, which must go for its workers to end.
        return str(error.with_traceback(None))
    return "none"


@pytest.mark.slow
def test_a_dataloader_refuses_the_state_of_other_ranks(cache: Cache) -> None:
    data = wrap(LatentLoader(cache, batch_size=1), 2)
    list(itertools.islice(data, 3))
    state = data.state_dict()
    other = wrap(LatentLoader(cache, batch_size=1, world_size=2), 2)
    other.load_state_dict(state)
    assert re.search(r"give the state of the\s+whole DataLoader", refusal(other))


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"epoch": -1},
        {"batches": "3"},
        {"epoch": True},
        {"caches": []},
        {"caches": [None]},
        {"caches": [{}]},
        {"weights": [1.0]},
    ],
)
def test_a_state_that_makes_no_sense_is_refused(wrong: dict[str, Any], cache: Cache) -> None:
    loader = LatentLoader(cache, batch_size=2)
    state = {**loader.state_dict(), **wrong} if wrong else {}
    with pytest.raises(CacheError, match=r"no\s+place in an epoch|another order of batches"):
        loader.load_state_dict(state)
    assert len(keys(loader)) == len(loader)


def test_a_damaged_set_of_shards_is_refused(cache: Cache) -> None:
    loader = LatentLoader(cache, batch_size=2)
    state = loader.state_dict()
    for text in ("", "no base64!", "AAAA"):
        (saved,) = state["caches"]
        damaged = {**saved, "shards": text, "snapshot": "0" * 64}
        with pytest.raises(CacheError, match="set of shards is"):
            loader.load_state_dict({**state, "caches": [damaged]})


def test_a_state_of_fewer_ranks_counts_from_the_same_step_with_and_without_workers(
    tmp_path: Path,
) -> None:
    url = write_cache(str(tmp_path), buckets={"5x32x32": 64}).url
    options: dict[str, Any] = {"batch_size": 1, "bucket_run": 8}
    few = LatentLoader(url, world_size=2, **options)
    next(iter(few))
    many = [LatentLoader(url, world_size=8, **options) for _ in range(2)]
    for loader in many:
        loader.load_state_dict(few.state_dict())
    next(iter(many[0]))
    assert many[0].state_dict()["batches"] == 16
    assert many[1].state_dict(num_batches=1) == many[0].state_dict()
