"""Image towers equal what diffusers' pipelines give, bit for bit, and refuse what is not theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file

from latentcache.encoders.towers import TOWERS, build_image_tower, describe_image_tower
from latentcache.errors import ClipError, ConfigError, EncoderError
from tests.tools.texts.towers import REFERENCES, TINY, siglip, wan

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
#: Heights and widths of sources: smaller, larger, wide, tall, and odd.
SIZES = ((16, 16), (90, 160), (160, 90), (64, 64), (7, 301))


def pixels(num: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(256, (num, height, width, 3), generator=generator, dtype=torch.uint8)


def settings(family: str, model: Path, **changes: Any) -> dict[str, Any]:
    return {"family": family, "model": str(model), "dtype": "float32", **changes}


def test_every_tower_has_a_reference() -> None:
    assert {*TINY} == {*REFERENCES} == {*TOWERS}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "frames"), [("wan_clip", "first"), ("wan_clip", "first_last"), ("siglip", "first")]
)
def test_states_are_the_references_bit_for_bit(
    tmp_path: Path, family: str, frames: str, dtype: str
) -> None:
    model = TINY[family](tmp_path)
    tower = build_image_tower(settings(family, model, frames=frames, dtype=dtype), CPU)
    for height, width in SIZES:
        clip = pixels(tower.num_frames, height, width)
        images = [Image.fromarray(frame.numpy()) for frame in clip]
        with torch.inference_mode():
            expected = REFERENCES[family](model, images, getattr(torch, dtype))
        found = tower.encode(clip)["states"]
        assert found.shape == tower.arrays["states"]
        assert torch.equal(found, expected.flatten(0, 1))


@pytest.mark.parametrize("family", TOWERS)
def test_a_description_is_that_of_the_built_tower(tmp_path: Path, family: str) -> None:
    raw = settings(family, TINY[family](tmp_path))
    tower = build_image_tower(raw, CPU)
    described = describe_image_tower(raw)
    assert described == (tower.arrays, tower.recipe())
    assert json.loads(json.dumps(described.recipe)) == described.recipe
    assert str(tmp_path) not in json.dumps(described.recipe)


def test_the_processor_is_part_of_the_recipe(tmp_path: Path) -> None:
    raw = settings("wan_clip", wan(tmp_path))
    before = describe_image_tower(raw).recipe
    assert before["processor"]["class"] == "CLIPImageProcessorPil"
    assert before["processor"]["backend"] == "pillow"
    path = tmp_path / "image_processor/preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resample": 2}))
    assert describe_image_tower(raw).recipe != before


def test_another_models_processor_is_refused(tmp_path: Path) -> None:
    folder = wan(tmp_path) / "image_processor"
    hf.SiglipImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    with pytest.raises(
        ConfigError, match=r"image_processor: .* and the model takes \[1, 3, 56, 56\]"
    ):
        describe_image_tower(settings("wan_clip", tmp_path))


def test_another_class_of_model_is_refused(tmp_path: Path) -> None:
    siglip(tmp_path)
    raw = settings("wan_clip", tmp_path)
    with pytest.raises(ConfigError, match="holds a SiglipVisionModel"):
        describe_image_tower(raw)


def test_a_model_that_does_not_read_its_image_is_refused(tmp_path: Path) -> None:
    path = siglip(tmp_path) / "image_encoder/model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("post_layernorm.weight"))
    tensors[name].zero_()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="two different images give the same states"):
        build_image_tower(settings("siglip", tmp_path), CPU)


def test_weights_that_lack_tensors_are_refused(tmp_path: Path) -> None:
    path = wan(tmp_path) / "image_encoder/model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "layers.1.mlp.fc1.weight" in name)]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="1 missing keys"):
        describe_image_tower(settings("wan_clip", tmp_path))


def test_states_that_are_not_finite_fail_their_clip(tmp_path: Path) -> None:
    tower: Any = build_image_tower(settings("wan_clip", wan(tmp_path)), CPU)
    for weight in tower._model.parameters():
        weight.fill_(torch.inf)
    with pytest.raises(ClipError, match="NaN or infinity") as caught:
        tower.encode(pixels(1, 20, 20))
    assert caught.value.reason == "non_finite"


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 8, 8, 3),
    ],
)
def test_other_pixels_are_refused(tmp_path: Path, frames: torch.Tensor) -> None:
    tower = build_image_tower(settings("wan_clip", wan(tmp_path)), CPU)
    with pytest.raises(EncoderError, match=r"encodes uint8 pixels \[1, H, W, 3\]"):
        tower.encode(frames)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"family": "clip"}, "Did you mean 'wan_clip'|unknown tower 'clip'"),
        ({"family": "siglip", "model": "x", "dtype": "float32", "frames": "first_last"}, "frames"),
    ],
)
def test_settings_that_are_wrong_are_told(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe_image_tower(raw)
