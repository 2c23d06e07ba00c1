"""Fields of thousands of clips: three added beside a trainer, few captions changed, rates of many keys."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import latentcache
from latentcache.core.dtypes import as_numpy
from latentcache.planning.planned import PlannedCache
from latentcache.reading.loader.fields import FieldOptions
from tests.tools.caches import read_files
from tests.tools.encoders.hashed_text import COUNTED
from tests.tools.fields import add, cache_of, padded, relabel, text_field

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

NUM_CLIPS, NUM_CHANGED, NUM_KEYS = 2_000, 7, 1_000_000


@pytest.fixture(name="cache")
def cache_fixture(tmp_path: Path) -> PlannedCache:
    return cache_of(tmp_path, [f"caption {n}" for n in range(NUM_CLIPS)], shard_clips=64)


def test_three_fields_are_added_beside_a_trainer(cache: PlannedCache) -> None:
    url = cache.storage.url
    options = {"batch_size": 8, "seed": 5}
    expected = [(b["key"], b["latents"]) for b in latentcache.LatentLoader(url, **options)]
    before = read_files(Path(url))
    stream, found = iter(latentcache.LatentLoader(url, prefetch_bytes=1, **options)), []
    for name in ("one", "two", "three"):
        found += itertools.islice(stream, 20)
        add(cache, **{name: text_field(pooled=name == "two")})
    found += stream
    assert len(found) == len(expected)
    for (keys, latents), batch in zip(expected, found, strict=True):
        assert batch["key"] == keys
        assert torch.equal(batch["latents"], latents)
    after = read_files(Path(url))
    assert {n: d for n, d in after.items() if not n.startswith("fields/")} == before


def test_changed_captions_and_no_others_are_encoded(
    cache: PlannedCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = tmp_path / "texts"
    monkeypatch.setenv(COUNTED, str(counted))
    add(cache, umt5=text_field())
    assert len(counted.read_text().split("\n")) >= NUM_CLIPS
    counted.write_text("")
    step = NUM_CLIPS // NUM_CHANGED
    changed = {f"v{n * step}#0": f"other {n}" for n in range(NUM_CHANGED)}
    relabel(cache, changed)
    add(cache, "--update", umt5=text_field())
    encoded = [text for text in counted.read_text().splitlines() if text]  # but for the null
    assert sorted(encoded) == sorted(changed.values())
    opened = latentcache.open_cache(cache.storage.url)
    for key, text in [*changed.items(), ("v1#0", "caption 1")]:
        np.testing.assert_array_equal(as_numpy(opened[key]["umt5"]), padded(text))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_as_many_captions_are_dropped_as_asked_for(rate: float) -> None:
    options = FieldOptions(names=("text",), seed=3, caption_dropout=rate)
    num_dropped = sum(options.drops(0, f"v{n}#0") for n in range(NUM_KEYS))
    sigma = math.sqrt(NUM_KEYS * rate * (1 - rate))
    assert abs(num_dropped - NUM_KEYS * rate) < 3 * sigma


def test_each_of_several_captions_is_chosen_equally_often() -> None:
    options = FieldOptions(names=("text",), seed=3, caption_dropout=0.0)
    num = 5
    found = Counter(options.choice(0, f"v{n}#0") % num for n in range(NUM_KEYS))
    sigma = math.sqrt(NUM_KEYS / num * (1 - 1 / num))
    assert all(abs(found[n] - NUM_KEYS / num) < 3 * sigma for n in range(num))
