"""Encoders of texts with images equal diffusers' pipelines, bit for bit, and refuse what is not theirs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from latentcache.encoders.text import (
    JOINT_FAMILIES,
    build_joint_encoder,
    describe_joint_encoder,
    describe_text_encoder,
)
from latentcache.errors import ClipError, ConfigError, EncoderError
from tests.encoders.text.test_references import assert_same, padded
from tests.tools.texts.captions import captions
from tests.tools.texts.checkpoints import Parts, save
from tests.tools.texts.joint import CASES, PARTS
from tests.tools.texts.references import pipeline

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
Saved = Callable[[str], tuple[Path, Parts]]
#: Heights and widths of images: smaller and larger than what they are resized to, tall, wide and odd.
SIZES = ((64, 96), (480, 832), (301, 190), (336, 336))


@pytest.fixture(scope="module")
def saved_joint(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    @functools.cache
    def get(name: str) -> tuple[Path, Parts]:
        parts = PARTS[name]()
        return save(tmp_path_factory.mktemp(name), parts), parts

    return get


def image(n: int) -> torch.Tensor:
    height, width = SIZES[n % len(SIZES)]
    generator = torch.Generator().manual_seed(n)
    small = torch.randint(256, (5, 7, 3), generator=generator, dtype=torch.uint8).numpy()
    large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return torch.frombuffer(bytearray(large.tobytes()), dtype=torch.uint8).view(height, width, 3)


class Pair:
    """A family's encoder and its reference, on the same files."""

    def __init__(self, name: str, model: Path, parts: Parts, dtype: str) -> None:
        self.case = CASES[name]
        raw = {**self.case.raw, "model": str(model), "dtype": dtype}
        self.ours: Any = build_joint_encoder(raw, CPU)
        self.theirs = pipeline(self.case, model, parts, getattr(torch, dtype))

    def compare(self, text: str, images: list[torch.Tensor]) -> Any:
        encoded = self.ours.encode(text, images)
        pictures = [Image.fromarray(one.numpy()) for one in images]
        with torch.inference_mode():
            expected = self.case.make(self.theirs, text, pictures)
        assert list(encoded.arrays) == list(expected) == list(self.ours.arrays)
        for name, array in self.ours.arrays.items():
            assert_same(padded(encoded.arrays[name], array), expected[name], array)
        assert encoded.tokens == len(encoded.arrays["states"])
        return encoded


def images_of(name: str, n: int) -> list[torch.Tensor]:
    """Return one image; of families that take several, one to three."""
    return [image(n + more) for more in range(1 + n % 3 if name.endswith("plus") else 1)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_arrays_are_the_references_bit_for_bit(saved_joint: Saved, name: str, dtype: str) -> None:
    pair = Pair(name, *saved_joint(CASES[name].parts), dtype)
    quick = pair.case.quick if dtype == "float32" else 1
    for n, text in enumerate(captions(quick)):
        lost = pair.compare(text, images_of(name, n)).lost_tokens
        assert (lost > 0) == (n == 3)  # the fourth is far too long


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_arrays_are_the_references_for_200_captions(
    saved_joint: Saved, name: str, dtype: str
) -> None:
    pair = Pair(name, *saved_joint(CASES[name].parts), dtype)
    for n, text in enumerate(captions(200)):
        pair.compare(text, images_of(name, n))


def test_every_family_has_a_reference() -> None:
    assert {case.raw["family"] for case in CASES.values()} == {*JOINT_FAMILIES}


def settings(saved: Saved, family: str, **changes: Any) -> dict[str, Any]:
    case = next(case for case in CASES.values() if case.raw["family"] == family)
    model, _ = saved(case.parts)
    return {**case.raw, "model": str(model), "dtype": "float32", **changes}


@pytest.mark.parametrize("family", JOINT_FAMILIES)
def test_a_description_is_that_of_the_built_encoder(saved_joint: Saved, family: str) -> None:
    raw = settings(saved_joint, family)
    built: Any = build_joint_encoder(raw, CPU)
    described = describe_joint_encoder(raw, 1)
    assert tuple(described) == (built.arrays, built.recipe())
    assert json.loads(json.dumps(described.recipe)) == described.recipe
    assert raw["model"] not in json.dumps(described.recipe)


def test_a_text_that_holds_an_images_mark_fails_its_clip(saved_joint: Saved) -> None:
    encoder = build_joint_encoder(settings(saved_joint, "hunyuan_video_i2v"), CPU)
    with pytest.raises(ClipError, match="<image>, which stands for an image") as caught:
        encoder.encode("a fox <image>", [image(0)])
    assert caught.value.reason == "image_mark"


@pytest.mark.parametrize(
    ("family", "num", "message"),
    [("qwen_image_edit", 2, "takes 1, and 2 are given"), ("qwen_image_edit_plus", 0, "1 or more")],
)
def test_another_number_of_images_is_refused(
    saved_joint: Saved, family: str, num: int, message: str
) -> None:
    raw = settings(saved_joint, family)
    with pytest.raises(ConfigError, match=message):
        describe_joint_encoder(raw, num)


@pytest.mark.parametrize("pixels", [torch.zeros(8, 8, 3), torch.zeros(8, 8, dtype=torch.uint8)])
def test_other_pixels_are_refused(saved_joint: Saved, pixels: torch.Tensor) -> None:
    encoder = build_joint_encoder(settings(saved_joint, "hunyuan_video_i2v"), CPU)
    with pytest.raises(EncoderError, match=r"takes images uint8 \[H, W, 3\]"):
        encoder.encode("a fox", [pixels])


def test_a_model_that_does_not_read_its_image_is_refused(tmp_path: Path) -> None:
    model = save(tmp_path, PARTS["hunyuan_video_i2v"]())
    path = model / "text_encoder/model.safetensors"
    tensors = load_file(path)
    (name,) = [name for name in tensors if "projector.linear_2.weight" in name]
    tensors[name].zero_()
    save_file(tensors, path, metadata={"format": "pt"})
    raw = {"family": "hunyuan_video_i2v", "interleave": 2, "model": str(model), "dtype": "float32"}
    with pytest.raises(EncoderError, match="two different images give the same states"):
        build_joint_encoder(raw, CPU)


@pytest.mark.parametrize(
    ("family", "num", "length"), [("qwen_image_edit", 1, 1024), ("qwen_image_edit_plus", 3, 500)]
)
def test_a_length_that_images_fill_is_refused(
    saved_joint: Saved, family: str, num: int, length: int
) -> None:
    """The default of `encode_prompt`, 1024, is one: it counts no images."""
    raw = settings(saved_joint, family, length=length)
    taken = r"\d+ tokens of 1 image" if num == 1 else r"\d+ tokens of 3 images"
    with pytest.raises(ConfigError, match=f"length: {length} leaves no room for the text: {taken}"):
        describe_joint_encoder(raw, num)


def test_a_length_that_the_image_fills_is_no_damage(saved_joint: Saved) -> None:
    with pytest.raises(ConfigError, match="length: 1024 leaves no room"):
        build_joint_encoder(settings(saved_joint, "qwen_image_edit", length=1024), CPU)


@pytest.mark.parametrize("length", [1, 4])
def test_a_length_without_room_for_the_answers_header_is_refused(
    saved_joint: Saved, length: int
) -> None:
    with pytest.raises(ConfigError, match="length: should be greater than 4"):
        describe_joint_encoder(settings(saved_joint, "hunyuan_video_i2v", length=length), 1)


def test_families_of_the_other_kind_are_told(saved_joint: Saved) -> None:
    with pytest.raises(ConfigError, match="use kind: joint"):
        describe_text_encoder(settings(saved_joint, "qwen_image_edit"))
    with pytest.raises(ConfigError, match="Did you mean 'qwen_image_edit'"):
        describe_joint_encoder(
            settings(saved_joint, "qwen_image_edit") | {"family": "qwen_image_edti"}, 1
        )
