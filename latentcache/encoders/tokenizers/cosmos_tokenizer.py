"""NVIDIA's Cosmos tokenizers from their TorchScript files: DV gives ids, CV gives 16 latent channels.

The whole clip of 1 + kT frames goes through `encoder.jit`, as in `CausalVideoTokenizer.encode` of the
published package. The package's `forward` works differently: it cuts a video into independent windows
of 17 frames, pads each in time with copies of its ends, and pads frames with black to multiples of 16.
None of that happens here. So longer clips have other latents than `forward` would give: those of a
causal model over the whole clip.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from latentcache.config.base import Section
from latentcache.core.spec import FrameRule, IdSpec, LatentSpec
from latentcache.encoders.checkpoint import Checkpoint, locate
from latentcache.encoders.checks import check_encoded, check_latents
from latentcache.encoders.inference import exact_kernels
from latentcache.encoders.tokenizers.discrete import (
    FromLevels,
    check_ids,
    check_range,
    pixels_of,
)
from latentcache.encoders.values import from_range
from latentcache.errors import ConfigError, EncoderError

ENCODER, DECODER = "encoder.jit", "decoder.jit"
#: Codes of every DV tokenizer: the product of the levels (8, 8, 8, 5, 5, 5) of its finite scalar quantiser.
#: An id is sum(level_i * basis_i), the first channel changing fastest; the basis is the product of those
#: before.
CODES = 64_000
CV_CHANNELS = 16
#: Input values of the model: 2 * (x / 255) - 1 in float64, then rounded, as in its numpy2tensor.
LEVELS = torch.from_numpy((2.0 * (np.arange(256) / 255.0) - 1.0).astype(np.float32))
_VARIANT = re.compile(r"(CV|DV)(\d+)x(\d+)x(\d+)")

Variant = Literal["CV4x8x8", "CV8x8x8", "CV8x16x16", "DV4x8x8", "DV8x8x8", "DV8x16x16"]


class Config(Section):
    """The encoder `cosmos_tokenizer`. What changes the latents has no default."""

    kind: Literal["cosmos_tokenizer"]
    model: str = Field(
        min_length=1, description=f"Folder that holds {ENCODER} and, to decode, {DECODER}."
    )
    variant: Variant | None = Field(
        default=None,
        description="Continuous or discrete, and pixels per latent along T, H, W. Omitted: taken from the "
        "folder's name, such as Cosmos-0.1-Tokenizer-DV8x16x16; the files do not say it.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        description="What the encoder computes in. The published package uses bfloat16 on a GPU; "
        "CPUs need float32. Ids near a tie differ between the two."
    )
    trust_torchscript: bool = Field(
        default=False,
        description="The files are programs, and true runs them: only if you have them from NVIDIA. Never "
        "stored in a cache, so jobs on one take it on the command line.",
    )


def describe(config: Config, *, dtype: str) -> LatentSpec:
    """Return the spec from the variant and the hash of the file, which is not loaded."""
    _check_trusted(config)
    variant, stride = _variant(config)
    ids = IdSpec(codebook_size=CODES) if variant.startswith("DV") else None
    return LatentSpec(
        encoder=config.kind,
        model_class=f"Cosmos {variant}",
        channels=1 if ids else CV_CHANNELS,
        stride=stride,
        frame_rule=FrameRule(multiple=stride[0], remainders=(1,)),
        stored="ids" if ids else "mean",
        dtype=ids.dtype if ids else dtype,
        compute_dtype=config.dtype,
        exactness="prefix_exact",
        weights_sha256=_encoder_file(config).sha256(),
        ids=ids,
    )


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; `window` says that no clip is cut into windows."""
    variant, _ = _variant(config)
    return {
        "kind": config.kind,
        "model_class": f"Cosmos {variant}",
        "revision": 1,
        "weights_sha256": _encoder_file(config).sha256(),
        "dtype": config.dtype,
        "window": None,
    }


def decoder_identity(config: Config) -> Mapping[str, Any]:
    """Return what else determines decoded values: the decoder's own file, if there is one."""
    path = Path(config.model) / DECODER
    return {"decoder_sha256": locate(str(path), "encoder.model").sha256()} if path.is_file() else {}


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> CosmosEncoder:
    """Load the encoder, and the decoder if there is one. Raises ConfigError and EncoderError."""
    _check_trusted(config)
    file = _encoder_file(config)
    file.check_unchanged(spec)
    dtype: torch.dtype = getattr(torch, config.dtype)
    if device.type == "cpu" and dtype != torch.float32:
        raise ConfigError(
            f"encoder.dtype is {config.dtype}, but on a CPU torch cannot pool frames in it, as these "
            "models do. Set encoder.dtype to float32, or run on a GPU."
        )
    decoder = file.path.with_name(DECODER)
    return CosmosEncoder(
        _load(file.path, device, dtype),
        _load(decoder, device, dtype) if decoder.is_file() else None,
        spec,
        device,
    )


def _check_trusted(config: Config) -> None:
    if not config.trust_torchscript:
        raise ConfigError(
            f"encoder.model: {Path(config.model) / ENCODER} is TorchScript, a program, and would run "
            "here. Nothing was run. If you have the folder from NVIDIA, say so: "
            "encoder.trust_torchscript=true, in the configuration or, for a cache, on the command line."
        )


def _encoder_file(config: Config) -> Checkpoint:
    return locate(str(Path(config.model) / ENCODER), "encoder.model")


def _variant(config: Config) -> tuple[str, tuple[int, int, int]]:
    """Return the variant and its stride. Raises ConfigError if nothing names it, or two names differ."""
    folder = Path(config.model).expanduser().resolve().name
    found = _VARIANT.search(folder)
    named = found.group() if found else None
    variant = config.variant or named
    if variant is None:
        raise ConfigError(
            f"encoder.variant: the folder's name, {folder!r}, does not say which tokenizer this is. The "
            "files do not say it either, and a wrong stride would be stored with every latent. Set "
            "encoder.variant, such as DV8x16x16."
        )
    if named is not None and variant != named:
        raise ConfigError(
            f"encoder.variant is {variant}, but encoder.model is a folder of {named}. "
            "Correct one of them."
        )
    _, t, h, w = _VARIANT.fullmatch(variant).groups()  # type: ignore[union-attr] # it matched, or was checked
    return variant, (int(t), int(h), int(w))


def _load(path: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a TorchScript module in eval mode. Raises EncoderError."""
    try:
        with warnings.catch_warnings():
            # torch warns authors to export instead; these files are what NVIDIA publishes.
            warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
            return torch.jit.load(str(path), map_location=device).eval().to(dtype)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise EncoderError(
            f"encoder.model: {path} cannot be loaded as TorchScript: "
            f"{' '.join(str(error).split())[:300]} Download it again."
        ) from error


class CosmosEncoder(FromLevels):
    """The two TorchScript modules on their device: a `protocol.Encoder` for both kinds of latents."""

    def __init__(self, encoder: Any, decoder: Any, spec: LatentSpec, device: torch.device) -> None:
        self.spec = spec
        self._encoder = encoder
        self._decoder = decoder
        self._device = device
        self._levels = LEVELS.to(device, getattr(torch, spec.compute_dtype))

    def _encode(self, values_BCTHW: torch.Tensor, expected: tuple[int, ...]) -> torch.Tensor:
        outputs = self._encoder(values_BCTHW)
        # DV: ids, codes, loss. CV: latents, and perhaps numbers that only training uses.
        encoded: torch.Tensor = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        check_encoded(self.spec, encoded, (len(values_BCTHW), *expected))
        if self.spec.ids is None:
            return encoded
        return check_range(self.spec, encoded.long())

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode ids or latents to uint8 pixels [B, T, H, W, 3] on the CPU."""
        with exact_kernels(self._device):
            return pixels_of(self._decode(latents_BCthw), self.spec.pixel_range)

    def decode_values(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode ids or latents to float32 [B, T, H, W, 3], clamped to [-1, 1]."""
        with exact_kernels(self._device):
            return from_range(self._decode(latents_BCthw), self.spec)

    def _decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Return the model's own output [B, 3, T, H, W]."""
        if self._decoder is None:
            raise EncoderError(
                f"{self.spec.model_class} was loaded from a folder without {DECODER}, so it cannot "
                "decode. Put the file next to the encoder."
            )
        if self.spec.ids is not None:
            # The published modules take int32, which is what their encoders give.
            given = check_ids(self.spec, latents_BCthw).to(self._device, torch.int32)
        else:
            check_latents(self.spec, latents_BCthw)
            given = latents_BCthw.to(self._device, self._levels.dtype)
        decoded: torch.Tensor = self._decoder(given)
        return decoded
