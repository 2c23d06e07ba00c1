"""The quantiser of a configuration's encoder, for the cache to keep."""

from __future__ import annotations

from latentcache import encoders
from latentcache.config.sections import Config
from latentcache.format.quantiser import to_bytes

#: How an encoder is run, which is nothing to its codebook.
_HOW = ("tiling", "batch")


def quantiser_of(config: Config) -> bytes | None:
    """Return the object `quantiser.safetensors`; None if the encoder's module has no `quantiser`.

    Raises ConfigError.
    """
    raw = {name: value for name, value in config.encoder.items() if name not in _HOW}
    module, encoder_config = encoders.resolve(raw)
    found = getattr(module, "quantiser", None)
    return to_bytes(found(encoder_config)) if callable(found) else None
