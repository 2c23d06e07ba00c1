"""Text encoders: what a trainer's text condition is, computed as its reference computes it."""

from latentcache.encoders.text.registry import (
    FAMILIES,
    JOINT_FAMILIES,
    TextDescription,
    build_joint_encoder,
    build_text_encoder,
    describe_joint_encoder,
    describe_text_encoder,
    text_settings,
)

__all__ = [
    "FAMILIES",
    "JOINT_FAMILIES",
    "TextDescription",
    "build_joint_encoder",
    "build_text_encoder",
    "describe_joint_encoder",
    "describe_text_encoder",
    "text_settings",
]
