"""From a cached latent back to pixels, with the encoder that the cache was made with.

`Cache.decode` imports this when it is called: the rest of the read half works without encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel

from latentcache import encoders
from latentcache.config.files import check_encoder
from latentcache.config.sections import of_a_cache
from latentcache.core import posterior
from latentcache.core.devices import resolve_device
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.spec import LatentSpec, Stored
from latentcache.encoders.protocol import Encoder, EncoderModule
from latentcache.encoders.values import of_values
from latentcache.errors import ClipError, EncoderError, RecipeMismatchError
from latentcache.format.manifest import Manifest, recipe_difference

#: Keys of the section `encoder` that say how it is encoded, and do not matter for decoding.
_HOW = ("tiling", "batch", "memory_format", "compile", "tf32")
#: What decides latents but not which model they are of: it may differ for decoding.
_ENCODING_ONLY = ("dtype", "packages", *_HOW)


class Decoder:
    """The encoder of a cache, built to decode. Not safe to use from several threads at once.

    Raises ConfigError, RecipeMismatchError or EncoderError if it cannot be built.
    """

    def __init__(
        self,
        manifest: Manifest,
        changes: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self._key = _key(changes, device)
        self._stored = manifest.spec.stored
        self._encoder = _build(manifest, changes or {}, resolve_device(device))

    def is_for(self, changes: Mapping[str, Any] | None, device: str | torch.device | None) -> bool:
        """Tell whether the encoder was built for the same changes and device."""
        return self._key == _key(changes, device)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode one stored sample, as stored, to uint8 [T, H, W, 3] on the CPU."""
        return decode_stored(self._encoder, latents, self._stored)

    def decode_values(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode one stored sample, as stored, to float32 [T, H, W, 3] in [-1, 1] on the device."""
        return of_values(self._encoder).decode_values(means_of(latents, self._stored)[None])[0]


def means_of(latents: torch.Tensor, stored: Stored) -> torch.Tensor:
    """Return what is decoded of one sample as it is stored: the mean of moments."""
    return posterior.split(latents)[0] if stored == "moments" else latents


def decode_stored(encoder: Encoder, latents: torch.Tensor, stored: Stored) -> torch.Tensor:
    """Decode one sample, as it is stored, to uint8 [T, H, W, 3] on the CPU; moments decode to the mean."""
    return encoder.decode(means_of(latents, stored)[None])[0]


def resolve_stored(
    manifest: Manifest,
    changes: Mapping[str, Any],
    fix: str = "name it yourself, as encoder={{'kind': {kind!r}}}.",
) -> tuple[EncoderModule, BaseModel]:
    """Return module and configuration of a cache's encoder, to decode with; nothing is loaded.

    fix: how to allow an encoder of the maker's own, with `kind` in braces. Raises ConfigError,
    RecipeMismatchError.
    """
    raw = {**of_a_cache(manifest.config).get("encoder", {}), **changes}
    for name in _HOW:
        raw.pop(name, None)
    kind = str(raw.get("kind"))
    check_encoder(kind, [changes.get("kind")], fix.format(kind=kind))
    module, config = encoders.resolve(raw)
    _check_same(manifest.recipe["encoder"], module.identity(config))
    return module, config


def _build(manifest: Manifest, changes: Mapping[str, Any], device: torch.device) -> Encoder:
    module, config = resolve_stored(manifest, changes)
    spec: LatentSpec = module.describe(config, dtype=manifest.spec.dtype)
    encoder = module.build(config, spec=spec, device=device)
    if not callable(getattr(encoder, "decode", None)):
        raise EncoderError(
            f"{spec.model_class} has no `decode`, so latents made with it cannot be looked at. Add "
            "it to the encoder: see latentcache.encoders.protocol.Encoder."
        )
    return encoder


def _check_same(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = (
        {name: value for name, value in identity.items() if name not in _ENCODING_ONLY}
        for identity in (recorded, now)
    )
    lines = recipe_difference({"encoder": old}, {"encoder": new})
    if lines:
        raise RecipeMismatchError(
            "the cache cannot be decoded with this model: another one encoded it, and the "
            "pixels would be wrong. Give the cache's own model with `encoder`. The difference:\n"
            + "\n".join(f"  {line}" for line in lines)
        )


def _key(
    changes: Mapping[str, Any] | None, device: str | torch.device | None
) -> tuple[dict[str, Any], torch.device]:
    return dict(changes or {}), resolve_device(device)


def to_stored(encoded: torch.Tensor, key: str, spec: LatentSpec) -> Array:
    """Turn one encoded clip [1, ...] into the array that is stored.

    Raises ClipError("non_finite") if a value is not finite in the stored dtype.
    """
    return checked(reduced(encoded, [key], spec)[0].cpu(), spec)


def reduced(encoded: torch.Tensor, keys: Sequence[str], spec: LatentSpec) -> torch.Tensor:
    """Return what is stored of a batch of encoded clips, in the stored dtype, on the encoder's device."""
    kept = posterior.reduce(encoded, spec.stored, keys, channels=spec.channels)
    return kept.to(torch_dtype(spec.dtype))


def checked(stored: torch.Tensor, spec: LatentSpec) -> Array:
    """Return one clip's stored values, on the CPU, as an array. Raises ClipError("non_finite")."""
    if stored.is_floating_point() and not bool(torch.isfinite(stored).all()):
        bad = int((~torch.isfinite(stored)).sum())
        raise ClipError(
            "non_finite", f"{bad} of {stored.numel()} latent values are not finite as {spec.dtype}"
        )
    return as_numpy(stored.contiguous())
