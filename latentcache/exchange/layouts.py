"""The layouts by name. Each module has `export` and `find`, and is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol, cast

from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError
from latentcache.exchange.export import Export, Options
from latentcache.exchange.records import Found
from latentcache.exchange.whole import exported
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

#: Where an import looks for the clips of each layout, for messages: "they are ...".
LOOKS_FOR: Mapping[str, str] = {
    "musubi": "files such as NAME_00000-081_0480x0832_wan.safetensors, directly in the folder",
    "finetrainers": "files finetrainers-precomputed-data/latent-NUMBER.pt below the folder",
    "fastvideo": "rows of Parquet files (*.parquet) at any depth",
    "simpletuner": "torch files (*.pt) at any depth",
    "cogvideo": "files cache/video_latent/MODEL/BUCKET/NAME.safetensors below the folder",
    "rcm": "NAME.latent.pt in tar files directly in the folder",
    "memmap": "in video.bin, with segment_ids.bin and metadata.json beside it",
    "webdataset": "NAME.latents.pth in tar files directly in the folder",
    "mds": "in the shards that index.json lists",
    "hf": "rows of Parquet files data/*.parquet below the folder",
}

#: Layouts that take what an option says.
_TAKEN_BY = {
    "--field": ("webdataset", "mds", "hf"),
    "--model": ("cogvideo",),
    "--text": tuple(name for name in LAYOUTS if name != "memmap"),
    "--dtype": tuple(name for name in LAYOUTS if name != "memmap"),
}


def check_options(name: str, options: Options) -> None:
    """Raise ConfigError for an option that a layout has no use for."""
    given = {
        "--field": options.fields,
        "--model": options.model,
        "--text": options.text,
        "--dtype": options.dtype,
    }
    for option, value in given.items():
        if value and name not in _TAKEN_BY[option]:
            raise ConfigError(
                f"{option}: {LAYOUTS[name]} has no place for it; it is for {', '.join(_TAKEN_BY[option])}. "
                "Nothing was written. Leave it out."
            )


def get_layout(name: str) -> Layout:
    """Return a layout; what an export wrote must be whole where it finds clips."""
    return _Checked(cast(Layout, importlib.import_module(f"latentcache.exchange.{name}")))


class _Checked:
    def __init__(self, module: Layout) -> None:
        self.export, self._find = module.export, module.find

    def find(self, storage: Storage, spec: LatentSpec) -> Found:
        """Return the clips in a folder; see `Layout`."""
        whole = exported(storage)
        found = self._find(storage, spec)
        return found if whole is None else whole.checked(found)
