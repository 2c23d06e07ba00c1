"""The examples of views give what the systems that they are named after take."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentcache
from latentcache import encoders
from latentcache.core.dtypes import Array
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.views.multiscale import MultiScale
from tests.tools.discrete_models import save_var
from tests.tools.exchange import make_cache, spec_of
from tests.tools.fields import add, text_field
from tests.tools.synthetic import Synthetic, make_spec, write_cache
from tests.tools.trainers import run

NAMES = ("one.mp4", "two.mp4", "three.mp4", "four.mp4")


def ids_of(folder: Path, bucket: str, num: int) -> Synthetic:
    url = str(folder / bucket)
    return write_cache(url, stored="ids", dtype="uint16", buckets={bucket: num}, by_frame=True)


def test_genie_takes_every_window_of_ids_as_a_sequence(tmp_path: Path) -> None:
    cache = ids_of(tmp_path, "9x16x16", 3)
    batches = run("genie", cache, frames=4)
    assert sum(len(batch["key"]) for batch in batches) == 3 * (9 - 4 + 1)
    found = {
        (key, tuple(ids))
        for b in batches
        for key, ids in zip(b["key"], b["labels"].tolist(), strict=True)
    }
    expected = {
        (key, tuple(array[start : start + 4].ravel().tolist()))
        for key, array in cache.arrays.items()
        for start in range(6)
    }
    assert found == expected


def test_perceiver_ar_takes_crops_with_positions_from_1(tmp_path: Path) -> None:
    for batch in run("perceiver_ar", ids_of(tmp_path, "4x16x16", 5), context=7):
        assert batch["events"].shape == batch["targets"].shape == (len(batch["key"]), 7)
        assert int(batch["event_idxs"].min()) >= 1  # no crop is short unless it is asked for
        assert torch.equal(batch["events"][:, 1:], batch["targets"][:, :-1])


def test_teco_takes_windows_with_their_actions(tmp_path: Path) -> None:
    options = {"stored": "ids", "dtype": "uint16", "by_frame": True, "actions": True}
    cache = write_cache(str(tmp_path), buckets={"9x16x16": 5}, **options)
    for batch in run("teco", cache, frames=4):
        assert batch["video"].shape == (len(batch["key"]), 4, 2, 2)
        assert torch.equal(batch["actions"], batch["frame_indices"])


def test_maskgit_takes_images(tmp_path: Path) -> None:
    for batch in run("maskgit", ids_of(tmp_path, "1x16x24", 5)):
        assert batch["code"].shape[1:] == (2, 3)
        kept = batch["masked"] != 1 << 16
        assert torch.equal(batch["masked"][kept], batch["code"][kept])


def test_fdm_takes_sparse_frames(tmp_path: Path) -> None:
    cache = write_cache(str(tmp_path), buckets={"30x16x16": 3, "9x16x16": 2}, by_frame=True)
    for batch in run("fdm", cache):
        used = (batch["obs_mask"] + batch["latent_mask"]).flatten(1)
        assert batch["latents"].shape[1:] == (20, 4, 2, 2)
        num = min(20, int(batch["bucket"].split("x")[0]))
        assert used.sum(1).tolist() == [num] * len(batch["key"])


@pytest.mark.slow
def test_multi_scale_ids_come_with_a_transformers_input(tmp_path: Path) -> None:
    module, config = encoders.resolve(save_var(tmp_path))
    spec = module.describe(config, dtype="float32")
    encoder: Any = module.build(config, spec=spec, device=torch.device("cpu"))
    assert spec.ids is not None
    assert spec.fixed_size is not None
    codes = spec.ids.codebook_size

    def make(layout: ArrayLayout, rng: np.random.Generator, _: int) -> Array:
        return rng.integers(0, codes, layout.shape, layout.dtype)

    bucket = "x".join(map(str, (1, *spec.fixed_size)))
    spec = dataclasses.replace(spec, encoder=make_spec().encoder)
    cache = write_cache(str(tmp_path / "var"), spec=spec, buckets={bucket: 3}, make=make)
    (batch,) = LatentLoader(cache.url, view=MultiScale(encoder.teacher_input), shuffle=False)
    expected = torch.from_numpy(np.stack(list(cache.arrays.values())).astype(np.int64))
    assert torch.equal(batch["ids"], expected)
    torch.testing.assert_close(batch["teacher_input"], encoder.teacher_input(expected))


@pytest.mark.slow
def test_rcm_takes_the_first_latent_frames_with_states_and_prompts(tmp_path: Path) -> None:
    captions = ("a cat", "two dogs", "rain", "snow")
    spec = spec_of(exactness="prefix_exact")
    made = make_cache(tmp_path, spec, captions=captions, names=NAMES)
    add(made, umt5=text_field(length=24))
    cache = latentcache.open_cache(made.storage.url)
    (batch,) = run("rcm", cache.storage.url, "umt5", latent_frames=1)
    for n, key in enumerate(batch["key"]):
        sample = cache[key]
        assert torch.equal(batch["latents"][n], sample["latents"][:, :1])
        assert torch.equal(batch["t5_text_embeddings"][n], sample["umt5"])
        assert batch["prompts"][n] == sample["caption"]
