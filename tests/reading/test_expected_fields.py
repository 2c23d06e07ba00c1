"""What a reader expects of fields: given in any way that Python has, and refused in one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import latentcache
from latentcache.errors import CacheError, ConfigError
from tests.tools.fields import add, cache_of, text_field


@pytest.fixture(scope="module", name="url")
def url_fixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    cache = cache_of(tmp_path_factory.mktemp("expected"), ["one", "two", "three"])
    add(cache, umt5=text_field())
    return cache.storage.url


@pytest.mark.parametrize(
    "expect",
    [
        {"fields": None},
        {"fields": {"umt5": None}},
        {"fields": {"umt5": {"length": np.int64(32), "shape": (32, 8), "dtype": torch.bfloat16}}},
        {"dtype": torch.bfloat16, "stride": np.array([4, 8, 8]), "channels": np.int32(16)},
    ],
)
def test_values_of_torch_and_numpy_are_compared_by_what_they_say(url: str, expect: Any) -> None:
    assert len(latentcache.open_cache(url, expect=expect)) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["umt5"], "expect['fields'] is ['umt5']: give values by name, such as {'umt5': {'length'"),
        ("umt5", "expect['fields'] is 'umt5': give values by name"),
        ({"umt5": 512}, "expect['fields']['umt5'] is 512: give values by name, such as {'length'"),
        ({"umt5": ["length"]}, "expect['fields']['umt5'] is ['length']: give values by name"),
    ],
)
def test_what_is_no_expectation_is_said(url: str, fields: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        latentcache.open_cache(url, expect={"fields": fields})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        ({"length": 512}, "\n  length: 512 expected, 32 in the cache\n"),
        ({"length": "32"}, '\n  length: "32" expected, 32 in the cache\n'),
        ({"dtype": torch.float32}, '\n  dtype: "float32" expected, "bfloat16" in the cache\n'),
    ],
)
def test_both_values_are_said(url: str, wanted: dict[str, Any], line: str) -> None:
    with pytest.raises(CacheError) as caught:
        latentcache.open_cache(url, expect={"fields": {"umt5": wanted}})
    assert line in str(caught.value)
