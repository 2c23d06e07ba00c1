"""How the autoencoders of diffusers are called: from pixels [B, 3, T, H, W] to what is stored, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from latentcache.core.spec import Stored
from latentcache.encoders.kernels import MemoryFormat, is_channels_last, laid_out

Encode = Callable[[Any, torch.Tensor, Stored], torch.Tensor]
Decode = Callable[[Any, torch.Tensor], torch.Tensor]


def encode_moments(vae: Any, pixels: torch.Tensor, store: Stored) -> torch.Tensor:  # noqa: ARG001
    """Return mean and clamped log-variance."""
    posterior = vae.encode(pixels).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], dim=1)


def encode_mode(vae: Any, pixels: torch.Tensor, store: Stored) -> torch.Tensor:  # noqa: ARG001
    """Return the latents of a class whose posterior has no spread of its own."""
    latents: torch.Tensor = vae.encode(pixels).latent_dist.mode()
    return latents


def decode_sample(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return the output of `decode` as most classes give it."""
    pixels: torch.Tensor = vae.decode(latents).sample
    return pixels


def by_frame(encode: Encode) -> Encode:
    """Map an encoder of images over the frames, one of each clip at a time.

    Each frame of a clip by itself then gets the model's own call, bit for bit. In a batch it may not:
    kernels are chosen by the batch's size, and round differently.
    """

    def encode_frames(vae: Any, pixels: torch.Tensor, store: Stored) -> torch.Tensor:
        layout: MemoryFormat = "channels_last" if is_channels_last(pixels) else "contiguous"
        frames = [encode(vae, laid_out(frame, layout), store) for frame in pixels.unbind(2)]
        return torch.stack(frames, dim=-3)

    return encode_frames


def by_latent_frame(decode: Decode) -> Decode:
    """Map a decoder of images over the latent frames, one at a time; ids are [B, t, h, w]."""

    def decode_frames(vae: Any, latents: torch.Tensor) -> torch.Tensor:
        clips = [
            torch.stack([decode(vae, frame.contiguous()) for frame in clip.unbind(-3)], dim=2)
            for clip in torch.split(latents, 1)
        ]
        return torch.cat(clips)

    return decode_frames


def decode_svd(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode a clip at once: only the decoder mixes frames."""
    clips = []
    for clip in latents.unbind():
        frames = clip.transpose(0, 1).contiguous()
        clips.append(vae.decode(frames, num_frames=len(frames)).sample.transpose(0, 1))
    return torch.stack(clips)


def decode_allegro(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode to [B, 3, T, H, W] with a class that puts frames before channels."""
    pixels: torch.Tensor = vae.decode(latents).sample
    return pixels.transpose(1, 2)


def decode_ltx(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode as the pipeline's decode_timestep 0 does; the noise that some models add is seeded."""
    temb = latents.new_zeros(len(latents)) if vae.config.timestep_conditioning else None
    devices = [latents.device] if latents.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        pixels: torch.Tensor = vae.decode(latents, temb).sample
    return pixels


def encode_vidtok(vae: Any, pixels: torch.Tensor, store: Stored) -> torch.Tensor:
    """Encode as VidTok's `forward` does: a causal model needs its first frame stride - 1 more times."""
    if vae.is_causal:
        front = pixels[:, :, :1].expand(-1, -1, vae.temporal_compression_ratio - 1, -1, -1)
        pixels = torch.cat([front, pixels], dim=2)
    if store != "ids":
        return encode_moments(vae, pixels, store)
    ids: torch.Tensor = vae.encode(pixels)[1]
    return ids


def decode_vidtok(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents, or ids, which are integers."""
    pixels: torch.Tensor = vae.decode(latents, decode_from_indices=not latents.is_floating_point())
    return pixels


def reset_vidtok(vae: Any) -> None:
    """Drop the frames kept for a next chunk; every call starts from scratch in any case."""
    vae._empty_causal_cached(vae)
    vae._set_first_chunk(True)


def encode_deterministic(vae: Any, image: torch.Tensor, store: Stored) -> torch.Tensor:  # noqa: ARG001
    """Encode with a class that names its output `latent` or `latents`."""
    output = vae.encode(image)
    latents: torch.Tensor = output.latent if hasattr(output, "latent") else output.latents
    return latents


def encode_vq(vae: Any, image: torch.Tensor, store: Stored) -> torch.Tensor:
    """Return ids [1, h, w], or the latents that would be quantised."""
    latents: torch.Tensor = vae.encode(image).latents
    if store != "ids":
        return latents
    ids: torch.Tensor = vae.quantize(latents)[2][2]
    return ids.view(len(latents), *latents.shape[2:])


def decode_vq(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode ids [1, h, w], or latents: MoVQ's (spatial norm) unchanged, others quantised first."""
    if latents.is_floating_point():
        is_movq = vae.config.norm_type == "spatial"
        pixels: torch.Tensor = vae.decode(latents, force_not_quantize=is_movq).sample
        return pixels
    shape = (*latents.shape, vae.quantize.vq_embed_dim)
    quantised = vae.quantize.get_codebook_entry(latents.reshape(-1).long(), shape)
    condition = quantised if vae.config.norm_type == "spatial" else None
    decoded: torch.Tensor = vae.decoder(vae.post_quant_conv(quantised), condition)
    return decoded


def encode_flux2(vae: Any, image: torch.Tensor, store: Stored) -> torch.Tensor:
    """Return moments with every 2x2 latents as channels; mean and log-variance are kept apart."""
    mean, logvar = encode_moments(vae, image, store).chunk(2, dim=1)
    return torch.cat([patchify(mean), patchify(logvar)], dim=1)


def decode_flux2(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents whose channels are 2x2 latents."""
    return decode_sample(vae, torch.pixel_shuffle(latents, 2))


def patchify(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, 2h, 2w] to [B, 4C, h, w], ordered as `_patchify_latents` of the FLUX.2 pipeline does."""
    return torch.pixel_unshuffle(latents, 2)
