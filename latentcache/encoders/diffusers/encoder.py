"""Runs an autoencoder of diffusers on its device, as a whole clip and in groups of frames."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from latentcache.core.spec import LatentSpec
from latentcache.encoders import kernels
from latentcache.encoders.checks import check_encoded, check_ids, check_latents, check_pixels
from latentcache.encoders.diffusers.facts import ModelClass, ModelFacts
from latentcache.encoders.diffusers.streams import STREAMS
from latentcache.encoders.inference import exact_kernels
from latentcache.encoders.kernels import Kernels
from latentcache.encoders.streaming import check_stream, regroup
from latentcache.encoders.values import check_values, from_range, to_range
from latentcache.errors import EncoderError


class DiffusersEncoder:
    """An autoencoder of diffusers on its device, used as diffusers' own pipelines use it."""

    #: `encode` takes pixels on its device as well.
    takes_device_pixels = True

    def __init__(
        self,
        vae: Any,
        model_class: ModelClass,
        facts: ModelFacts,
        spec: LatentSpec,
        device: torch.device,
        chosen: Kernels = kernels.PLAIN,
    ) -> None:
        self.spec = spec
        self.kernels = chosen
        self._vae = vae
        self._class = model_class
        # Mean and log-variance, whichever of them is stored.
        self._encoded_channels = spec.channels * (2 if "moments" in facts.stores else 1)
        self._device = device
        self._dtype: torch.dtype = getattr(torch, spec.compute_dtype)
        # A tensor: CUDA divides by a number by multiplying with its reciprocal, one ulp off the CPU.
        self._white = torch.tensor(255.0, device=device)
        if chosen.compile:
            kernels.compile_encoder(vae, spec.model_class)
        if chosen.memory_format != "contiguous":
            kernels.lay_out(vae, chosen.memory_format)

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels to what the model itself gives, bit for bit.

        Moments [B, 2C, t, h, w]; [B, C, t, h, w] if it has no posterior; or ids [B, t, h, w].
        """
        return self.encode_masked(pixels_BTHWC, ())

    @torch.inference_mode()
    def encode_masked(self, pixels_BTHWC: torch.Tensor, zeros: Sequence[bool]) -> torch.Tensor:
        """Encode with some of the T frames 0.0 in the model's range, as its pipelines make conditions."""
        return self._encode(pixels_BTHWC, zeros, self.kernels)

    @torch.inference_mode()
    def encode_plain(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode with the kernels of the model's own call, whatever the recipe chooses: for comparing."""
        relaid = self.kernels.memory_format != "contiguous"
        if relaid:
            kernels.lay_out(self._vae, "contiguous")
        try:
            with kernels.uncompiled() if self.kernels.compile else contextlib.nullcontext():
                return self._encode(pixels_BTHWC, (), kernels.PLAIN)
        finally:
            if relaid:
                kernels.lay_out(self._vae, self.kernels.memory_format)

    def _encode(
        self, pixels_BTHWC: torch.Tensor, zeros: Sequence[bool], chosen: Kernels
    ) -> torch.Tensor:
        thw = check_pixels(self.spec, pixels_BTHWC)
        pixels = self._to_model_range(pixels_BTHWC, chosen)
        if any(zeros):
            pixels[:, :, torch.tensor(zeros)] = 0
        return self._encode_range(pixels, thw, chosen)

    @torch.inference_mode()
    def encode_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode values [B, T, H, W, 3] in [-1, 1] to what `encode` gives."""
        thw = check_values(self.spec, values_BTHWC)
        values = to_range(values_BTHWC, self.spec, self._device, self._dtype)
        values = kernels.laid_out(values, self.kernels.memory_format)
        return self._encode_range(values, thw, self.kernels)

    def _encode_range(
        self, pixels: torch.Tensor, thw: tuple[int, int, int], chosen: Kernels
    ) -> torch.Tensor:
        """Encode pixels [B, 3, T, H, W] in the model's range and dtype."""
        compiled = kernels.compiled(self.spec.model_class)
        with self._model(chosen) as vae, compiled if chosen.compile else contextlib.nullcontext():
            try:
                encoded = self._class.encode(vae, pixels, self.spec.stored)
            except NotImplementedError as error:  # torch's, for a dtype that a device lacks
                raise EncoderError(
                    f"{self.spec.model_class} cannot compute in {self.spec.compute_dtype} on "
                    f"{self._device}: {error}. Set encoder.dtype: float32, or use a GPU."
                ) from error
        channels = () if self.spec.ids is not None else (self._encoded_channels,)
        check_encoded(self.spec, encoded, (len(pixels), *channels, *thw))
        return encoded

    @torch.inference_mode()
    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode un-normalised latents, or ids, to uint8 pixels [B, T, H, W, 3] on the CPU."""
        values_BCTHW = self._decode(latents_BCthw)
        # Arithmetic of VideoProcessor: to [0, 1] in the model's dtype, to levels in float32.
        if self.spec.pixel_range == (-1.0, 1.0):
            values_BCTHW = values_BCTHW * 0.5 + 0.5
        levels = values_BCTHW.clamp(0, 1).float().mul_(255).round_()
        pixels: torch.Tensor = levels.to(torch.uint8).permute(0, 2, 3, 4, 1)
        return pixels.contiguous().cpu()

    @torch.inference_mode()
    def decode_values(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode un-normalised latents, or ids, to float32 [B, T, H, W, 3], clamped to [-1, 1]."""
        return from_range(self._decode(latents_BCthw), self.spec)

    def _decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Return the model's own output [B, 3, T, H, W]."""
        if self.spec.ids is not None:
            latents = check_ids(self.spec, latents_BCthw).to(self._device)
        else:
            check_latents(self.spec, latents_BCthw)
            latents = latents_BCthw.to(self._device, self._dtype)
        with self._model(self.kernels) as vae:
            return self._class.decode(vae, latents)

    def _to_model_range(
        self, pixels_BTHWC: torch.Tensor, chosen: Kernels = kernels.PLAIN
    ) -> torch.Tensor:
        """Return [B, 3, T, H, W] in the chosen memory format: x / 255, or 2 * (x / 255) - 1, in float32."""
        pixels = pixels_BTHWC.to(self._device)  # blocking, because callers reuse their buffers
        values = kernels.laid_out(pixels.permute(0, 4, 1, 2, 3), chosen.memory_format)
        values = values.to(torch.float32).div_(self._white)
        if self.spec.pixel_range == (-1.0, 1.0):
            values = values.mul_(2.0).sub_(1.0)
        return values.to(self._dtype)

    @contextlib.contextmanager
    def _model(self, chosen: Kernels) -> Iterator[Any]:
        """Lend the model, with deterministic kernels and true float32; an error leaves no state behind."""
        try:
            with exact_kernels(self._device, tf32=chosen.tf32):
                yield self._vae
        finally:
            if self._class.reset is not None:
                self._class.reset(self._vae)


class StreamingDiffusersEncoder(DiffusersEncoder):
    """One that takes a clip in groups of frames: those of `streams`, and classes that encode each frame."""

    def stream(self, groups: Iterable[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
        """Encode a clip in groups of frames; yields what `encode` gives, in pieces along time."""
        checked = check_stream(self.spec, groups, frames)
        how = STREAMS.get(self._class.name)
        if how is None:
            yield from map(self.encode, regroup(checked, frames, 1, 1))
            return
        regrouped = regroup(checked, frames, *how.sizes(frames))
        pixels = map(self._to_model_range, regrouped)
        running = how.run(self._vae, pixels, self.spec.latent_frames(frames))
        try:
            while True:
                with exact_kernels(self._device):  # not while the caller has its turn
                    piece = next(running, None)
                if piece is None:
                    return
                yield piece
        finally:
            running.close()
            if self._class.reset is not None:
                self._class.reset(self._vae)
