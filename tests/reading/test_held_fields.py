"""A cache that is held while others change its captions and its fields: states and captions go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentcache
from latentcache import FieldArray, LatentLoader
from latentcache.core.dtypes import as_numpy
from latentcache.planning.planned import PlannedCache
from latentcache.reading.cache import Cache
from tests.tools.caches import run_inline
from tests.tools.fields import add, cache_of, grow, padded, relabel, text_field

pytestmark = pytest.mark.usefixtures("kept_pools")

CAPTIONS = ["one", "two", "three", "four"]
CHANGED = {"v0#0": "other", "v3#0": "else"}


def opened(cache: PlannedCache) -> Cache:
    return latentcache.open_cache(cache.storage.url)


def check(found: Cache, **texts: str) -> None:
    """Check the captions of some clips, and that states are those of every clip's caption."""
    for name, text in texts.items():
        assert found.sample(f"{name}#0")["caption"] == text
    samples: list[dict[str, Any]] = [found[n] for n in range(len(found))]
    batches = LatentLoader(found, 1, fields=["umt5"])
    samples += [{name: batch[name][0] for name in ("caption", "umt5")} for batch in batches]
    assert len(samples) == 2 * len(found)
    for sample in samples:
        np.testing.assert_array_equal(as_numpy(sample["umt5"]), padded(sample["caption"]))


@pytest.mark.slow
def test_a_field_that_is_first_read_after_captions_changed_has_those_of_its_cache(
    tmp_path: Path,
) -> None:
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=2)
    add(cache, umt5=text_field())
    held = opened(cache)
    cache = relabel(cache, CHANGED)
    add(cache, "--update", umt5=text_field())
    check(held, v0="one", v3="four")
    check(held.newest(), v0="other", v3="else")


@pytest.mark.slow
def test_a_field_that_was_added_after_captions_changed_is_refused(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    held = opened(cache)
    cache = relabel(cache, CHANGED)
    add(cache, umt5=text_field())
    for read in (lambda: held.field("umt5"), lambda: LatentLoader(held, 1, fields=["umt5"])):
        with pytest.raises(latentcache.CacheError, match=r"umt5 was added after .* Open the cache"):
            read()
    check(held.newest(), v0="other", v3="else")


@pytest.mark.slow
def test_what_is_encoded_of_the_same_captions_after_a_cache_has_grown_is_read(
    tmp_path: Path,
) -> None:
    """A field that is added later, and a value that was damaged and is encoded again."""
    cache = cache_of(tmp_path, CAPTIONS, shard_clips=2)
    held, damaged = opened(cache), opened(cache)
    cache = grow(cache, ["new"])
    add(cache, umt5=text_field())
    check(held, v0="one", v3="four")
    folder = tmp_path / "cache/fields/umt5/000001/5x64x96/c/0"
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)
    run_inline("verify", cache.storage.url, "--repair")
    assert run_inline("resume", cache.storage.url, "--field", "umt5", "run.runner=local")[0] == 0
    check(damaged, v0="one", v3="four")


@pytest.mark.slow
def test_values_that_follow_from_no_column_are_read_whatever_has_changed(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, CAPTIONS)
    held, now = opened(cache), relabel(cache, CHANGED)
    arrays = {"number": FieldArray(shape=(1,), dtype="float32")}
    latentcache.write_field(
        now.storage.url,
        "number",
        lambda key: {"number": torch.tensor([float(key[1])])},
        arrays=arrays,
        recipe={},
    )
    assert [held[n]["number"].item() for n in range(len(held))] == [
        float(held[n]["key"][1]) for n in range(len(held))
    ]
