"""What `resume` refuses to change in a cache that is there, however it is given."""

from __future__ import annotations

import pytest

from latentcache.errors import ConfigError
from latentcache.planning.planned import _check_overrides


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("cache.format=parquet", "cache.format"),
        ("cache={format: parquet, url: elsewhere}", "cache.url"),
        ("cache={format: parquet}", "cache.format"),
        ("cache.compression.level=1", "cache.compression"),
        ("corpus={source: elsewhere}", "corpus.source"),
        ("corpus.columns.video=path", "corpus.columns"),
    ],
)
def test_what_cannot_take_effect_is_refused(override: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} cannot be changed in a cache that is there: "):
        _check_overrides(["run.workers=2", override])


def test_what_can_take_effect_is_taken() -> None:
    _check_overrides(
        ["run={workers: 2}", "cache.storage_options.anon=true", "corpus.storage_options={a: 1}"]
    )
