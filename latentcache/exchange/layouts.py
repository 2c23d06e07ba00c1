"""The layouts by name. Each module has `export` and `find`, and is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol, cast

from latentcache.core.spec import LatentSpec
from latentcache.exchange.export import Export, Options
from latentcache.exchange.records import Found
from latentcache.reading.cache import Cache
from latentcache.storage.folder import Storage


class Layout(Protocol):
    """What a layout's module has."""

    def export(self, cache: Cache, options: Options) -> Export:
        """Return the files of a cache. Raises ConfigError where they could not be right."""
        ...

    def find(self, storage: Storage, spec: LatentSpec) -> Found:
        """Return the clips in a folder; no code of its files is run. Raises ConfigError, CorpusError."""
        ...


#: What each layout is for.
LAYOUTS: Mapping[str, str] = {
    "musubi": "musubi-tuner",
    "finetrainers": "finetrainers",
    "fastvideo": "FastVideo",
    "simpletuner": "SimpleTuner",
    "cogvideo": "CogVideo's finetuning",
    "rcm": "rCM",
    "memmap": "1xgpt",
    "webdataset": "WebDataset",
    "mds": "mosaicml-streaming",
    "hf": "Hugging Face's datasets",
}


def get_layout(name: str) -> Layout:
    """Return the module of a layout."""
    return cast(Layout, importlib.import_module(f"latentcache.exchange.{name}"))
