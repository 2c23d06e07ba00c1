"""Encoders of sound: a trainer's audio condition or target, computed as its reference does."""

from latentcache.encoders.sounds.registry import (
    SOUNDS,
    SoundDescription,
    build_sound_encoder,
    describe_sound_encoder,
)

__all__ = ["SOUNDS", "SoundDescription", "build_sound_encoder", "describe_sound_encoder"]
