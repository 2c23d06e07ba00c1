"""An orthonormal 3-D DCT autoencoder: no weights, the geometry of Wan 2.1, fast on a CPU.

For demos, for tests and for measuring the pipeline with an encoder that is almost free. It is no learned
autoencoder: 16 of the 768 coefficients of each block are kept, so decoding gives a blurred video,
and a diffusion model trained on these latents learns blurred videos.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from latentcache.config.base import Section
from latentcache.core.spec import FrameRule, LatentSpec, Normaliser
from latentcache.encoders.checks import check_latents, check_pixels
from latentcache.encoders.streaming import check_stream, regroup
from latentcache.encoders.values import check_values

#: Pixels of a block along T, H, W; three colours each.
STRIDE = (4, 8, 8)
#: The kept coefficients as frequencies (colour, t, y, x). Luma keeps the lowest 2x2x2 and one more
#: along each of y and x; each chroma keeps the mean and one along each of y and x.
KEPT = (
    *((0, t, y, x) for t in (0, 1) for y in (0, 1) for x in (0, 1)),
    *((0, 0, 2, 0), (0, 0, 0, 2)),
    *((colour, 0, y, x) for colour in (1, 2) for y, x in ((0, 0), (1, 0), (0, 1))),
)
CHANNELS = len(KEPT)
#: The log-variance to which diffusers' distributions clamp: a posterior without spread.
LOGVAR = -30.0
_Finish = Callable[[torch.Tensor], torch.Tensor]
#: How many values are converted at a time: 3 MiB as float32. Measured at 480x720 on one thread:
#: 1.7 to 3.3 MiB are all within 10 % of the best; a whole group of frames at once, 17 MiB, is half
#: as fast.
_PIECE = 3 << 18


class Config(Section):
    """The encoder `dct`."""

    kind: Literal["dct"]
    store: Literal["moments", "mean", "sample"] = "mean"


def describe(config: Config, *, dtype: str) -> LatentSpec:
    """Return the spec; the latents divided by 16 have about unit variance."""
    return LatentSpec(
        encoder="dct",
        model_class="DCT",
        channels=CHANNELS,
        stride=STRIDE,
        frame_rule=FrameRule(multiple=4, remainders=(1,)),
        stored=config.store,
        dtype=dtype,
        normaliser=Normaliser(kind="scale", scale=(1 / 16,)),
        exactness="prefix_exact",
    )


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; `revision` counts changes of the arithmetic."""
    return {"kind": "dct", "model_class": "DCT", "revision": 1, "store": config.store}


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> DCTEncoder:  # noqa: ARG001 - the interface's
    """Return the encoder."""
    return DCTEncoder(spec, device)


def dct_matrix(size: int) -> torch.Tensor:
    """Return the orthonormal DCT-II, float64 [frequency, position]."""
    k, n = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    matrix = torch.cos(math.pi / size * (n.double() + 0.5) * k) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def kept_basis() -> torch.Tensor:
    """Return the orthonormal basis, float64 [16, 4, 8, 8, 3]: coefficient; T, H, W, colour."""
    times, rows, columns = (dct_matrix(size) for size in STRIDE)
    colours = dct_matrix(3)
    return torch.stack(
        [
            torch.einsum("i,j,k,l->ijkl", times[t], rows[y], columns[x], colours[c])
            for c, t, y, x in KEPT
        ]
    )


class DCTEncoder:
    """See the module. The first frame is a block by itself: four copies of it."""

    def __init__(self, spec: LatentSpec, device: torch.device) -> None:
        self.spec = spec
        self._device = device
        self._basis = kept_basis().float().to(device)
        times, rows, columns = (dct_matrix(size) for size in STRIDE)
        pairs_ty = sorted({(t, y) for _, t, y, _ in KEPT})
        pairs_cx = sorted({(c, x) for c, _, _, x in KEPT})
        vertical = torch.stack([torch.outer(times[t], rows[y]) for t, y in pairs_ty])
        across = torch.stack([torch.outer(columns[x], dct_matrix(3)[c]) for c, x in pairs_cx])
        # Keyed by the number of frames: [pairs_ty, frames x rows]. A single frame gets the sum of four.
        self._vertical = {
            4: vertical.flatten(1).float().to(device),
            1: vertical.sum(1).float().to(device),
        }
        # Scaling uint8 to [-1, 1] is 2 / 255 here, and -1 in the first coefficient: others sum to zero.
        self._across = (across.flatten(1).T * (2 / 255)).float().contiguous().to(device)
        self._offset = math.sqrt(math.prod(STRIDE) * 3)
        index = [
            pairs_ty.index((t, y)) * len(pairs_cx) + pairs_cx.index((c, x)) for c, t, y, x in KEPT
        ]
        self._kept = torch.tensor(index, device=device)

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels to float32 [B, 32, t, h, w]: coefficients, then log-variances."""
        return self.encode_masked(pixels_BTHWC, ())

    @torch.inference_mode()
    def encode_masked(self, pixels_BTHWC: torch.Tensor, zeros: Sequence[bool]) -> torch.Tensor:
        """Encode with some of the T frames 0.0 in [-1, 1], which is grey between two levels."""
        thw = check_pixels(self.spec, pixels_BTHWC)
        pixels = pixels_BTHWC.to(self._device).contiguous()
        if any(zeros):
            pixels = pixels.float()
            pixels[:, torch.tensor(zeros)] = 255 / 2
        return self._encode(pixels, thw)

    @torch.inference_mode()
    def encode_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode values [B, T, H, W, 3] in [-1, 1] to float32 [B, 32, t, h, w]."""
        thw = check_values(self.spec, values_BTHWC)
        levels = values_BTHWC.to(self._device, torch.float32).add(1).mul_(255 / 2)
        return self._encode(levels.contiguous(), thw)

    def stream(self, groups: Iterable[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
        """Encode a clip in groups of frames; yields one latent frame at a time."""
        checked = check_stream(self.spec, groups, frames)
        for group in regroup(checked, frames, 1, STRIDE[0]):
            with torch.inference_mode():
                pixels = group.to(self._device).contiguous()
                h, w = (side // STRIDE[1] for side in pixels.shape[2:4])
                out = torch.full((len(pixels), 2 * CHANNELS, 1, h, w), LOGVAR, device=self._device)
                for clip, latent in zip(pixels, out, strict=True):
                    self._encode_group(clip, latent[:CHANNELS, 0])
                out[:, 0] -= self._offset
            yield out

    def _encode(self, pixels: torch.Tensor, thw: tuple[int, int, int]) -> torch.Tensor:
        """Encode levels [B, T, H, W, 3] from 0 to 255, of any type."""
        t, h, w = thw
        out = torch.full((len(pixels), 2 * CHANNELS, t, h, w), LOGVAR, device=self._device)
        for clip, latent in zip(pixels, out, strict=True):
            groups = [clip[:1], *clip[1:].split(STRIDE[0])] if t > 1 else [clip]
            for i, group in enumerate(groups):
                self._encode_group(group, latent[:CHANNELS, i])
        out[:, 0] -= self._offset
        return out

    def _encode_group(self, group_THWC: torch.Tensor, out_Chw: torch.Tensor) -> None:
        """Contract time and height, then width and colour; rows are contiguous, pieces cached."""
        frames, height, width, _ = group_THWC.shape
        _, block, _ = STRIDE
        rows = group_THWC.view(frames, height // block, block, width * 3).transpose(0, 1)
        step = max(1, _PIECE // (frames * block * width * 3))
        for start in range(0, len(rows), step):
            piece = rows[start : start + step].to(
                torch.float32, memory_format=torch.contiguous_format
            )
            piece = piece.contiguous()  # `to` leaves floats as they lie
            vertical = self._vertical[frames].expand(len(piece), -1, -1)
            partial = torch.bmm(vertical, piece.view(len(piece), frames * block, -1))
            product = partial.view(-1, block * 3) @ self._across
            grid = product.view(len(piece), -1, width // block, product.shape[-1])
            out_Chw[:, start : start + step] = grid.permute(1, 3, 0, 2).flatten(0, 1)[self._kept]

    @torch.inference_mode()
    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode coefficients to uint8 pixels [B, T, H, W, 3] on the CPU: encode transposed."""
        return self._decode(latents_BCthw, _to_levels).cpu()

    @torch.inference_mode()
    def decode_values(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode coefficients to float32 [B, T, H, W, 3], clamped to [-1, 1]."""
        return self._decode(latents_BCthw, lambda values: values.clamp_(-1, 1))

    def _decode(self, latents_BCthw: torch.Tensor, finish: _Finish) -> torch.Tensor:
        """Return what `finish` makes of the decoded values, [B, T, H, W, 3]."""
        check_latents(self.spec, latents_BCthw)
        latents = latents_BCthw.to(self._device, torch.float32)
        clips = []
        for clip in latents:
            alone, *others = clip.unbind(1)
            frames = [self._decode_group(alone, self._basis.mean(1, keepdim=True), finish)]
            frames += [self._decode_group(latent, self._basis, finish) for latent in others]
            clips.append(torch.cat(frames))
        return torch.stack(clips)

    def _decode_group(
        self, latent_Chw: torch.Tensor, basis: torch.Tensor, finish: _Finish
    ) -> torch.Tensor:
        """Return the frames of one latent frame, as many as the basis has: [T, H, W, 3]."""
        _, h, w = latent_Chw.shape
        _, st, sh, sw, _ = basis.shape
        blocks = finish(latent_Chw.flatten(1).T @ basis.flatten(1))
        blocks = blocks.view(h, w, st, sh, sw * 3).permute(2, 0, 3, 1, 4)
        return blocks.reshape(st, h * sh, w * sw, 3)


def _to_levels(values: torch.Tensor) -> torch.Tensor:
    """Return values in [-1, 1] as uint8."""
    return values.add_(1).mul_(255 / 2).round_().clamp_(0, 255).to(torch.uint8)
