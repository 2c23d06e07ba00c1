"""One cache of a Wan VAE's moments with a field of text states, for all that only reads it."""

from __future__ import annotations

import pytest

import latentcache
from latentcache.exchange import fastvideo
from tests.tools.exchange import make_cache
from tests.tools.fields import add, text_field

LENGTH = 24
CAPTIONS = ("a cat", "two dogs that run", None)


@pytest.fixture(scope="package", name="wan")
def wan_fixture(tmp_path_factory: pytest.TempPathFactory) -> latentcache.Cache:
    """Three sources of one clip each; the field `umt5` has all of them, `lacking` not the last one."""
    folder = tmp_path_factory.mktemp("wan")
    cache = make_cache(folder, captions=CAPTIONS)
    add(cache, umt5=text_field(length=LENGTH, missing="empty"))
    add(cache, lacking=text_field(length=LENGTH), status=3)
    return latentcache.open_cache(cache.storage.url)


@pytest.fixture
def fastvideo_takes_dct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let caches of the small encoder be exported for FastVideo, where texts are what matters."""
    monkeypatch.setitem(fastvideo._MODELS, "DCT", fastvideo._MODELS["AutoencoderKLWan"])
