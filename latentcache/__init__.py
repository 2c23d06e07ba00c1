"""latentcache: VAE latents of video and image corpora, computed once and streamed into training.

The read half is here: `open_cache`, `LatentLoader`, `LatentDataset`. The jobs write caches: `latentcache
precompute`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from latentcache.errors import (
    CacheError,
    ClipError,
    ConfigError,
    CorpusError,
    CorruptionError,
    EncoderError,
    GeometryError,
    LatentCacheError,
    RecipeMismatchError,
    ShardError,
    StorageError,
)

if TYPE_CHECKING:
    from latentcache.core.fields import FieldArray
    from latentcache.exchange.write_field import write_field
    from latentcache.reading.cache import Cache, open_cache
    from latentcache.reading.dataset import BucketBatchSampler, LatentDataset, collate, to_numpy
    from latentcache.reading.loader.loader import LatentLoader
    from latentcache.reading.masks import latent_masks
    from latentcache.reading.views.multiscale import MultiScale
    from latentcache.reading.views.protocol import Pick, Record
    from latentcache.reading.views.sparse import Sparse
    from latentcache.reading.views.tokens import Tokens
    from latentcache.reading.views.window import Window

__version__ = "0.1.0"
__all__ = [
    "BucketBatchSampler",
    "Cache",
    "CacheError",
    "ClipError",
    "ConfigError",
    "CorpusError",
    "CorruptionError",
    "EncoderError",
    "FieldArray",
    "GeometryError",
    "LatentCacheError",
    "LatentDataset",
    "LatentLoader",
    "MultiScale",
    "Pick",
    "RecipeMismatchError",
    "Record",
    "ShardError",
    "Sparse",
    "StorageError",
    "Tokens",
    "Window",
    "__version__",
    "collate",
    "latent_masks",
    "open_cache",
    "to_numpy",
    "write_field",
]

# Imported at first use: zarr-python imports this package for its data type and must not wait for torch.
_LAZY = {
    "Cache": "reading.cache",
    "open_cache": "reading.cache",
    "BucketBatchSampler": "reading.dataset",
    "LatentDataset": "reading.dataset",
    "collate": "reading.dataset",
    "to_numpy": "reading.dataset",
    "LatentLoader": "reading.loader.loader",
    "FieldArray": "core.fields",
    "latent_masks": "reading.masks",
    "write_field": "exchange.write_field",
    "MultiScale": "reading.views.multiscale",
    "Pick": "reading.views.protocol",
    "Record": "reading.views.protocol",
    "Sparse": "reading.views.sparse",
    "Tokens": "reading.views.tokens",
    "Window": "reading.views.window",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
