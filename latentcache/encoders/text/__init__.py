"""Text encoders: what a trainer's text condition is, computed as its reference computes it."""

from latentcache.encoders.text.registry import (
    FAMILIES,
    TextDescription,
    build_text_encoder,
    describe_text_encoder,
    text_settings,
)

__all__ = [
    "FAMILIES",
    "TextDescription",
    "build_text_encoder",
    "describe_text_encoder",
    "text_settings",
]
