"""What the discrete tokenizers share: from uint8 pixels to ids, and from ids to uint8 pixels.

They compute only in float32. In a lower precision a code near a tie becomes another code, and then the
id is wrong by more than rounding. Ids leave as int64; the pipeline stores them in the type that the
spec names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from latentcache.core.spec import FrameRule, IdSpec, LatentSpec
from latentcache.encoders.checks import check_encoded, check_pixels
from latentcache.encoders.inference import exact_kernels, to_pixels, to_values
from latentcache.encoders.values import check_values, from_range, to_range
from latentcache.errors import EncoderError

#: Frames that an image network takes at once. 16 of 256x256 need about 2 GiB in a VQGAN of 128 channels.
FRAMES_AT_ONCE = 16
#: Input values that several trainers make of levels: (x / 255 - 0.5) / 0.5 in float32, as torchvision does.
CENTRED = (torch.arange(256, dtype=torch.float32) / 255.0 - 0.5) / 0.5
#: Positions that are compared with the codebook at once. 16,384 codes need 512 MiB of distances.
_ROWS_AT_ONCE = 1 << 13


class Tokenizer(Protocol):
    """A network between pixel values [B, 3, T, H, W] and ids [B, t, h, w], or multi-scale ids [B, n]."""

    def to_ids(self, values_BCTHW: torch.Tensor) -> torch.Tensor:
        """Return int64 ids."""
        ...

    def to_values(self, ids: torch.Tensor) -> torch.Tensor:
        """Return pixel values of int64 ids, in the range of the input, not clamped."""
        ...


class FromLevels(ABC):
    """The front of an encoder whose network is fed a value per level of a pixel.

    spec: what it gives. _levels: [256], on _device, in the dtype of the network.
    """

    spec: LatentSpec
    _device: torch.device
    _levels: torch.Tensor

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels: int64 ids [B, t, h, w], [B, n] if they have several scales; or latents."""
        expected = check_clip(self.spec, pixels_BTHWC)
        with exact_kernels(self._device):
            values_BTCHW = to_values(pixels_BTHWC, self._levels)
            return self._encode(values_BTCHW.transpose(1, 2).contiguous(), expected)

    def encode_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode values [B, T, H, W, 3] in [-1, 1] to what `encode` gives."""
        check_values(self.spec, values_BTHWC)
        expected = self.spec.latent_shape(*values_BTHWC.shape[1:4])
        with exact_kernels(self._device):
            values = to_range(values_BTHWC, self.spec, self._device, self._levels.dtype)
            return self._encode(values, expected)

    @abstractmethod
    def _encode(self, values_BCTHW: torch.Tensor, expected: tuple[int, ...]) -> torch.Tensor:
        """Run the network. expected: the shape of one sample. Raises EncoderError for another one."""


class DiscreteEncoder(FromLevels):
    """A `protocol.Encoder` around a tokenizer on its device.

    levels: float32 [256], the tokenizer's input for each level of a pixel, computed as in the
    published code.
    """

    def __init__(
        self, tokenizer: Tokenizer, spec: LatentSpec, device: torch.device, levels: torch.Tensor
    ) -> None:
        self.spec = spec
        self._tokenizer = tokenizer
        self._device = device
        self._levels = levels.to(device)

    def _encode(self, values_BCTHW: torch.Tensor, expected: tuple[int, ...]) -> torch.Tensor:
        ids = self._tokenizer.to_ids(values_BCTHW)
        check_encoded(self.spec, ids, (len(values_BCTHW), *expected))
        return check_range(self.spec, ids)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode ids, of any integer type, to uint8 pixels [B, T, H, W, 3] on the CPU."""
        ids = check_ids(self.spec, latents_BCthw)
        with exact_kernels(self._device):
            values_BCTHW = self._tokenizer.to_values(ids.to(self._device))
            return pixels_of(values_BCTHW, self.spec.pixel_range)

    def decode_values(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode ids, of any integer type, to float32 [B, T, H, W, 3], clamped to [-1, 1]."""
        ids = check_ids(self.spec, latents_BCthw)
        with exact_kernels(self._device):
            return from_range(self._tokenizer.to_values(ids.to(self._device)), self.spec)


def frame_spec(
    kind: str, model_class: str, stride: int, ids: IdSpec, weights_sha256: str
) -> LatentSpec:
    """Return the spec of ids of single frames, [T, H / stride, W / stride]."""
    return LatentSpec(
        encoder=kind,
        model_class=model_class,
        channels=1,
        stride=(1, stride, stride),
        pixel_layout="BCHW",
        frame_rule=FrameRule(),
        stored="ids",
        dtype=ids.dtype,
        exactness="prefix_exact",
        weights_sha256=weights_sha256,
        ids=ids,
    )


def per_frame(
    run: Callable[[torch.Tensor], torch.Tensor], frames_BTX: torch.Tensor
) -> torch.Tensor:
    """Return what an image network gives for frames [B, T, ...], a few at once."""
    parts = torch.split(frames_BTX.flatten(0, 1), FRAMES_AT_ONCE)
    made = torch.cat([run(part.contiguous()) for part in parts])
    return made.reshape(*frames_BTX.shape[:2], *made.shape[1:])


def check_clip(spec: LatentSpec, pixels_BTHWC: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of one clip's latent. Raises EncoderError and GeometryError, as `check_pixels`."""
    check_pixels(replace(spec, stored="mean", ids=None), pixels_BTHWC)  # it returns only (t, h, w)
    return spec.latent_shape(*pixels_BTHWC.shape[1:4])


def check_ids(spec: LatentSpec, ids: torch.Tensor) -> torch.Tensor:
    """Return a batch of ids as int64. Raises EncoderError if they are not ids of this encoder."""
    assert spec.ids is not None
    scales = spec.ids.scales
    number = sum(side * side for side in scales)
    fits = ids.ndim == 2 and ids.shape[1] == number if scales else ids.ndim == 4
    if not fits or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        axes = f"[B, {number}]" if scales else "[B, t, h, w]"
        raise EncoderError(
            f"{spec.model_class} decodes whole numbers {axes}, not {ids.dtype} {list(ids.shape)}"
        )
    return check_range(spec, ids.long())


def check_range(spec: LatentSpec, ids: torch.Tensor) -> torch.Tensor:
    """Return int64 ids. Raises EncoderError if one is outside the codebook."""
    assert spec.ids is not None
    low, high = (int(extreme) for extreme in torch.aminmax(ids))
    if low < 0 or high >= spec.ids.codebook_size:
        raise EncoderError(
            f"{spec.model_class} has the codes 0 to {spec.ids.codebook_size - 1}, but these ids go "
            f"from {low} to {high}. Take special ids, such as masks, out before decoding. If the "
            "encoder gave them, its weights are of another model than the spec's."
        )
    return ids


def pixels_of(values_BCTHW: torch.Tensor, pixel_range: tuple[float, float]) -> torch.Tensor:
    """Return values in the tokenizer's range as uint8 pixels [B, T, H, W, 3] on the CPU."""
    low, high = pixel_range
    return to_pixels(((values_BCTHW.float() - low) / (high - low)).transpose(1, 2))


def nearest_code(vectors_NC: torch.Tensor, codebook_KC: torch.Tensor) -> torch.Tensor:
    """Return the int64 index [N] of the nearest code by Euclidean distance; the first if several tie."""
    squares = codebook_KC.square().sum(1)
    indices = [
        (rows.square().sum(1, keepdim=True) + squares)
        .addmm_(rows, codebook_KC.T, alpha=-2)
        .argmin(1)
        for rows in torch.split(vectors_NC, _ROWS_AT_ONCE)
    ]
    return torch.cat(indices)
