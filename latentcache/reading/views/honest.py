"""When a part of a clip's latents is what the encoder gives for these frames only."""

from __future__ import annotations

from collections.abc import Mapping

from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError


def check_middle(
    spec: LatentSpec,
    name: str,
    *,
    prefix: bool,
    allowed: bool,
    where: Mapping[str, int],
    goes_on: bool = False,
) -> None:
    """Raise ConfigError where a part of a clip is not what the encoder gives for this part.

    prefix: whether parts are only ever a clip's first frames. where: the buckets that are cut, with their
    latent frames; others come whole. goes_on: whether parts go on in the next clips.
    """
    honest = spec.frame_independent or (prefix and spec.exactness == "prefix_exact")
    if honest or allowed or not where:
        return
    seen = "all of the clip" if spec.exactness != "prefix_exact" else "the frames before it"
    fix = 'or start="first", ' if name == "Window" and spec.exactness == "prefix_exact" else ""
    if goes_on:
        raise ConfigError(
            f"{name}: run_on=True puts latents of two clips into one window, and a latent frame of "
            f"{spec.model_class} has seen {seen}: the first ones of the next clip have not seen the clip "
            "before, so no clip of these frames would be encoded to such a window. Leave run_on out, "
            "encode longer clips, or say that it is wanted: middle=True."
        )
    raise ConfigError(
        f"{name}: a latent frame of {spec.model_class} has seen {seen}, so the middle of a clip is not "
        "what a clip of these frames would be encoded to, and a model that trains on it meets something "
        f"else at its first frames. Encode shorter clips, {fix}or say that it is wanted: middle=True."
    )


def check_long_enough(name: str, needed: int, buckets: Mapping[str, int]) -> None:
    """Raise ConfigError where clips of a bucket have too few latent frames."""
    short = [bucket for bucket, num_frames in buckets.items() if num_frames < needed]
    if short:
        raise ConfigError(
            f"{name}: it takes {needed} latent frames of a clip, but those of bucket {short[0]} have only "
            f"{buckets[short[0]]}. Take fewer, or leave short clips out: "
            f'where="bucket not in ({str(short)[1:-1]})".'
        )
