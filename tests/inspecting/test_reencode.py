"""Clips that are encoded again: how far two encodings are apart."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_dtypes import bfloat16

from latentcache.core.dtypes import Array
from latentcache.core.records import ClipId, ShardId
from latentcache.decoders import asking
from latentcache.inspecting.reencode import TOLERANCE, Repeated, difference, repeat
from latentcache.reading.cache import open_cache
from tests.tools.caches import make_config, make_corpus, run_inline
from tests.tools.planned import planned_from

pytestmark = pytest.mark.usefixtures("kept_pools")


def array(*values: float, dtype: object = np.float32) -> Array:
    return np.array(values, dtype)


@pytest.mark.parametrize(
    ("stored", "again", "expected"),
    [
        (array(3, 4), array(3, 4), 0.0),
        (array(3, 4), array(3, 3), 0.2),
        (array(3, 4), array(0, 0), 1.0),
        (array(0, 0), array(0, 0), 0.0),
        (array(0, 0), array(0, 1), float("inf")),
        (array(1, 2, 3, 4, dtype=np.int32), array(1, 0, 3, 0, dtype=np.int32), 0.5),
        (array(3, 4, dtype=bfloat16), array(3, 3, dtype=bfloat16), 0.2),
        (array(60000, dtype=np.float16), array(-60000, dtype=np.float16), 2.0),
        (array(float("nan")), array(float("nan")), 0.0),
    ],
)
def test_a_difference_is_in_parts_of_what_is_stored(
    stored: Array, again: Array, expected: float
) -> None:
    assert difference(stored, again) == pytest.approx(expected)


@pytest.mark.parametrize("again", [array(3, np.nan), array(3, np.inf)])
def test_what_is_not_finite_is_not_what_is_stored(again: Array) -> None:
    place = ClipId(shard=ShardId("5x8x8", 0), row=0)
    assert not Repeated(place=place, key="k", difference=difference(array(3, 4), again)).ok


def test_a_source_that_is_gone_says_nothing_about_the_cache() -> None:
    place = ClipId(shard=ShardId("5x8x8", 0), row=0)
    assert Repeated(place=place, key="k", problem="the file is not there").ok
    assert Repeated(place=place, key="k", difference=TOLERANCE).ok
    assert not Repeated(place=place, key="k", difference=2 * TOLERANCE).ok


@pytest.mark.slow
def test_a_clip_of_a_run_encodes_to_what_is_stored_while_its_source_is_there(
    tmp_path: Path,
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 2)
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    assert run_inline("precompute", config)[0] == 3
    planned = planned_from(config)
    bucket = next(name for name in planned.manifest.layouts() if name.startswith("5x"))
    first = ClipId(shard=ShardId(bucket, 0), row=0)
    device, cache = torch.device("cpu"), open_cache(str(tmp_path / "cache"))
    (same,) = repeat(planned, cache, [first], device)
    assert (same.place, same.difference, same.problem) == (first, 0.0, None)
    clip = planned.plan.shard(first.shard).clips[0]
    assert same.key == clip.key
    (tmp_path / "away").mkdir()
    Path(clip.url).rename(tmp_path / "away" / "v.mp4")
    (gone,) = repeat(planned, cache, [first], device)
    assert gone.ok
    assert gone.problem == f"no such file: {clip.url}"
    assert not gone.is_unread
    assert verified(planned.storage.url)[0] == 0  # of the others something is known


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a finished cache of the two videos in `corpus` beside it."""
    monkeypatch.setattr(asking, "TROUBLE_TRIES", 2)
    corpus = make_corpus(tmp_path / "corpus", 2)
    (corpus / "broken.mp4").unlink(missing_ok=True)
    config = make_config(tmp_path, corpus, str(tmp_path / "cache"))
    run_inline("precompute", config)
    return tmp_path / "cache"


def verified(cache: Path | str) -> tuple[int, str]:
    return run_inline("verify", cache, "--sample", 100)


@pytest.mark.slow
def test_a_sample_whose_storage_does_not_answer_is_no_success(cache: Path) -> None:
    corpus = cache.parent / "corpus"
    assert verified(cache)[0] == 0
    corpus.rename(cache.parent / "elsewhere")
    status, printed = verified(cache)
    assert status == 1
    assert re.search(
        r"(\d+) of \1 clips could not be read, for their storage did not answer.*again", printed
    )
    assert "precompute" in printed  # which notes where the corpus is now


@pytest.mark.slow
def test_a_sample_of_sources_that_are_all_gone_is_no_success(cache: Path) -> None:
    for file in (cache.parent / "corpus").rglob("v*.mp4"):
        file.unlink()
    for file in (cache.parent / "corpus").rglob("*.png"):
        file.unlink()
    (cache.parent / "corpus" / "a neighbour").write_bytes(b"")
    status, printed = verified(cache)
    assert status == 1
    assert "no such file" in printed
    assert "No clip was encoded again, so nothing is known of the latents" in printed
