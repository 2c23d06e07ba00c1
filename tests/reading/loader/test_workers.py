"""A DataLoader's workers on object storage, however they start and whatever the parent has read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.s3 import S3, s3_fixture, s3_server_fixture  # noqa: F401 fixtures
from tests.tools.synthetic import write_cache

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def cache(s3: S3) -> Cache:
    written = write_cache(f"{s3.url}/cache", options=s3.options, buckets={"5x32x32": 11})
    return open_cache(written.url, s3.options)


def make(cache: Cache) -> LatentLoader:
    return LatentLoader(cache, batch_size=2, num_threads=3)


def through(loader: Any, start_method: str) -> list[Any]:
    num_workers = 2 if start_method == "fork" else 1  # the others import everything again
    return list(
        DataLoader(
            loader, batch_size=None, num_workers=num_workers, multiprocessing_context=start_method
        )
    )


def check(found: list[Any], expected: list[Any]) -> None:
    assert [b["key"] for b in found] == [b["key"] for b in expected]
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(batch["latents"], other["latents"])


@pytest.mark.parametrize(
    "start_method", ["fork", "spawn", pytest.param("forkserver", marks=pytest.mark.long)]
)
def test_workers_read_after_the_parent_has(start_method: str, cache: Cache) -> None:
    loader = make(cache)
    expected = list(loader)
    loader.set_epoch(0)
    check(through(loader, start_method), expected)
    loader.set_epoch(0)
    check(list(loader), expected)


def test_a_fork_amid_an_iteration(cache: Cache) -> None:
    loader = make(cache)
    expected = list(loader)
    running = iter(make(cache))  # its threads and its event loop are at work
    first = next(running)
    check(through(make(cache), "fork"), expected)
    check([first, *running], expected)


def test_workers_of_a_map_style_cache(cache: Cache) -> None:
    expected = cache.__getitems__(range(len(cache)))
    options = {"num_workers": 2, "multiprocessing_context": "fork", "collate_fn": list}
    data = DataLoader(cache, batch_size=4, **options)
    found = [sample for batch in data for sample in batch]
    assert [s["key"] for s in found] == [s["key"] for s in expected]
    for sample, other in zip(found, expected, strict=True):
        assert torch.equal(sample["latents"], other["latents"])
