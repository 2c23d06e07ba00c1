"""What published trainers made of known inputs, and the examples that give the same from a cache.

Each `tests/data/trainers/<name>.npz` was made once by running the authors' own code, unchanged, on a CPU.
It holds the inputs, what their code gave, and `about`: repository, commit and what was called, as JSON.
Packages that their modules import and do not use for this were replaced by empty ones. No code is stored.

    genie           1xgpt's data set of ids, and its collator's labels
    maskgit         Halton-MaskGIT's data set of codes, and its masks by seed
    muse            what reaches MaskGit's transformer: ids, and those of the small picture
    fdm             `sample_all_masks` on clips of 30 frames, by seed
    teco            cuts of ids and actions
    perceiver_ar    crops with SOS, after the shift: whole ones, and those that may be short
    cogvideo        what reaches SAT's model of latents
    video_director  which latents of a trajectory null-text optimisation reads (its UNet is a stub)
    rcm             batches of its data loader, and the latents that its step encodes again (of a tiny Wan)
    videogpt, var   what reaches their transformers, of the pixels and weights of `tests.tools.published`
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import latentcache
from latentcache.core.dtypes import Array
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec
from latentcache.format.paths import QUANTISER
from latentcache.format.quantiser import sha256, to_bytes
from latentcache.format.shards.protocol import ArrayLayout
from tests.tools.caches import ROOT
from tests.tools.golden import DATA
from tests.tools.synthetic import Synthetic, make_spec, write_cache, write_manifest

FOLDER = DATA / "trainers"


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """One file. about: repository, commit, what was called."""

    about: Mapping[str, str]
    arrays: Mapping[str, torch.Tensor]

    @classmethod
    def load(cls, name: str) -> Trainer:
        with np.load(FOLDER / f"{name}.npz") as file:
            arrays = {key: torch.from_numpy(_signed(file[key])) for key in file if key != "about"}
            return cls(about=json.loads(str(file["about"])), arrays=arrays)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.arrays[name]


def _signed(array: Array) -> Array:
    return array.astype(np.int64) if array.dtype == np.uint16 else array


def run(name: str, cache: Synthetic | str, *args: Any, **options: Any) -> list[dict[str, Any]]:
    """Return the batches of an example of `examples/views`."""
    script = runpy.run_path(str(ROOT / "examples" / "views" / f"{name}.py"))
    url = cache if isinstance(cache, str) else cache.url
    return list(script["batches"](latentcache.open_cache(url), *args, **options))


def ids_spec(codes: int = 1 << 16, stride: int = 8) -> LatentSpec:
    """Return the spec of ids of single frames."""
    spec = make_spec("uint16", "ids")
    return replace(per_frame(spec, stride), ids=IdSpec(codebook_size=codes))


def per_frame(spec: LatentSpec, stride: int = 8) -> LatentSpec:
    """Return a spec as of an encoder of single frames."""
    return replace(spec, stride=(1, stride, stride), frame_rule=FrameRule(), pixel_layout="BCHW")


def cache_of(
    folder: Path, spec: LatentSpec | None = None, /, *, actions: bool = False, **clips: torch.Tensor
) -> Synthetic:
    """Write a cache of known ids or latents: of_TxHxW are the samples of a bucket, stacked.

    Clip n of a bucket has the key BUCKET-000n. spec: omitted, `ids_spec()`.
    """
    buckets = {name.removeprefix("of_"): stacked for name, stacked in clips.items()}

    def make(layout: ArrayLayout, _: np.random.Generator, n: int) -> Array:
        return buckets[layout.bucket.name][n].numpy().astype(layout.dtype)

    return write_cache(
        str(folder),
        spec=spec or ids_spec(),
        buckets={name: len(stacked) for name, stacked in buckets.items()},
        make=make,
        actions=actions,
        shard_clips=256,
    )


def with_quantiser(cache: Synthetic, tensors: Mapping[str, torch.Tensor]) -> Synthetic:
    """Put a quantiser into a cache."""
    data = to_bytes(tensors)
    manifest = replace(cache.manifest, quantiser_sha256=sha256(data))
    write_manifest(cache.storage, manifest)
    cache.storage.write(QUANTISER, data)
    return replace(cache, manifest=manifest)


def rows_of(batches: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    """Return each sample of some batches: its key, and tensors by name as nested lists."""
    return [
        (key, *(batch[name][n].tolist() for name in names))
        for batch in batches
        for n, key in enumerate(batch["key"])
    ]
