"""Posteriors and normalisers: what happens to an encoder's output before it is stored and after.

Both halves use this module, so it needs only torch and numpy.
Moments [.., 2C, t, h, w]: mean, then log-variance.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import torch

from latentcache.core import device_noise
from latentcache.core.noise import fill
from latentcache.core.spec import Normaliser, Stored

#: Values that are drawn in the time that a call of `fill` takes beside them.
CALL_VALUES = 1 << 14


def split(moments_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mean, logvar), views of moments [B, 2C, t, h, w] or [2C, t, h, w]."""
    mean, logvar = moments_BC.chunk(2, dim=-4)
    return mean, logvar


def sample_seed(*parts: int | str) -> int:
    """Return a seed of 63 bits that depends only on `parts`, such as (seed, epoch, key).

    It is the same on every machine, in every process and version; parts cannot run into one another.
    """
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def sample(mean: torch.Tensor, logvar: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
    """Draw one sample of each posterior of a batch [B, C, t, h, w], in float32 on its device.

    Row i depends only on its moments and seeds[i]. The batch around it does not matter. Neither does
    the device, up to the last bit of its own `exp`: noise is the same everywhere.
    """
    if len(seeds) != len(mean):
        raise ValueError(f"{len(mean)} posteriors need as many seeds, not {len(seeds)}")
    noise, drawn = (
        torch.empty(mean.shape, dtype=torch.float32, device=mean.device) for _ in range(2)
    )
    if mean.device.type == "cpu":
        for row, seed in zip(noise, seeds, strict=True):
            draw_(row, seed)
    else:
        device_noise.fill_(noise, seeds)
    return sample_into(drawn, mean, logvar, noise)


def draw_(noise: torch.Tensor, seed: int) -> torch.Tensor:
    """Fill a contiguous float32 tensor on the CPU with noise that depends only on seed and size.

    Raises ValueError where the seed is not at least 0 and below 2**64.
    """
    fill(noise.view(-1).numpy(), seed)
    return noise


def draw_frames(shape: Sequence[int], frames: Sequence[int], seed: int) -> torch.Tensor:
    """Return what `draw_` gives some frames of noise [C, t, h, w]: float32 [C, n, h, w].

    Only what these frames need is drawn, unless they are many short stretches.
    """
    channels, num, *rest = shape
    each, runs, taken = math.prod(rest), _runs(frames), torch.tensor(list(frames))
    values = sum((last + 1 - first) * each + CALL_VALUES for first, last in runs)
    if values >= num * each:
        return draw_(torch.empty(tuple(shape), dtype=torch.float32), seed)[:, taken]
    found = torch.empty((channels, len(frames), *rest), dtype=torch.float32)
    for first, last in runs:
        inside = (taken >= first) & (taken <= last)
        part = torch.empty((last + 1 - first, *rest), dtype=torch.float32)
        for channel in range(channels):
            fill(part.view(-1).numpy(), seed, (channel * num + first) * each)
            found[channel, inside] = part[taken[inside] - first]
    return found


def _runs(frames: Sequence[int]) -> list[tuple[int, int]]:
    """Return the stretches of frames that follow one another, as (first, last)."""
    runs: list[tuple[int, int]] = []
    for frame in sorted(set(frames)):
        if runs and frame == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], frame
        else:
            runs.append((frame, frame))
    return runs


def sample_into(
    out: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Write mean + exp(logvar / 2) * noise to `out`, and return it.

    out, noise: float32, on the moments' device. The noise is overwritten: new memory costs more than sums.
    """
    out.copy_(logvar).mul_(0.5).exp_().mul_(noise)
    return out.add_(noise.copy_(mean))


def reduce(
    encoded: torch.Tensor, store: Stored, keys: Sequence[str], *, channels: int | None = None
) -> torch.Tensor:
    """Return what is stored from an encoder's output for the clips `keys`.

    encoded: moments [B, 2C, t, h, w]; or latents [B, C, t, h, w], if the encoder has no posterior.
    `channels` (the spec's) tells the two apart. A `sample` is seeded only from the clip's key.
    """
    if store in ("moments", "ids"):
        return encoded
    if channels is not None and encoded.shape[1] == channels:
        return encoded
    mean, logvar = split(encoded)
    if store == "mean":
        return mean
    return sample(mean, logvar, [sample_seed(0, key) for key in keys])


def normalise(latents: torch.Tensor, normaliser: Normaliser) -> torch.Tensor:
    """Return (latents - shift) * scale for [B, C, t, h, w] or [C, t, h, w], in the same dtype.

    Computed in float32. Moments are not accepted.
    """
    if normaliser.kind == "none":
        return latents
    shift, scale = shift_and_scale(latents, normaliser)
    return ((latents.to(torch.float32) - shift) * scale).to(latents.dtype)


def unnormalise(latents: torch.Tensor, normaliser: Normaliser) -> torch.Tensor:
    """Return latents / scale + shift: the inverse of `normalise`, up to rounding."""
    if normaliser.kind == "none":
        return latents
    shift, scale = shift_and_scale(latents, normaliser)
    return (latents.to(torch.float32) / scale + shift).to(latents.dtype)


def shift_and_scale(
    latents: torch.Tensor, normaliser: Normaliser
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normaliser's shift and scale on the latents' device, in shapes that broadcast to them."""
    channels, frames = latents.shape[-4:-2]
    shift, scale = (
        torch.tensor(values, dtype=torch.float32, device=latents.device)
        for values in (normaliser.shift, normaliser.scale)
    )
    if normaliser.kind == "channel_frame":
        return _of_frames(shift, channels, frames), _of_frames(scale, channels, frames)
    for values in (shift, scale):
        if len(values) not in (1, channels):
            raise ValueError(
                f"the normaliser has {len(values)} values, but the latents {list(latents.shape)} "
                f"have {channels} channels: take the mean of moments, and the cache's normaliser"
            )
    return shift.view(-1, 1, 1, 1), scale.view(-1, 1, 1, 1)


def _of_frames(values: torch.Tensor, channels: int, frames: int) -> torch.Tensor:
    """Return the values of all channels and the first t latent frames as [C, t, 1, 1]."""
    if len(values) % channels or len(values) < channels * frames:
        raise ValueError(
            f"the normaliser's {len(values)} values do not cover the latents' {channels} channels and "
            f"{frames} latent frames: take the mean of moments, the cache's normaliser, and no more "
            "latent frames than it has values for"
        )
    return values.view(channels, -1, 1, 1)[:, :frames]
