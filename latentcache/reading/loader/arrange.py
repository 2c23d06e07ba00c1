"""How a batch is laid out and named: `layout` and `names` of a loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError, did_you_mean

#: Axes of latents, and of ids, as they are stored.
LATENTS, IDS = "BCTHW", "BTHW"


def check_layout(layout: str | None, spec: LatentSpec) -> None:
    """Raise ConfigError unless a layout names the axes of a cache's latents, B first.

    T may be left out where there is one latent frame.
    """
    if layout is None:
        return
    axes = LATENTS if spec.ids is None else IDS
    if spec.ids is not None and spec.ids.scales:
        raise ConfigError(
            f"layout {layout!r}: multi-scale ids are [B, n], whatever their scales. Leave layout out."
        )
    letters = sorted(layout) if isinstance(layout, str) else []
    if letters not in (sorted(axes), sorted(axes.replace("T", ""))) or layout[0] != "B":
        raise ConfigError(
            f"layout {layout!r} is no order of {axes} that begins with B, such as "
            f"{'BTCHW or BTHWC' if spec.ids is None else 'BHWT'}; for clips of one latent frame T may be "
            "left out."
        )


def arranged(latents: torch.Tensor, layout: str) -> torch.Tensor:
    """Return a batch [B, C, t, h, w], or ids [B, t, h, w], with its axes in another order: a view of it.

    Raises ConfigError where it has other axes, or more than one latent frame and no place for them.
    """
    axes = {len(LATENTS): LATENTS, len(IDS): IDS}.get(latents.ndim, "")
    if not set(layout) <= set(axes):
        raise ConfigError(
            f"layout {layout!r}: these latents are {list(latents.shape)}, which have other axes. Leave "
            "layout out, or have the view make latents of all axes."
        )
    if "T" not in layout:
        time = axes.index("T")
        if latents.shape[time] > 1:
            raise ConfigError(
                f"layout {layout!r} has no place for the {latents.shape[time]} latent frames of these "
                "clips. Write a T into it."
            )
        latents, axes = latents.select(time, 0), axes.replace("T", "")
    return latents.permute([axes.index(axis) for axis in layout])


def check_names(names: Mapping[str, str] | None) -> dict[str, str]:
    """Return other names for what batches hold. Raises ConfigError unless they are different texts."""
    if names is None:
        return {}
    if not isinstance(names, Mapping) or not all(
        isinstance(text, str) and text for pair in names.items() for text in pair
    ):
        raise ConfigError(
            f"names is {names!r}: it must say which name gets which, such as {{'latents': 'mp4'}}"
        )
    if len(set(names.values())) < len(names):
        raise ConfigError(f"names: {dict(names)} gives one name twice, and a batch has one place")
    return dict(names)


def renamed(batch: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a batch under other names, in the same order. Raises ConfigError."""
    for old, new in names.items():
        if old not in batch:
            raise ConfigError(
                f"names: batches have no {old!r}.{did_you_mean(old, batch)} They have: {', '.join(batch)}"
            )
        if new in batch and new not in names:
            raise ConfigError(f"names: {old} cannot be {new}, since batches have a {new} already")
    return {names.get(name, name): value for name, value in batch.items()}
