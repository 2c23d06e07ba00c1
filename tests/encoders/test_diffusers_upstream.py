"""What diffusers does that this package works around: a test that fails here says it has changed.

Then the workaround in `video_classes` or `image_classes` can go, or must follow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools.diffusers_tools import reference
from tests.tools.tiny_models import save

pytestmark = pytest.mark.slow


def model(name: str, tmp_path: Path, **changes: Any) -> Any:
    return reference(save(name, tmp_path, **changes))


def clip(frames: int, height: int = 32, width: int = 48, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def mean(vae: Any, x: torch.Tensor) -> torch.Tensor:
    latents: torch.Tensor = vae.encode(x).latent_dist.mean
    return latents


@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_ltx_encoding_obeys_the_flag_of_decoding(name: str, tmp_path: Path) -> None:
    vae, x = model(name, tmp_path), clip(25, 64, 64)
    whole = mean(vae, x)
    vae.use_framewise_encoding = True
    assert torch.equal(mean(vae, x), whole)
    vae.use_framewise_encoding, vae.use_framewise_decoding = False, True
    assert (mean(vae, x) - whole).abs().max() > 1e-3


def test_hunyuan_cuts_clips_of_more_than_16_frames_by_default(tmp_path: Path) -> None:
    vae = model("hunyuan", tmp_path)
    assert vae.use_framewise_encoding
    assert not vae.use_tiling
    short, long = mean(vae, clip(13)), mean(vae, clip(33))
    vae.use_framewise_encoding = False
    assert torch.equal(mean(vae, clip(13)), short)
    assert (mean(vae, clip(33)) - long).abs().max() > 1e-3


def test_hunyuan15_cannot_encode_a_batch(tmp_path: Path) -> None:
    vae = model("hunyuan15", tmp_path)
    with pytest.raises(RuntimeError, match="broadcast shape"):
        vae.encode(clip(5, batch=2))


def test_magvit_tiling_shifts_all_tiles_but_the_first(tmp_path: Path) -> None:
    """Tiles are not cut to their stride: the second one's column 2 lands on column 10, not 8."""
    vae, x = model("magvit", tmp_path), clip(1, 32, 112)
    second = mean(vae, x[..., 48:])
    vae.enable_tiling(64, 64, None, 48, 48)
    tiled = mean(vae, x)
    assert tiled.shape[-1] == 14
    torch.testing.assert_close(tiled[..., 10:14], second[..., 2:6], rtol=1e-5, atol=1e-5)


def test_magvit_is_poisoned_by_an_illegal_number_of_frames(tmp_path: Path) -> None:
    vae = model("magvit", tmp_path)
    before = mean(vae, clip(5))
    with pytest.raises(ValueError, match="non-empty list"):
        vae.encode(clip(7))
    with pytest.raises(ValueError, match="non-empty list"):
        vae.encode(clip(5))
    vae._clear_conv_cache()
    assert torch.equal(mean(vae, clip(5)), before)


def test_allegro_cannot_encode_without_tiling_nor_a_batch(tmp_path: Path) -> None:
    vae = model("allegro", tmp_path)
    with pytest.raises(NotImplementedError, match="without tiling"):
        vae.encode(clip(24, 128, 128))
    vae.enable_tiling()
    with pytest.raises(RuntimeError, match="expand"):
        vae.encode(clip(24, 128, 128, batch=2))


def test_allegro_leaves_what_its_tiles_do_not_cover_as_zeros(tmp_path: Path) -> None:
    vae = model("allegro", tmp_path)
    vae.enable_tiling()
    bias = vae.quant_conv.bias[:4].view(1, 4, 1, 1)
    latents = mean(vae, clip(28, 128, 136))
    assert latents.shape[2:] == (7, 16, 17)
    torch.testing.assert_close(latents[:, :, 6], bias.expand_as(latents[:, :, 6]))
    assert latents[:, :, 5].std() > 1e-3
    torch.testing.assert_close(latents[:, :, 5, :, 16], bias[..., 0].expand(1, 4, 16))
    assert mean(vae, clip(8, 128, 128)).std(dim=(2, 3, 4)).max() < 1e-6


@pytest.mark.long
def test_kvae_gives_a_log_variance_of_zeros_for_the_encoders_own(tmp_path: Path) -> None:
    assert (model("kvae", tmp_path).encode(clip(5)).latent_dist.logvar == 0).all()


@pytest.mark.long
def test_kvae_normalises_each_segment_on_its_own(tmp_path: Path) -> None:
    """So 17 frames are a prefix of 33, and 21 are not: the last segment is shorter."""
    vae, x = model("kvae", tmp_path), clip(33)
    whole = mean(vae, x)
    assert torch.equal(whole[:, :, :5], mean(vae, x[:, :, :17]))
    assert (whole[:, :, :6] - mean(vae, x[:, :, :21])).abs().max() > 1e-3


def test_kvae_splits_large_strided_convolutions_at_the_wrong_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_kvae_video import KVAESafeConv3d

    conv = KVAESafeConv3d(1, 1, (3, 1, 1), stride=(2, 1, 1)).requires_grad_(False)
    x = torch.randn(1, 1, 17, 2, 2, generator=torch.Generator().manual_seed(0))
    whole = conv(x)
    monkeypatch.setattr(torch.Tensor, "numel", lambda self: 10**9)
    split = conv(x)
    monkeypatch.undo()
    assert split.shape == whole.shape
    assert torch.allclose(split[:, :, :4], whole[:, :, :4])
    assert (split[:, :, 4:] - whole[:, :, 4:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["wan", "qwenimage"])
def test_wan_drops_frames_past_1_plus_4k(name: str, tmp_path: Path) -> None:
    vae, x = model(name, tmp_path), clip(8)
    assert torch.equal(mean(vae, x), mean(vae, x[:, :, :5]))


@pytest.mark.parametrize("name", ["ltx", "mochi"])
def test_others_take_any_number_of_frames_too(name: str, tmp_path: Path) -> None:
    vae = model(name, tmp_path)
    assert mean(vae, clip(5, 64, 64)).shape[2] == 1


def test_cogvideox_puts_the_remainder_into_the_first_batch(tmp_path: Path) -> None:
    vae, x = model("cogvideox", tmp_path), clip(12)
    assert mean(vae, x).shape[2] == 3
    assert (mean(vae, x)[:, :, :2] - mean(vae, x[:, :, :8])).abs().max() > 1e-3


def test_vidtok_wants_its_first_frame_repeated_by_the_caller(tmp_path: Path) -> None:
    vae = model("vidtok", tmp_path)
    assert mean(vae, clip(4)).shape[2] == 1
    assert mean(vae, clip(8)).shape[2] == 2


def test_vidtoks_forward_leaves_a_legal_clip_as_it_is_but_for_the_front(tmp_path: Path) -> None:
    vae, x = model("vidtok", tmp_path), clip(5)
    padded = torch.cat([x[:, :, :1]] * 3 + [x], dim=2)
    assert torch.equal(vae(x, sample_posterior=False, encoder_mode=True), mean(vae, padded))


def test_tiny_autoencoders_tiles_are_of_4_channels_whatever_the_model_has(tmp_path: Path) -> None:
    vae = model("tiny", tmp_path, latent_channels=16)
    vae.use_tiling = True
    with pytest.raises(RuntimeError, match="size of tensor"):
        vae.encode(clip(1)[:, :, 0])
