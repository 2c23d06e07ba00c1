"""Our own tokenizers against the numbers that their authors' code gave: see `tests.tools.published`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.encoders import resolve
from latentcache.encoders.inference import to_values
from tests.tools.discrete_models import (
    save_gumbel,
    save_llamagen,
    save_open_magvit2,
    save_var,
    save_videogpt,
    save_vqgan,
)
from tests.tools.published import Published

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TOKENIZERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "videogpt": save_videogpt,
    "videogpt_2x4x4": functools.partial(save_videogpt, name="videogpt_2x4x4"),
    "vqgan": save_vqgan,
    "gumbel": save_gumbel,
    "llamagen": save_llamagen,
    "var": save_var,
    "open_magvit2": save_open_magvit2,
    "open_magvit2_image": functools.partial(save_open_magvit2, name="open_magvit2_image"),
    "open_magvit2_1xgpt": functools.partial(save_open_magvit2, name="open_magvit2_1xgpt"),
}


@pytest.fixture(params=TOKENIZERS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Published, Any]:
    """Return the published numbers and the encoder with the same weights."""
    module, config = resolve(TOKENIZERS[request.param](tmp_path))
    spec = module.describe(config, dtype="bfloat16")
    return Published.load(request.param), module.build(config, spec=spec, device=CPU)


def test_ids_are_those_of_the_published_code(pair: tuple[Published, Any]) -> None:
    published, encoder = pair
    ids = encoder.encode(published.pixels)
    assert ids.dtype == torch.int64
    assert len(ids.unique()) > 5
    assert torch.equal(ids.flatten(), published.ids.long().flatten())


def test_what_is_quantised_is_that_of_the_published_code(pair: tuple[Published, Any]) -> None:
    published, encoder = pair
    network = encoder._tokenizer
    values = to_values(published.pixels, encoder._levels).transpose(1, 2).contiguous()
    if published.latents.ndim == 4:  # networks of images
        values = values.transpose(1, 2).flatten(0, 1)
    with torch.inference_mode():
        latents = network.to_latents(values)
    torch.testing.assert_close(latents, published.latents, rtol=1e-5, atol=2e-5)


def test_decoded_values_are_those_of_the_published_code(pair: tuple[Published, Any]) -> None:
    published, encoder = pair
    ids = encoder.encode(published.pixels)[:1]
    with torch.inference_mode():
        values = encoder._tokenizer.to_values(ids)
    if published.decoded.ndim == 4:
        values = values[:, :, 0]
    if encoder.spec.encoder == "var":
        values = values.clamp(-1, 1)  # as its own decode does
    torch.testing.assert_close(values, published.decoded, rtol=1e-4, atol=1e-4)


def test_decoded_pixels_are_the_values_in_levels(pair: tuple[Published, Any]) -> None:
    published, encoder = pair
    ids = encoder.encode(published.pixels)
    low, high = encoder.spec.pixel_range
    levels = ((published.decoded - low) / (high - low)).clamp(0, 1) * 255
    frame = levels[0, :, 0] if levels.ndim == 5 else levels[0]
    decoded = encoder.decode(ids.to(torch.int32))[0, 0].permute(2, 0, 1)
    assert (decoded - frame).abs().max() <= 0.51


def test_stored_ids_come_back_whole(pair: tuple[Published, Any]) -> None:
    published, encoder = pair
    ids = encoder.encode(published.pixels)
    stored = ids.to(getattr(torch, encoder.spec.dtype))
    assert encoder.spec.dtype == encoder.spec.ids.dtype
    assert torch.equal(encoder.decode(stored.long()), encoder.decode(ids))
