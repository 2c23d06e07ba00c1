"""Any encoder, over overlapping tiles: it encodes each tile, and the latents are stitched together.

`encoders.resolve` wraps the encoder in this if the configuration has a section `encoder.tiling`.
See docs/tiling.md for what it changes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field

from latentcache.config.base import Positive, Section
from latentcache.core.spec import FrameRule, LatentSpec
from latentcache.encoders import out_of_memory, tiling
from latentcache.encoders.checks import check_encoded, check_pixels
from latentcache.encoders.difference import difference
from latentcache.encoders.protocol import Encoder, EncoderModule
from latentcache.encoders.tiling import Edge, Span, Spans
from latentcache.encoders.values import EncodesValues, check_values, of_values
from latentcache.errors import ConfigError, GeometryError

log = logging.getLogger(__name__)

#: The revision of how tiles are cut and blended; it counts changes and is part of the recipe.
REVISION = 1
NotNegative = Annotated[int, Field(ge=0)]


class Tiling(Section):
    """The section `encoder.tiling`, which any encoder can have."""

    tile: tuple[Positive, Positive] = Field(description="[height, width] of a tile, in pixels.")
    overlap: tuple[NotNegative, NotNegative] = Field(
        description="[height, width] in pixels that neighbours share; blended from one to the other."
    )
    frames: Positive | None = Field(
        default=None,
        description="Frames of a tile, for encoders that are not prefix_exact; omitted: all of a clip.",
    )
    frame_overlap: NotNegative | None = Field(
        default=None, description="Frames that a tile shares with the one before it; with `frames`."
    )
    edge: Edge = Field(
        default="shift",
        description="The last tile of a row: `shift` moves it back to the border, so that every tile is "
        "whole; `cut` takes what is left, as diffusers does.",
    )
    batch: Positive = Field(
        default=1,
        description="At most this many tiles of a clip are encoded at once; halved if a GPU has no memory "
        "for them. With another batch size most encoders differ in the last bits.",
    )
    measure: NotNegative = Field(
        default=3,
        description="Clips of each bucket that are encoded untiled as well, for the column tiling_error. "
        "Not part of the recipe; set 0 if a CPU's memory is too small for them.",
    )


class TiledModule:
    """A `protocol.EncoderModule` around another one, whose configuration it has."""

    def __init__(self, module: EncoderModule, section: Tiling) -> None:
        self.Config: type[BaseModel] = module.Config
        self._module = module
        self._tiling = section

    def describe(self, config: Any, *, dtype: str) -> LatentSpec:
        """Return the other's spec as it applies to tiles. Raises ConfigError if they do not fit it."""
        return tiled_spec(self._module.describe(config, dtype=dtype), self._tiling)

    def identity(self, config: Any) -> Mapping[str, Any]:
        """Return the encoder's part of the recipe: the other's, and the tiles."""
        tiles = self._tiling.model_dump(mode="json", exclude={"measure"})
        return {**self._module.identity(config), "tiling": {"revision": REVISION, **tiles}}

    def build(self, config: Any, *, spec: LatentSpec, device: torch.device) -> TiledEncoder:
        """Build the other encoder and run it over tiles."""
        return TiledEncoder(
            self._module.build(config, spec=spec, device=device), spec, self._tiling
        )


class TiledEncoder:
    """See the module. A clip that is no larger than a tile is encoded whole.

    A batch holds tiles of one shape and one clip, in order, so other clips change nothing. If the GPU
    has no memory for a batch, this and all later batches are halved, and a warning is logged.
    """

    def __init__(self, untiled: Encoder, spec: LatentSpec, section: Tiling) -> None:
        self.spec = spec
        self.untiled = untiled
        self.tiling = section
        self._batch = section.batch

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels to what the wrapped encoder gives, in its shape and dtype.

        Raises EncoderError if the GPU has no memory for one tile.
        """
        check_pixels(self.spec, pixels_BTHWC)
        return self._encode(pixels_BTHWC, self.untiled)

    def encode_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode values [B, T, H, W, 3] in [-1, 1] over the same tiles."""
        check_values(self.spec, values_BTHWC)
        return self._encode(values_BTHWC, EncodesValues(self.untiled))

    def _encode(self, clips_BTHWC: torch.Tensor, untiled: Encoder) -> torch.Tensor:
        return torch.cat([self._encode_clip(clip, untiled) for clip in torch.split(clips_BTHWC, 1)])

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode as the wrapped encoder does, untiled."""
        return self.untiled.decode(latents_BCthw)

    def decode_values(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode as the wrapped encoder does, untiled, to float32 [B, T, H, W, 3] in [-1, 1]."""
        return of_values(self.untiled).decode_values(latents_BCthw)

    def is_whole(self, frames: int, height: int, width: int) -> bool:
        """Tell whether a clip is no larger than a tile."""
        fits = height <= self.tiling.tile[0] and width <= self.tiling.tile[1]
        return fits and frames <= (self.tiling.frames or frames)

    def spans(self, frames: int, height: int, width: int) -> Spans:
        """Return the tiles of a clip of T x H x W pixels."""
        section, (st, sh, sw) = self.tiling, self.spec.stride
        (tile_h, tile_w), (over_h, over_w) = section.tile, section.overlap
        if height <= tile_h and width <= tile_w:  # cut only in time
            tile_h, tile_w, over_h, over_w = height, width, 0, 0
        over_time = [Span(0, frames, 0, -(-frames // st))]
        if section.frames is not None and frames > section.frames:
            overlap = section.frame_overlap or 0
            over_time = tiling.frame_spans(
                frames, section.frames, overlap, stride=st, edge=section.edge
            )
        return (
            over_time,
            tiling.spans(height, tile_h, over_h, stride=sh, edge=section.edge),
            tiling.spans(width, tile_w, over_w, stride=sw, edge=section.edge),
        )

    def _encode_clip(self, clip_BTHWC: torch.Tensor, untiled: Encoder) -> torch.Tensor:
        size = clip_BTHWC.shape[1:4]
        if self.is_whole(*size):
            return out_of_memory.encode(untiled, clip_BTHWC)
        of = self.spans(*size)
        tiles = tiling.cut_out(clip_BTHWC, of)
        encoded: dict[int, torch.Tensor] = {}
        for numbers in tiling.batches(tiles):
            while numbers:
                now = numbers[: self._batch]
                encode = out_of_memory.try_encode if len(now) > 1 else out_of_memory.encode
                latents = encode(untiled, torch.cat([tiles[n] for n in now]))
                if latents is None:
                    self._halve_batch(len(now))
                    continue
                encoded.update(zip(now, torch.split(latents, 1), strict=True))
                numbers = numbers[len(now) :]
        stitched = tiling.stitch([encoded[n] for n in range(len(tiles))], of)
        shape = self.spec.latent_shape(*size)[1:]
        check_encoded(self.spec, stitched, (1, stitched.shape[1], *shape))
        return stitched

    def _halve_batch(self, number: int) -> None:
        self._batch = number // 2
        log.warning(
            "%s has no GPU memory for %d tiles at once; from now on %d are encoded at once, which may "
            "change latents in their last bits",
            self.spec.model_class,
            number,
            self._batch,
        )


def tiling_error(
    encoder: Encoder, pixels_BTHWC: torch.Tensor, encoded: torch.Tensor, *, shard: int, row: int
) -> float | None:
    """Return how far a clip's tiled latents are from the untiled ones, if the clip is in the sample.

    The sample is the first `tiling.measure` rows of shard 0 of each bucket. The error is the root mean
    square of the difference of the means (of the posterior, before they are rounded to the stored dtype),
    divided by the untiled latent's standard deviation: see `difference`. 0 if the clip is no larger than a
    tile. None if the untiled clip does not fit into the GPU's memory, or if its latent is the same
    everywhere.
    """
    if not isinstance(encoder, TiledEncoder) or shard or row >= encoder.tiling.measure:
        return None
    if encoder.is_whole(*pixels_BTHWC.shape[1:4]):
        return 0.0
    untiled = out_of_memory.try_encode(encoder.untiled, pixels_BTHWC)
    if untiled is None:
        return None
    return difference(encoder.spec, untiled, encoded)


def tiled_spec(spec: LatentSpec, section: Tiling) -> LatentSpec:
    """Return an encoder's spec as it applies to tiles. Raises ConfigError if the tiles do not fit it."""
    why_not = out_of_memory.why_untileable(spec)
    if why_not is not None:
        raise ConfigError(f"encoder.tiling: {why_not}. Remove encoder.tiling.")
    for axis in (0, 1):
        _check_size(spec, section, axis)
    rule = spec.frame_rule
    if section.frames is None:
        if section.frame_overlap is not None:
            raise ConfigError("encoder.tiling.frame_overlap: goes with encoder.tiling.frames")
    else:
        rule = _checked_frames(spec, section.frames, section.frame_overlap, section.edge)
    return dataclasses.replace(spec, exactness="approximate", frame_rule=rule)


def _check_size(spec: LatentSpec, section: Tiling, axis: int) -> None:
    name, stride = ("height", "width")[axis], spec.stride[1 + axis]
    tile, overlap = section.tile[axis], section.overlap[axis]
    for key, size in (("tile", tile), ("overlap", overlap)):
        if size % stride:
            legal = FrameRule(multiple=stride, minimum=stride if key == "tile" else 0)
            raise GeometryError(
                f"encoder.tiling.{key}: {spec.model_class} reduces {name} by {stride}, and {size} is no "
                f"multiple of it: the latents of neighbouring tiles would not line up. "
                f"Use {' or '.join(map(str, legal.nearest(size)))}."
            )
    if overlap >= tile:
        raise GeometryError(
            f"encoder.tiling.overlap: a {name} of {overlap} pixels is not less than the tile's {tile}. "
            f"Use {tile // 4 // stride * stride}, a quarter of it, as diffusers does."
        )


def _checked_frames(spec: LatentSpec, frames: int, overlap: int | None, edge: Edge) -> FrameRule:
    """Return the numbers of frames that tiles in time can cover; raises if there can be no such tiles."""
    rule, stride, name = spec.frame_rule, spec.stride[0], spec.model_class
    if spec.exactness == "prefix_exact":
        raise ConfigError(
            f"encoder.tiling.frames: {name} is causal (prefix_exact): its latents do not depend on later "
            "frames, but blended tiles of frames would. Remove frames and frame_overlap. Tile height and "
            "width, or shorten clips."
        )
    if overlap is None:
        raise ConfigError("encoder.tiling.frame_overlap: required with encoder.tiling.frames")
    if not rule.is_legal(frames):
        raise GeometryError(
            f"encoder.tiling.frames: {name} takes {rule.describe()} frames, not {frames}. "
            f"Use {' or '.join(map(str, rule.nearest(frames)))}."
        )
    remainder = frames % stride
    legal = FrameRule(multiple=stride, remainders=(remainder,), minimum=0, maximum=frames - stride)
    if not legal.is_legal(overlap):
        near = " or ".join(map(str, legal.nearest(overlap))) or "larger frames"
        raise GeometryError(
            f"encoder.tiling.frame_overlap: tiles of {frames} frames of {name} can share "
            f"{legal.describe()} frames, not {overlap}: each must begin with a latent. Use {near}."
        )
    if edge == "cut" and ((frames - overlap) % rule.multiple or rule.minimum > 1):
        raise GeometryError(
            f"encoder.tiling.edge: cut could leave a tile with a number of frames that {name} refuses. "
            "Use shift."
        )
    multiple = math.lcm(rule.multiple, stride)
    remainders = tuple(
        n
        for n in range(multiple)
        if n % rule.multiple in rule.remainders and n % stride == remainder
    )
    return dataclasses.replace(rule, multiple=multiple, remainders=remainders)
