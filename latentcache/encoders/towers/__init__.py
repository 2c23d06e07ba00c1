"""Image towers: what a trainer's image condition is, computed as its reference computes it."""

from latentcache.encoders.towers.registry import (
    TOWERS,
    TowerDescription,
    build_image_tower,
    describe_image_tower,
    tower_settings,
)

__all__ = [
    "TOWERS",
    "TowerDescription",
    "build_image_tower",
    "describe_image_tower",
    "tower_settings",
]
