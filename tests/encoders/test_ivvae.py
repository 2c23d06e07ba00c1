from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.config.files import load_config
from latentcache.core import posterior
from latentcache.encoders import resolve
from latentcache.encoders.native.ivvae import IVVAEEncoder
from latentcache.encoders.native.ivvae_model import IVVAE, Carry
from latentcache.errors import ConfigError, EncoderError
from tests.tools import golden

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
GOLDEN_FRAMES = (1, 5, 9, 17)
OWN = {"shift": 0.25, "scale": 2.0}


def empty(dim: int = 8, z: int = 4) -> IVVAE:
    with torch.device("meta"):
        return IVVAE(dim=dim, z=z)


def section(checkpoint: Path, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "ivvae",
        "checkpoint": str(checkpoint),
        "dtype": "float32",
        "store": "moments",
        **changes,
    }


def described(checkpoint: Path, **changes: Any) -> Any:
    module, config = resolve(section(checkpoint, **changes))
    return module.describe(config, dtype="float32")


def identity(checkpoint: Path, **changes: Any) -> dict[str, Any]:
    module, config = resolve(section(checkpoint, **changes))
    return dict(module.identity(config))


def built(checkpoint: Path, **changes: Any) -> IVVAEEncoder:
    module, config = resolve(section(checkpoint, **changes))
    spec = module.describe(config, dtype="float32")
    encoder = module.build(config, spec=spec, device=CPU)
    assert isinstance(encoder, IVVAEEncoder)
    return encoder


def hollow(path: Path, dim: int, z: int) -> Path:
    """Write a checkpoint of full shapes and next to no bytes: every tensor is one zero, repeated."""
    shapes = {name: tensor.shape for name, tensor in empty(dim, z).state_dict().items()}
    torch.save({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden.save(empty(), tmp_path_factory.mktemp("ivvae") / "ivvae_z4_dim8.pth")


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> IVVAEEncoder:
    return built(checkpoint, **OWN)


@pytest.mark.parametrize("frames", GOLDEN_FRAMES)
def test_moments_are_those_of_the_published_code(encoder: IVVAEEncoder, frames: int) -> None:
    """`tests/data/ivvae.npz` holds what the published code gave, in float32 on a CPU.

    It is models/vae3d.py of github.com/ali-vilab/iv-vae at commit 555a35a: its VAutoencoder3d with
    z_dim 4, dim 8 and the other settings as published, its parameters set by `golden.state_dict`.
    moments_T: the mean and log-variance that reach its `sample` method, for the first T frames of
    `golden.pixels("video", 1, 17, 16, 24, 3)` as x / 127.5 - 1. pixels_T: what its decoder gives for
    the first (T + 3) / 4 latent frames of `golden.latents("latents", 1, 4, 5, 1, 2)`, with a
    scale factor of 1 and a shift of 0.
    """
    pixels = golden.pixels("video", 1, 17, 16, 24, 3)[:, :frames]
    expected = golden.expected("ivvae")[f"moments_{frames}"]
    torch.testing.assert_close(encoder.encode(pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", GOLDEN_FRAMES)
def test_decoded_values_are_those_of_the_published_code(
    checkpoint: Path, encoder: IVVAEEncoder, frames: int
) -> None:
    """See the test above."""
    model = empty()
    model.load_state_dict(torch.load(checkpoint), assign=True)
    latents = golden.latents("latents", 1, 4, 5, 1, 2)[:, :, : (frames + 3) // 4]
    expected = golden.expected("ivvae")[f"pixels_{frames}"]
    carry = Carry()
    with torch.inference_mode():
        groups = [model.decode_group(z, carry) for z in torch.split(latents, 1, dim=2)]
    torch.testing.assert_close(torch.cat(groups, dim=2), expected, rtol=0, atol=1e-5)
    levels = (expected.clamp(-1, 1) + 1) * 127.5
    decoded = encoder.decode(latents).permute(0, 4, 1, 2, 3)
    assert (decoded - levels).abs().max() <= 0.5 + 1e-2


def test_the_golden_numbers_tell_groups_from_frames_alone(encoder: IVVAEEncoder) -> None:
    """Without what is carried between groups the moments would be others, by more than rounding."""
    pixels = golden.pixels("video", 1, 17, 16, 24, 3)
    whole = encoder.encode(pixels)
    without_past = encoder.encode(torch.cat([pixels[:, 4:5], pixels[:, 5:9]], dim=1))
    assert (whole[:, :, 2] - without_past[:, :, 1]).abs().max() > 1e-3


def test_the_network_sees_one_frame_and_then_four_at_a_time(encoder: IVVAEEncoder) -> None:
    seen: dict[str, list[int]] = {"encoder": [], "decoder": []}
    hooks = [
        getattr(encoder._model, half).register_forward_pre_hook(
            lambda _, args, half=half: seen[half].append(args[0].shape[2])
        )
        for half in seen
    ]
    mean, _ = posterior.split(encoder.encode(golden.pixels("video", 2, 13, 8, 8, 3)))
    encoder.decode(mean)
    for hook in hooks:
        hook.remove()
    assert seen == {"encoder": [1, 4, 4, 4], "decoder": [1, 1, 1, 1]}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_level_is_fed_as_the_published_script_does(checkpoint: Path, dtype: str) -> None:
    levels = torch.arange(256, dtype=torch.uint8).to(getattr(torch, dtype)) / 127.5 - 1.0
    encoder = built(checkpoint, dtype=dtype, **OWN)
    assert torch.equal(encoder._levels, levels)
    assert encoder.encode(golden.pixels("x", 1, 5, 8, 8, 3)).dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("z", "dim", "shift", "scale"),
    [
        (4, 64, 0.1250, 1.3196),
        (8, 64, -0.0322, 1.0940),
        (16, 64, -0.1553, 0.9697),
        (16, 96, -0.0483, 0.7619),
    ],
)
def test_variant_comes_from_the_tensors_with_its_published_normaliser(
    tmp_path: Path, z: int, dim: int, shift: float, scale: float
) -> None:
    for name in (f"ivvae_z{z}_dim{dim}.pth", "renamed.pth"):
        spec = described(hollow(tmp_path / name, dim, z))
        assert spec.model_class == f"IV-VAE z{z}_dim{dim}"
        assert (spec.channels, spec.stride) == (z, (4, 8, 8))
        assert spec.latent_shape(17, 16, 24) == (2 * z, 5, 2, 3)
        latents = torch.full((1, z, 1, 1, 1), 0.5)
        normalised = posterior.normalise(latents, spec.normaliser)
        torch.testing.assert_close(normalised, scale * (latents - shift))


def test_a_name_that_contradicts_the_tensors_is_refused(tmp_path: Path) -> None:
    path = hollow(tmp_path / "ivvae_z16_dim96.pth", 64, 16)
    with pytest.raises(
        ConfigError, match=r"is z16_dim96 by its name, but z16_dim64 by its tensors"
    ):
        described(path)


def test_a_variant_of_ones_own_needs_its_normaliser(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"z4_dim8 is none of the published.*Set encoder.shift"):
        described(checkpoint)
    assert described(checkpoint, **OWN).normaliser.shift == (0.25,)
    with pytest.raises(ConfigError, match="give `shift` and `scale` together"):
        described(checkpoint, shift=0.0)


def test_a_published_variant_keeps_its_normaliser(tmp_path: Path) -> None:
    path = hollow(tmp_path / "ivvae_z4_dim64.pth", 64, 4)
    with pytest.raises(ConfigError, match=r"z4_dim64 has the published 0.125 and 1.3196. Remove"):
        described(path, **OWN)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("decoder.head.0.gamma"), "it lacks decoder.head.0.gamma;?"),
        (lambda t: t.update(extra=torch.zeros(1)), "it has, and should not have, extra"),
        (
            lambda t: t.update({"conv1.conv_2d.bias": torch.zeros(3)}),
            r"in another shape conv1.conv_2d.bias \(\[3\], not \[4\]\)",
        ),
        (lambda t: t.pop("conv1.conv_2d.weight"), "lacks the convolution conv1.conv_2d.weight"),
    ],
)
def test_tensors_must_fit_one_for_one(
    checkpoint: Path, tmp_path: Path, change: Any, told: str
) -> None:
    tensors = torch.load(checkpoint)
    change(tensors)
    torch.save(tensors, tmp_path / "changed.pth")
    with pytest.raises(EncoderError, match=rf"is no checkpoint of IV-VAE.*{told}"):
        described(tmp_path / "changed.pth", **OWN)


def test_identity_is_of_the_weights_and_not_of_their_place(
    checkpoint: Path, tmp_path: Path
) -> None:
    moved = golden.save(empty(), tmp_path / "elsewhere" / "copy.pth")
    moved.write_bytes(checkpoint.read_bytes())
    assert identity(moved, **OWN) == identity(checkpoint, **OWN)
    tensors = torch.load(checkpoint)
    tensors["conv1.conv_2d.bias"][0] += 1e-3
    torch.save(tensors, moved)
    assert identity(moved, **OWN) != identity(checkpoint, **OWN)
    assert identity(checkpoint, **OWN) != identity(checkpoint, **OWN, dtype="bfloat16")
    assert re.fullmatch("[0-9a-f]{64}", identity(checkpoint, **OWN)["weights_sha256"])


def test_a_file_that_changed_since_planning_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    path.write_bytes(checkpoint.read_bytes())
    module, config = resolve(section(path, **OWN))
    spec = module.describe(config, dtype="float32")
    tensors = torch.load(path)
    tensors["conv1.conv_2d.bias"][0] += 1e-3
    torch.save(tensors, path)
    with pytest.raises(EncoderError, match=r"latents of two models would be mixed"):
        module.build(config, spec=spec, device=CPU)


def test_the_example_configuration_describes_what_it_says(tmp_path: Path) -> None:
    path = hollow(tmp_path / "ivvae_z16_dim96.pth", 96, 16)
    example = Path(__file__).parents[2] / "configs" / "ivvae.yaml"
    config = load_config(str(example), [f"encoder.checkpoint={path}"])
    module, encoder_config = resolve(config.encoder)
    spec = module.describe(encoder_config, dtype="bfloat16")
    shapes = [
        spec.latent_shape(n, *size)
        for n in config.clips.frame_counts
        for size in config.clips.sizes()
    ]
    assert shapes == [(16, 5, 32, 48)]
