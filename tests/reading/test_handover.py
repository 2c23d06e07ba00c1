"""A DataLoader's worker that cannot hand over a batch: the trainer gets the error, not a shorter epoch."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from latentcache.errors import LatentCacheError
from latentcache.reading.cache import Cache, open_cache
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.synthetic import write_cache

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    write_cache(str(tmp_path), buckets={"5x32x32": 11})
    return open_cache(str(tmp_path))


#: Enough to read a clip.
SPARE = 8


def few_open_files(_: int) -> None:
    """Leave no room for the files through which a worker sends tensors."""
    limit = sum(1 for _ in Path("/proc/self/fd").iterdir()) + SPARE
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def small_shared_memory(_: int) -> None:
    """Leave no room for shared memory, which is a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))


def unsendable(batch: Any) -> Any:
    return lambda: batch


CASES = {
    "few open files": ("Too many open files", {"worker_init_fn": few_open_files}),
    "small shared memory": ("File too large", {"worker_init_fn": small_shared_memory}),
    "collated into what cannot be pickled": ("pickle", {"collate_fn": unsendable}),
}


@pytest.mark.parametrize("make", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("kind", ["loader", "dataset"])
@pytest.mark.parametrize(("said", "options"), CASES.values(), ids=CASES.keys())
def test_what_a_worker_cannot_send_is_raised(
    said: str, options: dict[str, Any], kind: str, make: Callable[..., Any], cache: Cache
) -> None:
    data = LatentLoader(cache, 2) if kind == "loader" else cache.dataset()
    loader = make(data, batch_size=None, num_workers=2, timeout=30, **options)
    with pytest.raises(
        LatentCacheError, match=f"could not hand over a batch: .*{said}.*--shm-size"
    ):
        list(loader)


def test_other_queues_of_the_process_are_as_they_were(
    cache: Cache, capfd: pytest.CaptureFixture[str]
) -> None:
    import multiprocessing

    queue = multiprocessing.get_context("fork").Queue()
    queue.put((0, unsendable(cache)))
    queue.close()
    queue.join_thread()
    assert "pickle" in capfd.readouterr().err
