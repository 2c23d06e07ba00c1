from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentcache.config.files import load_config
from latentcache.encoders import resolve
from latentcache.encoders.native import taehv, taesd
from latentcache.encoders.native.taehv import TAEHVEncoder
from latentcache.encoders.native.taesd import TAESDEncoder
from latentcache.encoders.native.tiny_models import Memory
from latentcache.errors import ConfigError, EncoderError
from tests.tools import golden
from tests.tools.videos import SHARED, SHARED_VIDEOS, read_with_pyav

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TAEF2 = {half: SHARED / "weights" / f"taef2_{half}.pth" for half in ("encoder", "decoder")}
needs_taef2 = pytest.mark.skipif(
    not (all(path.is_file() for path in TAEF2.values()) and SHARED_VIDEOS.is_dir()),
    reason=f"no real taef2 weights or no real videos under {SHARED}",
)


def describe(raw: dict[str, Any]) -> Any:
    module, config = resolve(raw)
    return module.describe(config, dtype="float32")


def identity(raw: dict[str, Any]) -> dict[str, Any]:
    module, config = resolve(raw)
    return dict(module.identity(config))


def build(raw: dict[str, Any]) -> Any:
    module, config = resolve(raw)
    return module.build(config, spec=module.describe(config, dtype="float32"), device=CPU)


def taesd_section(encoder: Path, decoder: Path | None = None, **changes: Any) -> dict[str, Any]:
    raw = {"kind": "taesd", "encoder": str(encoder), "dtype": "float32", **changes}
    return raw if decoder is None else {**raw, "decoder": str(decoder)}


def taehv_section(checkpoint: Path, **changes: Any) -> dict[str, Any]:
    return {"kind": "taehv", "checkpoint": str(checkpoint), "dtype": "float32", **changes}


def save_taesd(folder: Path, variant: str) -> tuple[Path, Path]:
    models = taesd.VARIANTS[variant]
    return (
        golden.save(models.empty_encoder(), folder / f"{variant}_encoder.pth"),
        golden.save(models.empty_decoder(), folder / f"{variant}_decoder.pth"),
    )


def save_taehv(folder: Path, variant: str) -> Path:
    return golden.save(taehv.VARIANTS[variant].empty_model(), folder / f"{variant}.pth")


def hollow(path: Path, variant: str) -> Path:
    """Write a TAEHV checkpoint of full shapes and next to no bytes."""
    tensors = taehv.VARIANTS[variant].empty_model().state_dict()
    torch.save({name: torch.zeros(1).expand(t.shape) for name, t in tensors.items()}, path)
    return path


@pytest.mark.parametrize(("variant", "grid"), [("taesd", 8), ("taef2", 8), ("taesana", 32)])
def test_taesd_is_the_published_code(tmp_path: Path, variant: str, grid: int) -> None:
    """`tests/data/tiny.npz` holds what the published code gave, in float32 on a CPU.

    It is taesd.py of github.com/madebyollin/taesd at commit 5cccb12: its TAESD with the variant's
    latent channels and arch_variant (taef2: flux_2, taesana: f32), both halves' parameters set by
    `golden.state_dict`. <variant>_latents: of `golden.pixels(variant, 1, 2, H, W, 3)` / 255, 16x24
    or, for taesana, 32x64. <variant>_pixels: its decoder's, of
    `golden.latents(variant, 2, C, h, w)` of that size.
    """
    encoder = build(taesd_section(*save_taesd(tmp_path, variant)))
    assert isinstance(encoder, TAESDEncoder)
    expected = golden.expected("tiny")
    latents, pixels = expected[f"{variant}_latents"], expected[f"{variant}_pixels"]
    size = (16, 24) if grid == 8 else (32, 64)
    found = encoder.encode(golden.pixels(variant, 1, 2, *size, 3))
    torch.testing.assert_close(found[0].transpose(0, 1), latents, rtol=0, atol=1e-5)
    given = golden.latents(variant, *latents.shape)
    assert encoder._decoder is not None
    with torch.inference_mode():
        values = encoder._decoder(given)
    torch.testing.assert_close(values, pixels, rtol=0, atol=1e-5)
    levels = pixels.clamp(0, 1).permute(0, 2, 3, 1) * 255
    assert (encoder.decode(given.transpose(0, 1)[None])[0] - levels).abs().max() <= 0.5 + 1e-2


TAEHV_GOLDEN = {
    "taew2_1": (12, 8, 16),
    "taecvx": (12, 8, 16),
    "taew2_2": (12, 16, 32),
    "taew2_2_super": (12, 16, 32),
    "taeltx_2": (16, 32, 64),
}


@pytest.mark.parametrize("variant", TAEHV_GOLDEN)
def test_taehv_is_the_published_code(tmp_path: Path, variant: str) -> None:
    """`tests/data/tiny.npz` holds what the published code gave, in float32 on a CPU.

    It is taehv.py of github.com/madebyollin/taehv at commit 1f14a56: its TAEHV, made with the
    checkpoint's name only, with parameters set by `golden.state_dict`. <variant>_latents: its
    encode_video's (parallel), of `golden.pixels(variant, 1, T, H, W, 3)` / 255. _raw: every 11th
    value of its decoder's output (parallel, before the patches become pixels) for the latents
    `golden.latents(variant, 1, 3, C, 1, 2)`, [N, T, C, H, W]. _pixels: its decode_video's of the
    same, times 255 and rounded, every second row and column. _frames: of how many frames that is
    for the first 1, 2 and 3 latents.
    """
    encoder = build(taehv_section(save_taehv(tmp_path, variant)))
    assert isinstance(encoder, TAEHVEncoder)
    expected = {
        name.removeprefix(f"{variant}_"): value
        for name, value in golden.expected("tiny").items()
        if name.rpartition("_")[0] == variant
    }
    latents = encoder.encode(golden.pixels(variant, 1, *TAEHV_GOLDEN[variant], 3))
    torch.testing.assert_close(latents.transpose(1, 2), expected["latents"], rtol=0, atol=1e-5)
    given = golden.latents(variant, 1, 3, encoder.spec.channels, 1, 2)
    memory = Memory(batch=1)
    with torch.inference_mode():
        frames = [encoder._model.decoder.run(z, memory) for z in given.unbind(1)]
    raw = torch.cat(frames).flatten()[::11]
    torch.testing.assert_close(raw, expected["raw"], rtol=0, atol=1e-5)
    for number, kept in enumerate(expected["frames"].tolist(), start=1):
        decoded = encoder.decode(given[:, :number].transpose(1, 2))
        assert decoded.shape[1] == kept
    levels = decoded.permute(0, 1, 4, 2, 3)[..., ::2, ::2]
    assert (levels.int() - expected["pixels"].int()).abs().max() <= 1


@needs_taef2
def test_real_taef2_reconstructs_a_real_video_above_35_db() -> None:
    """Measured on frames 0, 16, 33 and 48: 36.57 dB in float32, 36.52 in bfloat16. Here a part of two."""
    encoder = build(taesd_section(TAEF2["encoder"], TAEF2["decoder"]))
    video = read_with_pyav(SHARED_VIDEOS / "hiker.mp4", limit=17)
    pixels = torch.from_numpy(np.ascontiguousarray(video[[0, 16], 120:360, 180:540]))[None]
    latents = encoder.encode(pixels)
    assert latents.shape == (1, 32, 2, 30, 45)
    error = (encoder.decode(latents).double() - pixels).square().mean().sqrt()
    assert 35 < 20 * torch.log10(255 / error) < 38


@needs_taef2
def test_real_taef2_has_the_variants_tensors() -> None:
    spec = describe(taesd_section(TAEF2["encoder"], TAEF2["decoder"]))
    assert spec.model_class == "TAESD taef2"
    with pytest.raises(EncoderError, match=r"is no checkpoint of the encoder of taesd: "):
        describe(taesd_section(TAEF2["decoder"], variant="taesd"))


def test_the_networks_see_one_group_of_frames_at_a_time(tmp_path: Path) -> None:
    encoder = build(taehv_section(save_taehv(tmp_path, "taew2_1")))
    seen: list[int] = []
    layers = (encoder._model.encoder[0], encoder._model.decoder[1])
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
        for layer in layers
    ]
    encoder.decode(encoder.encode(golden.pixels("video", 2, 12, 8, 8, 3)))
    for hook in hooks:
        hook.remove()
    assert seen == [8, 8, 8, 2, 2, 2]


def test_every_level_is_a_255th_in_the_models_dtype(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        encoder = build(taesd_section(*save_taesd(tmp_path, "taesd"), dtype=name))
        levels = (np.arange(256, dtype=np.float32) / np.float32(255)).tolist()
        assert torch.equal(encoder._levels, torch.tensor(levels).to(dtype))
        assert encoder.encode(golden.pixels("x", 1, 1, 8, 8, 3)).dtype == dtype


def test_pixels_are_zero_to_one_and_latents_normalised_already(tmp_path: Path) -> None:
    for raw in (
        taesd_section(save_taesd(tmp_path, "taef1")[0]),
        taehv_section(hollow(tmp_path / "taew2_1.pth", "taew2_1")),
    ):
        spec = describe(raw)
        assert spec.pixel_range == (0.0, 1.0)
        assert spec.normaliser.kind == "none"
        assert spec.exactness == "prefix_exact"
        assert spec.channels == 16


@pytest.mark.parametrize(
    ("variant", "channels", "stride"),
    [
        ("taehv", 16, (4, 8, 8)),
        ("taehv1_5", 32, (4, 16, 16)),
        ("taehv1_5_super", 32, (4, 16, 16)),
        ("taew2_2", 48, (4, 16, 16)),
        ("taeos1_3", 16, (4, 8, 8)),
        ("taeltx_2", 128, (8, 32, 32)),
        ("taeltx2_3", 128, (8, 32, 32)),
    ],
)
def test_variant_of_a_video_checkpoint_comes_from_its_name(
    tmp_path: Path, variant: str, channels: int, stride: tuple[int, int, int]
) -> None:
    spec = describe(taehv_section(hollow(tmp_path / f"{variant}.pth", variant)))
    assert (spec.model_class, spec.channels) == (f"TAEHV {variant}", channels)
    assert spec.stride == stride


def test_variant_is_never_guessed(tmp_path: Path) -> None:
    for name in ("mine.pth", "taew2_1_finetuned.pth", "taeltx2_3_wide.pth"):
        path = hollow(tmp_path / name, "taew2_1")
        with pytest.raises(ConfigError, match=rf"name {name} names none.*Set encoder.variant"):
            describe(taehv_section(path))
    assert describe(taehv_section(path, variant="taew2_1")).model_class == "TAEHV taew2_1"
    path = save_taesd(tmp_path, "taesd")[0].rename(tmp_path / "encoder.pth")
    with pytest.raises(ConfigError, match=r"name encoder.pth names none.*taesd, taesdxl, taesd3"):
        describe(taesd_section(path))


def test_variant_and_name_must_agree(tmp_path: Path) -> None:
    path = hollow(tmp_path / "taew2_1.pth", "taew2_1")
    with pytest.raises(ConfigError, match=r"is 'taehv', but .*taew2_1.pth of 'taew2_1'"):
        describe(taehv_section(path, variant="taehv"))
    with pytest.raises(ConfigError, match=r"unknown variant 'taew21'. Did you mean 'taew2_1'\?"):
        describe(taehv_section(path, variant="taew21"))


def test_variant_must_have_the_files_tensors(tmp_path: Path) -> None:
    path = hollow(tmp_path / "taew2_2.pth", "taew2_1")
    with pytest.raises(EncoderError, match=r"no checkpoint of taew2_2: .*in another shape"):
        describe(taehv_section(path))
    path = hollow(tmp_path / "taew2_2_super.pth", "taew2_2")
    with pytest.raises(EncoderError, match=r"no checkpoint of taew2_2_super: .*lacks decoder"):
        describe(taehv_section(path))


def test_the_variant_without_a_frame_rule_is_refused_by_name(tmp_path: Path) -> None:
    path = hollow(tmp_path / "taeh3.pth", "taew2_1")
    with pytest.raises(ConfigError, match=r"taeh3 \(MiniMax H3\) is not supported"):
        describe(taehv_section(path))


def test_decoder_must_be_of_the_encoders_model(tmp_path: Path) -> None:
    encoder, decoder = save_taesd(tmp_path, "taesd")[0], save_taesd(tmp_path, "taesdxl")[1]
    with pytest.raises(ConfigError, match=r"taesdxl_decoder.pth is of taesdxl, but .* of taesd:"):
        describe(taesd_section(encoder, decoder))
    wrong = save_taesd(tmp_path, "taesd3")[1].rename(tmp_path / "other.pth")
    with pytest.raises(EncoderError, match=r"encoder.decoder: .*no checkpoint of the decoder of"):
        describe(taesd_section(encoder, wrong))
    with pytest.raises(EncoderError, match=r"no checkpoint of the encoder of taesd: "):
        describe(taesd_section(save_taesd(tmp_path, "taesd")[1], variant="taesd"))


def test_the_decoder_is_no_part_of_the_identity(tmp_path: Path) -> None:
    encoder, decoder = save_taesd(tmp_path, "taesd")
    assert identity(taesd_section(encoder)) == identity(taesd_section(encoder, decoder))
    assert identity(taesd_section(encoder, dtype="float16")) != identity(taesd_section(encoder))


def test_identity_is_of_the_weights_and_not_of_their_place(tmp_path: Path) -> None:
    path = save_taehv(tmp_path / "here", "taew2_1")
    (tmp_path / "there").mkdir()
    moved = tmp_path / "there" / path.name
    moved.write_bytes(path.read_bytes())
    assert identity(taehv_section(moved)) == identity(taehv_section(path))
    tensors = torch.load(path)
    tensors["encoder.0.bias"][0] += 1e-3
    torch.save(tensors, moved)
    assert identity(taehv_section(moved)) != identity(taehv_section(path))


@pytest.mark.parametrize("kind", ["taesd", "taehv"])
def test_a_file_that_changed_since_planning_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "taesd":
        path, _ = save_taesd(tmp_path, "taesd")
        raw = taesd_section(path)
    else:
        path = hollow(tmp_path / "taew2_1.pth", "taew2_1")
        raw = taehv_section(path)
    module, config = resolve(raw)
    spec = module.describe(config, dtype="float32")
    tensors = {name: tensor + 1 for name, tensor in torch.load(path).items()}
    torch.save(tensors, path)
    with pytest.raises(EncoderError, match="latents of two models would be mixed"):
        module.build(config, spec=spec, device=CPU)


@pytest.mark.parametrize(
    ("name", "overrides", "shape"),
    [
        ("taehv", {"checkpoint": "taew2_1.pth"}, (16, 21, 60, 90)),
        (
            "taef2",
            {"encoder": "taef2_encoder.pth", "decoder": "taef2_decoder.pth"},
            (32, 16, 60, 90),
        ),
    ],
)
def test_the_example_configurations_describe_what_they_say(
    tmp_path: Path, name: str, overrides: dict[str, str], shape: tuple[int, ...]
) -> None:
    if name == "taehv":
        hollow(tmp_path / "taew2_1.pth", "taew2_1")
    else:
        save_taesd(tmp_path, "taef2")
    example = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    changes = [f"encoder.{key}={tmp_path / file}" for key, file in overrides.items()]
    config = load_config(str(example), changes)
    spec = describe(config.encoder)
    frames, size = config.clips.frame_counts, config.clips.sizes()
    assert [spec.latent_shape(n, *hw) for n in frames for hw in size] == [shape]
