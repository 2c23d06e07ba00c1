from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.config.files import load_config
from latentcache.encoders import resolve
from tests.tools.discrete_models import (
    save_cosmos,
    save_llamagen,
    save_magvit2,
    save_open_magvit2,
    save_var,
    save_videogpt,
    save_vqgan,
)

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs"
#: What saves a tiny model, the key of the config that says where it is, and the shape of one clip's ids.
EXAMPLES: dict[str, tuple[Callable[[Path], dict[str, Any]], str, tuple[int, ...]]] = {
    "cosmos_dv": (lambda folder: save_cosmos(folder, "DV8x16x16"), "model", (7, 40, 64)),
    "videogpt": (save_videogpt, "checkpoint", (4, 32, 32)),
    "vqgan": (save_vqgan, "checkpoint", (100, 64, 64)),  # the tiny one's stride is 4, not 16
    "llamagen": (save_llamagen, "checkpoint", (1, 64, 64)),  # likewise
    "open_magvit2_image": (
        functools.partial(save_open_magvit2, name="open_magvit2_image"),
        "checkpoint",
        (16, 64, 64),
    ),
    "var": (save_var, "checkpoint", (680,)),
    "open_magvit2": (save_open_magvit2, "checkpoint", (5, 16, 16)),
    "magvit2": (save_magvit2, "checkpoint", (5, 16, 16)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_gives_ids_of_the_shape_that_it_says(name: str, tmp_path: Path) -> None:
    if name == "magvit2":
        pytest.importorskip("magvit2_pytorch", reason="the extra magvit2 is not installed")
    config = load_config(str(CONFIGS / f"{name}.yaml"))
    save, key, shape = EXAMPLES[name]
    module, section = resolve({**config.encoder, key: save(tmp_path)[key]})
    spec = module.describe(section, dtype="bfloat16")
    assert isinstance(config.clips.frames, int)
    assert config.clips.size is not None
    assert spec.latent_shape(config.clips.frames, *config.clips.size) == shape
    assert hasattr(torch, spec.dtype)
    assert config.cache.dtype is None
