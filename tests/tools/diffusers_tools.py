"""Tiny diffusers models as this package runs them, and as a user of diffusers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from latentcache.encoders import resolve
from latentcache.encoders.diffusers.encoder import DiffusersEncoder
from tests.tools.tiny_models import TINY

CPU = torch.device("cpu")
#: Legal numbers of frames; past them HunyuanVideo's and LTX's classes would cut a clip in time.
FRAMES = {
    "wan": (1, 5, 17),
    "wan22": (1, 5),
    "qwenimage": (1, 17),
    "cogvideox": (1, 8, 9, 16, 17),
    "hunyuan": (1, 5, 17, 33),
    "hunyuan15": (1, 9),
    "ltx": (1, 17, 25),
    "ltx095": (1, 17, 25),
    "ltx2": (1, 17, 25),
    "mochi": (1, 7, 13),
    "allegro": (24, 40),
    "magvit": (1, 5, 13),
    "cosmos": (1, 9, 25),
    "kvae": (1, 5, 17, 21, 33),
    "svd": (1, 3),
    "vidtok": (1, 5, 21),
    "vidtok_fsq": (1, 5, 21),
    "vidtok_noncausal": (16, 32),
}
VIDEO = tuple(FRAMES)
IMAGE = tuple(name for name in TINY if name not in VIDEO)
_STORES = {
    "cosmos": "mean",
    "kvae": "mean",
    "vidtok_fsq": "ids",
    "dc": "mean",
    "tiny": "mean",
    "vq": "ids",
    "movq": "ids",
}


def section(model: Path | str, name: str = "", **changes: Any) -> dict[str, Any]:
    """Return the config's section for a saved model; `name` in `TINY` gives what it needs."""
    quantises = {"pixel_range": [-1, 1]} if name in ("vq", "movq") else {}
    return {
        "kind": "diffusers_image" if name in IMAGE else "diffusers_video",
        "model": str(model),
        "dtype": "float32",
        "store": _STORES.get(name, "moments"),
        **quantises,
        **changes,
    }


def built(model: Path | str, name: str = "", **changes: Any) -> DiffusersEncoder:
    module, config = resolve(section(model, name, **changes))
    spec = module.describe(config, dtype="float32")
    encoder = module.build(config, spec=spec, device=CPU)
    assert isinstance(encoder, DiffusersEncoder)
    return encoder


def described(model: Path | str, name: str = "", **changes: Any) -> Any:
    module, config = resolve(section(model, name, **changes))
    return module.describe(config, dtype="float32")


def identity(model: Path | str, name: str = "", **changes: Any) -> dict[str, Any]:
    module, config = resolve(section(model, name, **changes))
    return dict(module.identity(config))


def reference(model: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return the model as a trainer loads it: frozen, with diffusers' own defaults.

    Frozen, since CPUs run a convolution whose weights require gradients by another kernel, which
    rounds otherwise, even where no gradient is computed.
    """
    import diffusers

    class_name = json.loads((model / "config.json").read_text())["_class_name"]
    vae = getattr(diffusers, class_name).from_pretrained(str(model), torch_dtype=dtype)
    return vae.requires_grad_(False)


def video_processor() -> Any:
    from diffusers.video_processor import VideoProcessor

    return VideoProcessor(vae_scale_factor=8)


def pixels(frames: int, batch: int = 1, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(0, 256, (batch, frames, *size, 3), dtype=torch.uint8, generator=generator)


def size_of(name: str) -> tuple[int, int]:
    """Return a clip's size: past where CogVideoX's tiles begin; a whole number of Allegro's."""
    if name == "allegro":
        return 136, 128
    if name in ("ltx", "ltx095", "ltx2", "dc"):
        return 64, 96
    return 48, 64


def as_fed_by_diffusers(clip: torch.Tensor) -> torch.Tensor:
    """Return [B, 3, T, H, W] from diffusers' own processor, contiguous.

    The processor's views of [B, T, C, H, W] go to other kernels, which round otherwise.
    """
    fed = video_processor().preprocess_video(list((clip.float() / 255).numpy()))
    return fed.contiguous()


@torch.no_grad()
def expected(name: str, vae: Any, x: torch.Tensor) -> torch.Tensor:
    """Return what a user of diffusers gets of pixels [B, 3, T, H, W], by the model's public calls."""
    if name == "hunyuan":
        vae.use_framewise_encoding = False
    if name in ("allegro", "hunyuan15", "kvae"):  # one clip at a time, or batches change the result
        if name == "allegro":
            vae.enable_tiling()
        return torch.cat([_encoded(name, vae, x[i : i + 1]) for i in range(len(x))])
    if name == "svd" or name in IMAGE:  # one frame of each clip at a time
        frames = [_encoded(name, vae, frame.contiguous()) for frame in x.unbind(2)]
        return torch.stack(frames, -3)
    return _encoded(name, vae, x)


def _encoded(name: str, vae: Any, x: torch.Tensor) -> torch.Tensor:
    if name.startswith("vidtok") and vae.config.is_causal:
        x = torch.cat([x[:, :, :1].repeat(1, 1, 3, 1, 1), x], 2)
    output = vae.encode(x)
    if name == "vidtok_fsq":
        return output[1]
    if name == "dc":
        return output.latent
    if name == "tiny":
        return output.latents
    if name in ("vq", "movq"):
        ids = vae.quantize(output.latents)[2][2]
        return ids.reshape(len(x), *output.latents.shape[2:])
    dist = output.latent_dist
    if name in ("cosmos", "kvae"):
        return dist.mode()
    if name == "flux2":
        return torch.cat([flux2_patchify(dist.mean), flux2_patchify(dist.logvar)], 1)
    return torch.cat([dist.mean, dist.logvar], dim=1)


@torch.no_grad()
def expected_pixels(name: str, vae: Any, z: torch.Tensor) -> torch.Tensor:
    """Return what a user of diffusers gets of the latents or ids of one clip: [1, 3, T, H, W]."""
    if name == "svd":
        frames = vae.decode(z[0].transpose(0, 1), num_frames=z.shape[2]).sample
        return frames.transpose(0, 1)[None]
    if name == "allegro":
        vae.enable_tiling()
        return vae.decode(z).sample.transpose(1, 2)
    if name == "hunyuan":
        vae.use_framewise_decoding = False
    if name.startswith("vidtok"):
        return vae.decode(z, decode_from_indices=name == "vidtok_fsq")
    if name in IMAGE:
        return torch.stack([vae.decode(z[:, :, t]).sample for t in range(z.shape[2])], dim=2)
    return vae.decode(z).sample


def flux2_patchify(latents: torch.Tensor) -> torch.Tensor:
    """Copy `Flux2Pipeline._patchify_latents`, which cannot be imported without transformers."""
    batch_size, num_channels_latents, height, width = latents.shape
    latents = latents.view(batch_size, num_channels_latents, height // 2, 2, width // 2, 2)
    latents = latents.permute(0, 1, 3, 5, 2, 4)
    return latents.reshape(batch_size, num_channels_latents * 4, height // 2, width // 2)
