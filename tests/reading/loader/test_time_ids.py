"""SDXL's sizes in batches are those of diffusers' trainer for the same crop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import latentcache
from latentcache.errors import CacheError, ConfigError
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.reading.shard_rows import ShardRows
from tests.tools.caches import make_config, run_inline
from tests.tools.videos import moving_pattern

pytestmark = pytest.mark.usefixtures("kept_pools")

RESOLUTION = 64
#: Heights and widths whose resized pictures are whole, and whose crop is in the middle of them.
SIZES = ((96, 144), (200, 100), (64, 64), (128, 160), (32, 64))


@pytest.fixture(scope="module", name="url")
def url_fixture(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sdxl")
    corpus = folder / "corpus"
    corpus.mkdir()
    for height, width in SIZES:
        pixels = moving_pattern(1, height, width)[0]
        Image.fromarray(pixels).save(corpus / f"{height}x{width}.png")
    config = make_config(
        folder,
        corpus,
        str(folder / "cache"),
        clips={"frames": 1, "size": [RESOLUTION, RESOLUTION]},
    )
    status, printed = run_inline("precompute", config)
    assert status == 0, printed
    return str(folder / "cache")


def trainers(height: int, width: int) -> torch.Tensor:
    """`compute_time_ids` of diffusers' train_text_to_image_sdxl.py, with its `center_crop`."""
    short = min(height, width)
    resized = [int(RESOLUTION * side / short) for side in (height, width)]
    top, left = (max(0, round((side - RESOLUTION) / 2.0)) for side in resized)
    original_size, crop_top_left = (height, width), (top, left)
    target_size = (RESOLUTION, RESOLUTION)
    return torch.tensor(list(original_size + crop_top_left + target_size), dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"view": latentcache.Window(frames=1)}, {"columns": ["time_ids", "key"]}]
)
def test_sizes_are_those_of_diffusers_trainer(url: str, options: dict[str, Any]) -> None:
    seen = set()
    columns = {"columns": ["key", "time_ids"], **options}
    for batch in latentcache.LatentLoader(url, batch_size=3, **columns):
        assert batch["time_ids"].dtype == torch.float32
        assert batch["time_ids"].shape == (len(batch["key"]), 6)
        for key, found in zip(batch["key"], batch["time_ids"], strict=True):
            name = key.split(".")[0]
            height, width = map(int, name.split("x"))
            assert torch.equal(found, trainers(height, width))
            seen.add((height, width))
    assert seen == set(SIZES)


@pytest.mark.slow
def test_they_come_only_where_they_are_asked_for(url: str) -> None:
    assert "time_ids" not in next(iter(latentcache.LatentLoader(url, batch_size=2)))
    with pytest.raises(ConfigError, match="Did you mean 'time_ids'"):
        latentcache.LatentLoader(url, columns=["time_id"])


def test_a_clip_whose_crop_is_not_known_is_named() -> None:
    row = dict.fromkeys(SAMPLE_SCHEMA.names) | {
        "key": "v#0", "source": "v", "row": 0, "status": "ok", "height": 8, "width": 8,
        "offset": 0, "length": 1, "crc32c": 0,
    }  # fmt: skip
    table = SAMPLE_SCHEMA.empty_table().from_pylist([row], schema=SAMPLE_SCHEMA)
    with pytest.raises(CacheError, match="the clip v#0 has no display_height"):
        ShardRows("1x8x8", 0, table).column("time_ids", [0])
