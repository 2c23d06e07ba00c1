"""Overlapping tiles of a clip, and the stitching of their latents. Pure: numbers and tensors in and out.

Everything is as in diffusers' `tiled_encode`: linear ramps over the overlap, in latent space. A tile is
blended first with the one above it and then with the one to its left; both are already blended.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

#: How a row of tiles ends: `shift` moves the last one back to the border, so that all have one shape;
#: `cut` keeps the part of it that is inside, as diffusers does.
Edge = Literal["shift", "cut"]


@dataclass(frozen=True)
class Span:
    """A tile along one axis: its pixels [start, stop), and its latents [first, last) in the whole clip's.

    dropped: how many latents at the tile's beginning are left out. They are those of a first frame that
    stands by itself in the tile but not in the clip.
    """

    start: int
    stop: int
    first: int
    last: int
    dropped: int = 0


#: Tiles of a clip: all combinations of these, along T, H and W.
Spans = tuple[Sequence[Span], Sequence[Span], Sequence[Span]]


def starts(length: int, tile: int, overlap: int, edge: Edge) -> list[int]:
    """Return the positions at which tiles begin so that they cover `length`; only 0 if one tile does."""
    step = tile - overlap
    if edge == "cut":
        return list(range(0, length, step))
    return [*range(0, length - tile, step), max(0, length - tile)]


def spans(length: int, tile: int, overlap: int, *, stride: int, edge: Edge) -> list[Span]:
    """Return the tiles along H or W, of `length` pixels; all four numbers are multiples of stride."""
    found = []
    for start in starts(length, tile, overlap, edge):
        stop = min(start + tile, length)
        found.append(Span(start, stop, start // stride, stop // stride))
    return found


def frame_spans(length: int, tile: int, overlap: int, *, stride: int, edge: Edge) -> list[Span]:
    """Return the tiles along T, of `length` frames.

    If a clip's first latent stands for fewer frames than others (1 of 1 + 4k), the first latent of a
    later tile is not one of the clip's and is dropped. length, tile and overlap have the same remainder
    by stride.
    """
    alone = (length - 1) % stride + 1
    found = []
    for start in starts(length, tile, overlap, edge):
        stop = min(start + tile, length)
        dropped = int(start > 0 and alone < stride)
        before = start // stride
        span = Span(start, stop, before + dropped, before - (start - stop) // stride, dropped)
        if span.first < span.last:
            found.append(span)
    return found


def cut_out(pixels_BTHWC: torch.Tensor, of: Spans) -> list[torch.Tensor]:
    """Return views of the tiles, in the order T, H, W."""
    return [
        pixels_BTHWC[:, t.start : t.stop, y.start : y.stop, x.start : x.stop]
        for t, y, x in itertools.product(*of)
    ]


def batches(tiles: Sequence[torch.Tensor]) -> list[list[int]]:
    """Return, for every shape, the numbers of the tiles of that shape, in order."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, tile in enumerate(tiles):
        by_shape.setdefault(tuple(tile.shape), []).append(number)
    return list(by_shape.values())


def stitch(tiles: Sequence[torch.Tensor], of: Spans) -> torch.Tensor:
    """Stitch the tiles' latents, in the order T, H, W, to the whole's [.., t, h, w], in their dtype.

    Blended in float32. Equal tiles give their own values back, bit for bit.
    """
    over_time, rows, columns = of
    remaining = iter(tiles)
    planes = []
    for span in over_time:
        grid = [[next(remaining)[..., span.dropped :, :, :].float() for _ in columns] for _ in rows]
        planes.append(_stitch_plane(grid, rows, columns))
    return _join(_blend_all(planes, over_time, -3), over_time, -3).to(tiles[0].dtype)


def _stitch_plane(
    grid: Sequence[list[torch.Tensor]], rows: Sequence[Span], columns: Sequence[Span]
) -> torch.Tensor:
    above: list[torch.Tensor] | None = None
    lines = []
    for i, line in enumerate(grid):
        if above is not None:
            overlap = rows[i - 1].last - rows[i].first
            line = [_blend(a, b, overlap, -2) for a, b in zip(above, line, strict=True)]
        above = _blend_all(line, columns, -1)
        lines.append(_join(above, columns, -1))
    return _join(lines, rows, -2)


def _blend_all(
    tiles: Sequence[torch.Tensor], along: Sequence[Span], dim: int
) -> list[torch.Tensor]:
    """Blend each tile with the one before it."""
    blended: list[torch.Tensor] = []
    for i, tile in enumerate(tiles):
        overlap = along[i - 1].last - along[i].first if i else 0
        blended.append(_blend(blended[-1], tile, overlap, dim) if i else tile)
    return blended


def _blend(before: torch.Tensor, tile: torch.Tensor, overlap: int, dim: int) -> torch.Tensor:
    """Return the tile with a ramp from the end of the one before it: its own part is 0, 1/n, .. (n-1)/n."""
    weights = torch.arange(overlap, dtype=torch.float32, device=tile.device) / max(1, overlap)
    weights = weights.view(-1, *[1] * (-1 - dim))
    end = before.narrow(dim, before.shape[dim] - overlap, overlap)
    head = tile.narrow(dim, 0, overlap)
    rest = tile.narrow(dim, overlap, tile.shape[dim] - overlap)
    return torch.cat([torch.lerp(end, head, weights), rest], dim)


def _join(tiles: Sequence[torch.Tensor], along: Sequence[Span], dim: int) -> torch.Tensor:
    """Concatenate tiles, each up to where the next one begins."""
    ends = [*(span.first for span in along[1:]), along[-1].last]
    return torch.cat(
        [
            tile.narrow(dim, 0, end - span.first)
            for tile, span, end in zip(tiles, along, ends, strict=True)
        ],
        dim,
    )
