"""What a configuration says of a text encoder. Each family adds its own keys."""

from __future__ import annotations

from pydantic import Field

from latentcache.encoders.pretrained.settings import PretrainedSettings


class TextSettings(PretrainedSettings):
    """Base of every family's settings."""

    family: str = Field(description="The family of models that takes these states.")
