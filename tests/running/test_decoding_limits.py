"""The limits that a configuration sets hold wherever its corpus is decoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentcache.config.sections import Config
from latentcache.decoders.pool import DecodePool
from latentcache.errors import ClipError
from latentcache.format.snapshot import read_index
from latentcache.inspecting.choose import find_places, sample_places
from latentcache.inspecting.clip_reader import PairReader
from latentcache.inspecting.reencode import repeat
from latentcache.planning.planned import PlannedCache, reopen_cache
from latentcache.reading.cache import open_cache
from tests.tools.caches import make_config, make_corpus, run_inline

pytestmark = pytest.mark.slow

SAID = "a frame is 96 x 64, and corpus.max_pixels allows 6143 pixels"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PlannedCache:
    """A complete cache whose limit is lower now than when it was made."""
    folder = tmp_path_factory.mktemp("limits")
    corpus = make_corpus(folder / "corpus", 1, frames=5)
    status, printed = run_inline("precompute", make_config(folder, corpus, str(folder / "cache")))
    assert status == 3, printed
    prepared = reopen_cache(str(folder / "cache"), {})
    return replace(prepared, config=limited(prepared.config))


def limited(config: Config) -> Config:
    corpus = config.corpus.model_copy(update={"max_pixels": 64 * 96 - 1})
    return config.model_copy(update={"corpus": corpus})


def test_a_pool_for_a_run_has_the_runs_limits(prepared: PlannedCache) -> None:
    path = str(Path(prepared.config.corpus.source) / "v0.mp4")
    with (
        DecodePool.for_run(prepared.config, num_processes=1, num_buffers=1) as pool,
        pytest.raises(ClipError, match=SAID),
    ):
        pool.probe(path, "video").result()


def test_clips_that_are_shown_are_decoded_within_the_limits(prepared: PlannedCache) -> None:
    cache = open_cache(prepared.storage.url)
    (place,) = find_places(cache, ["v0.mp4#0"])
    with PairReader(cache, prepared.config) as reader:
        assert reader.pair(place).problem == f"too_large: {SAID}"


def test_clips_that_are_encoded_again_are_decoded_within_the_limits(prepared: PlannedCache) -> None:
    cache = open_cache(prepared.storage.url)
    places = sample_places(cache, read_index(prepared.storage), 2, seed=0)
    problems = [found.problem for found in repeat(prepared, cache, places, torch.device("cpu"))]
    assert SAID in problems
