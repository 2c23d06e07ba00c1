"""A cache's quantiser: made with the cache, sealed, and as the encoder's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import latentcache
from latentcache import encoders
from latentcache.config.files import load_config
from latentcache.copying.stored_rows import OpenCache, copy_quantiser
from latentcache.core.dtypes import Array
from latentcache.errors import CacheError, ConfigError, CorruptionError
from latentcache.format.manifest import read_all
from latentcache.format.paths import QUANTISER
from latentcache.format.quantiser import sha256, to_bytes
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.inspecting.leftovers import find_leftovers
from latentcache.inspecting.verify import verify
from latentcache.planning.create import open_or_new, take_step
from latentcache.planning.quantiser import quantiser_of
from latentcache.planning.recipe import resolve_encoder
from latentcache.planning.step import Step
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.views.multiscale import MultiScale
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config
from tests.tools.discrete_models import save_llamagen, save_var, save_videogpt, save_vqgan
from tests.tools.synthetic import Synthetic, make_spec, write_cache, write_manifest

SAVED = {
    "var": save_var,
    "vqgan": save_vqgan,
    "llamagen": save_llamagen,
    "videogpt": save_videogpt,
}


def build(kind: str, folder: Path) -> tuple[Any, Any, Any]:
    """Return an encoder, its module and its configuration."""
    module, config = encoders.resolve(SAVED[kind](folder))
    spec = module.describe(config, dtype="float32")
    return module.build(config, spec=spec, device=torch.device("cpu")), module, config


def cache_of(encoder: Any, tensors: Any, folder: Path) -> Synthetic:
    """Write a cache of random ids of an encoder, with its quantiser."""
    codes, size = encoder.spec.ids.codebook_size, encoder.spec.fixed_size or (32, 32)

    def make(layout: ArrayLayout, rng: np.random.Generator, _: int) -> Array:
        return rng.integers(0, codes, layout.shape, layout.dtype)

    frames = encoder.spec.frame_rule.minimum
    spec = dataclasses.replace(encoder.spec, encoder=make_spec().encoder)
    bucket = "x".join(map(str, (frames, *size)))
    cache = write_cache(str(folder / "cache"), spec=spec, buckets={bucket: 3}, make=make)
    data = to_bytes(tensors)
    manifest = dataclasses.replace(cache.manifest, quantiser_sha256=sha256(data))
    write_manifest(cache.storage, manifest)
    cache.storage.write(QUANTISER, data)
    return dataclasses.replace(cache, manifest=manifest)


@pytest.mark.slow
def test_a_var_transformers_input_comes_without_the_encoder(tmp_path: Path) -> None:
    encoder, module, config = build("var", tmp_path)
    cache = cache_of(encoder, module.quantiser(config), tmp_path)
    (batch,) = LatentLoader(cache.url, view=MultiScale(), shuffle=False)
    for ids, made in zip(batch["ids"], batch["teacher_input"], strict=True):
        assert torch.equal(made, encoder.teacher_input(ids[None])[0])
    quantiser = latentcache.open_cache(cache.url).quantiser()
    with pytest.raises(ConfigError, match="a teacher input is made of ids"):
        quantiser.teacher_input(batch["ids"][:, 1:])
    with pytest.raises(ConfigError, match="these go from 0 to 9999"):
        quantiser.vectors(torch.tensor([0, 9999]))
    with pytest.raises(ConfigError, match=r"whole numbers, not torch\.float32"):
        quantiser.vectors(torch.zeros(2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vqgan", "llamagen", "videogpt"])
def test_the_vectors_of_ids_are_those_that_the_encoder_decodes(kind: str, tmp_path: Path) -> None:
    encoder, module, config = build(kind, tmp_path)
    cache = cache_of(encoder, module.quantiser(config), tmp_path)
    opened = latentcache.open_cache(cache.url)
    ids = opened[0]["latents"]
    found = opened.quantiser().vectors(ids)
    network = encoder._tokenizer
    codes = network.codebook.embeddings if kind == "videogpt" else network.quantize.codes()
    assert torch.equal(found, codes[ids])
    with pytest.raises(ConfigError, match="no multi-scale ids"):
        opened.quantiser().teacher_input(ids)


def plan(folder: Path, encoder: dict[str, Any], size: list[int]) -> Storage:
    """Make a cache of an encoder, with nothing planned in it."""
    path = make_config(folder, folder, str(folder / "made"), clips={"frames": 1, "size": size})
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "encoder": encoder}))
    config = load_config(str(path), [])
    planned = open_or_new(config, *resolve_encoder(config))
    take_step(planned, Step(kind="plan"))
    return planned.storage


@pytest.mark.slow
def test_it_is_created_with_the_cache_and_again_where_it_is_missing(tmp_path: Path) -> None:
    raw = save_var(tmp_path)
    module, config = encoders.resolve(raw)
    size = list(module.describe(config, dtype="float32").fixed_size or ())
    storage = plan(tmp_path, raw, size)
    expected = to_bytes(module.quantiser(config))
    assert storage.read(QUANTISER) == expected
    manifest = read_all(storage)
    assert manifest.quantiser_sha256 == sha256(expected)
    storage.delete(QUANTISER)  # as where a run was stopped before it
    plan(tmp_path, raw, size)
    assert storage.read(QUANTISER) == expected
    copy = Storage(str(tmp_path / "copy"))
    copy_quantiser(OpenCache(storage=storage, manifest=manifest), copy, manifest)
    assert copy.read(QUANTISER) == expected


def test_tiles_and_batches_change_no_codebook(tmp_path: Path) -> None:
    raw = save_vqgan(tmp_path)
    path = make_config(tmp_path, tmp_path, str(tmp_path / "made"))
    found = []
    for more in ({}, {"batch": 4}, {"tiling": {"tile": [64, 64], "overlap": [16, 16]}}):
        config = load_config(str(path), [])
        found.append(quantiser_of(config.model_copy(update={"encoder": {**raw, **more}})))
    assert found[0] is not None
    assert found == [found[0]] * 3
    assert quantiser_of(load_config(str(path), [])) is None  # dct has none


@pytest.mark.slow
def test_damage_is_found(tmp_path: Path) -> None:
    encoder, module, config = build("var", tmp_path)
    cache = cache_of(encoder, module.quantiser(config), tmp_path)
    assert not find_leftovers(cache.storage.files(), cache.manifest, 0.0).foreign
    data = bytearray(cache.storage.read(QUANTISER))
    data[-3] ^= 4
    cache.storage.write(QUANTISER, bytes(data))
    opened = latentcache.open_cache(cache.url)
    with pytest.raises(CorruptionError, match=r"is not what cache\.json was written with"):
        opened.quantiser()
    assert QUANTISER in [problem.path for problem in verify(cache.storage).problems]
    cache.storage.delete(QUANTISER)
    with pytest.raises(CorruptionError, match="is missing"):
        opened.quantiser()


def test_a_cache_without_one_says_so(tmp_path: Path) -> None:
    cache = latentcache.open_cache(write_cache(str(tmp_path)).url)
    with pytest.raises(CacheError, match="has no quantiser"):
        cache.quantiser()
