"""What every encoder promises (see `interfaces.Encoder`). A new one is one more case below."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from latentcache import posterior
from latentcache.encoders import KINDS, resolve
from latentcache.errors import EncoderError, GeometryError
from latentcache.records import LatentSpec
from tests.tiny_models import save_cogvideox, save_wan, save_wan22

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """An encoder: how to configure it in a folder, and legal and illegal numbers of frames.

    rounding: convolutions block their sums by the shape of the whole input, so that a clip in a
    batch is the clip alone, and a prefix the same prefix of more, up to a few units in the last
    place (latents are about 1 here); 0 where each clip and group is computed on its own.
    """

    name: str
    raw: Callable[[Path], dict[str, Any]]
    frames: tuple[int, ...]
    illegal_frames: dict[int, str]
    rounding: float = 1e-5


def _diffusers(save: Callable[[Path], Path], folder: Path) -> dict[str, Any]:
    save(folder)
    return {
        "kind": "diffusers_video",
        "model": str(folder),
        "dtype": "float32",
        "store": "moments",
    }


WAN_ILLEGAL = {3: "1 or 5", 8: "5 or 9", 82: "81 or 85"}
CASES = [
    Case(
        name="dct",
        raw=lambda _: {"kind": "dct", "store": "moments"},
        frames=(1, 5, 13),
        illegal_frames=WAN_ILLEGAL,
        rounding=0.0,
    ),
    Case(
        name="wan",
        raw=functools.partial(_diffusers, save_wan),
        frames=(1, 5, 13),
        illegal_frames=WAN_ILLEGAL,
    ),
    Case(
        name="wan22",
        raw=functools.partial(_diffusers, save_wan22),
        frames=(1, 5, 13),
        illegal_frames=WAN_ILLEGAL,
    ),
    Case(
        name="cogvideox",
        raw=functools.partial(_diffusers, save_cogvideox),
        frames=(1, 8, 9, 16, 17),
        illegal_frames={2: "1 or 8", 12: "9 or 16", 50: "49 or 56"},
    ),
]


@dataclass(frozen=True)
class Built:
    case: Case
    module: Any
    config: Any
    spec: LatentSpec
    encoder: Any

    def pixels(
        self, frames: int, *, batch: int = 1, rows: int = 2, columns: int = 3
    ) -> torch.Tensor:
        _, sh, sw = self.spec.stride
        generator = torch.Generator().manual_seed(frames)
        shape = (batch, frames, rows * sh, columns * sw, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case: Case = request.param
    module, config = resolve(case.raw(tmp_path_factory.mktemp(case.name)))
    spec = module.describe(config, dtype="float32")
    return Built(case, module, config, spec, module.build(config, spec=spec, device=CPU))


def test_every_kind_has_a_case(tmp_path: Path) -> None:
    assert {case.raw(tmp_path / case.name)["kind"] for case in CASES} == set(KINDS)


def test_built_spec_is_the_described_one(built: Built) -> None:
    assert built.encoder.spec == built.module.describe(built.config, dtype="float32")


def test_spec_survives_json(built: Built) -> None:
    assert LatentSpec.from_json(json.loads(json.dumps(built.spec.to_json()))) == built.spec


def test_identity_is_stable_json_without_paths(built: Built) -> None:
    identity = json.dumps(built.module.identity(built.config))
    assert json.dumps(built.module.identity(built.config)) == identity
    assert getattr(built.config, "model", "\0") not in identity


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (3, 2)])
def test_moments_have_the_shape_of_the_spec(built: Built, rows: int, columns: int) -> None:
    for frames in built.case.frames:
        pixels = built.pixels(frames, batch=2, rows=rows, columns=columns)
        moments = built.encoder.encode(pixels)
        assert tuple(moments.shape[1:]) == built.spec.latent_shape(*pixels.shape[1:4])
        assert moments.dtype == getattr(torch, built.spec.compute_dtype)
        assert torch.isfinite(moments).all()
        logvar = posterior.split(moments)[1]
        assert logvar.min() >= -30
        assert logvar.max() <= 20


def test_same_pixels_give_the_same_bits_whatever_came_between(built: Built) -> None:
    pixels = built.pixels(built.case.frames[-1])
    first = built.encoder.encode(pixels)
    built.encoder.encode(built.pixels(built.case.frames[1], batch=2, rows=1))
    built.encoder.decode(posterior.split(first)[0])
    assert torch.equal(built.encoder.encode(pixels), first)


def test_a_clip_in_a_batch_is_the_clip_alone(built: Built) -> None:
    pixels = built.pixels(built.case.frames[-1], batch=3)
    batch = built.encoder.encode(pixels)
    for i in range(3):
        alone = built.encoder.encode(pixels[i : i + 1])
        assert (batch[i] - alone[0]).abs().max() <= built.case.rounding


def test_memory_layout_of_the_pixels_does_not_matter(built: Built) -> None:
    pixels = built.pixels(built.case.frames[1], batch=2)
    strided = pixels.permute(4, 0, 1, 2, 3).contiguous().permute(1, 2, 3, 4, 0)
    assert torch.equal(built.encoder.encode(strided), built.encoder.encode(pixels))


def test_prefix_is_exact_where_declared(built: Built) -> None:
    if built.spec.exactness != "prefix_exact":
        pytest.skip("declares no exact prefixes")
    pixels = built.pixels(built.case.frames[-1])
    whole = built.encoder.encode(pixels)
    for frames in built.case.frames[:-1]:
        prefix = built.encoder.encode(pixels[:, :frames])
        assert (whole[:, :, : prefix.shape[2]] - prefix).abs().max() <= built.case.rounding


def test_latent_frames_depend_on_no_later_pixels_than_the_spec_says(built: Built) -> None:
    """A changed last frame must not reach latents whose pixel frames all come before it."""
    if built.spec.exactness != "prefix_exact":
        pytest.skip("normalises over several latent frames")
    frames = built.case.frames[-1]
    pixels = built.pixels(frames)
    changed = pixels.clone()
    changed[:, -1] = 255 - changed[:, -1]
    difference = (built.encoder.encode(changed) - built.encoder.encode(pixels)).abs()
    touched = [t for t in range(difference.shape[2]) if difference[:, :, t].max() > 0]
    assert touched == [
        t
        for t in range(difference.shape[2])
        if frames - 1 in range(*built.spec.pixel_frames(t, frames))
    ]


def test_illegal_frames_are_refused_with_the_nearest_legal_ones(built: Built) -> None:
    for frames, nearest in built.case.illegal_frames.items():
        with pytest.raises(GeometryError, match=rf"not {frames}.*Set clips.frames to {nearest}\."):
            built.encoder.encode(built.pixels(frames, rows=1, columns=1))


def test_sizes_off_the_stride_are_refused_with_the_nearest_legal_ones(built: Built) -> None:
    _, sh, sw = built.spec.stride
    pixels = torch.zeros(1, 1, 2 * sh, 3 * sw + 1, 3, dtype=torch.uint8)
    with pytest.raises(GeometryError, match=rf"Use {2 * sh}x{3 * sw}\."):
        built.encoder.encode(pixels)


@pytest.mark.parametrize("wrong", ["dtype", "axes", "colours"])
def test_what_is_not_pixels_is_refused(built: Built, wrong: str) -> None:
    pixels = built.pixels(1)
    bad = {"dtype": pixels.float(), "axes": pixels[0], "colours": pixels[..., :1]}[wrong]
    with pytest.raises(EncoderError, match=r"encodes uint8 pixels \[B, T, H, W, 3\], not"):
        built.encoder.encode(bad)


def test_decode_gives_the_pixels_back_in_shape_and_dtype(built: Built) -> None:
    for frames in built.case.frames:
        pixels = built.pixels(frames, batch=2)
        decoded = built.encoder.decode(posterior.split(built.encoder.encode(pixels))[0])
        assert decoded.shape == pixels.shape
        assert decoded.dtype == torch.uint8
        assert decoded.device == CPU


def test_moments_are_refused_by_decode(built: Built) -> None:
    with pytest.raises(EncoderError, match="These are moments: decode their mean"):
        built.encoder.decode(built.encoder.encode(built.pixels(1)))


def test_normaliser_is_inverted_by_unnormalise(built: Built) -> None:
    mean, _ = posterior.split(built.encoder.encode(built.pixels(built.case.frames[1], batch=2)))
    normalised = posterior.normalise(mean, built.spec.normaliser)
    assert not torch.equal(normalised, mean)
    restored = posterior.unnormalise(normalised, built.spec.normaliser)
    torch.testing.assert_close(restored, mean, rtol=1e-5, atol=1e-5)


@pytest.fixture
def failing_module() -> Iterator[list[int]]:
    """Make the 25th call of any torch module raise, for as long as the list is not empty."""
    countdown = [25]

    def fail(*_: object) -> None:
        if countdown:
            countdown[0] -= 1
            if countdown[0] == 0:
                raise MemoryError("no room, in the middle of the network")

    hook = register_module_forward_pre_hook(fail)
    yield countdown
    hook.remove()


def test_an_exception_inside_leaves_no_trace(built: Built, failing_module: list[int]) -> None:
    if built.spec.encoder == "dct":
        pytest.skip("has no torch modules")
    pixels = built.pixels(built.case.frames[-1])
    with pytest.raises(MemoryError, match="no room"):
        built.encoder.encode(pixels)
    failing_module.clear()
    again = built.encoder.encode(pixels)
    fresh = built.module.build(built.config, spec=built.spec, device=CPU)
    assert torch.equal(again, fresh.encode(pixels))
