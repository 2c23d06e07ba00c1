"""What the tests of jobs run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentcache.planning.planned import PlannedCache
from tests.tools.caches import make_config, make_corpus, run_job
from tests.tools.fields import CAPTIONS, cache_of


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("jobs") / "corpus")


@pytest.fixture(scope="module")
def clean(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache made in one go."""
    folder = tmp_path_factory.mktemp("clean")
    run_job("precompute", make_config(folder, corpus, str(folder / "cache")), status=3)
    return folder / "cache"


@pytest.fixture(name="cache", params=["zarr", "parquet"])
def cache_fixture(tmp_path: Path, request: pytest.FixtureRequest) -> PlannedCache:
    return cache_of(tmp_path, CAPTIONS, format=request.param)
