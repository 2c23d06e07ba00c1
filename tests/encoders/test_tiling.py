"""Tiles cover a clip, and the stitch of what they agree on is that, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentcache.encoders.tiling import (
    Edge,
    Span,
    Spans,
    batches,
    cut_out,
    frame_spans,
    spans,
    stitch,
)

EDGES: tuple[Edge, ...] = ("shift", "cut")


@st.composite
def axes(draw: st.DrawFn, longest: int = 12) -> tuple[int, int, int, Edge]:
    """A length, a tile, an overlap, all in latents, and an edge."""
    tile = draw(st.integers(1, 6))
    overlap = draw(st.integers(0, tile - 1))
    return draw(st.integers(1, longest)), tile, overlap, draw(st.sampled_from(EDGES))


@st.composite
def time_axes(draw: st.DrawFn) -> tuple[int, int, int, int, Edge]:
    """Frames, those of a tile and of an overlap, the stride, and an edge; groups even or 1 + stride * k."""
    stride = draw(st.integers(1, 4))
    alone = draw(st.sampled_from([0, 1])) if stride > 1 else 0
    tile = alone + stride * draw(st.integers(1, 4))
    overlap = alone + stride * draw(st.integers(0, (tile - alone) // stride - 1))
    frames = alone + stride * draw(st.integers(1, 10))
    return frames, tile, overlap, stride, draw(st.sampled_from(EDGES))


def check_cover(found: Sequence[Span], length: int) -> None:
    """Tiles begin one after the other, leave no gap, and end with the whole."""
    assert found[0].first == 0
    assert found[-1].last == length
    for before, span in itertools.pairwise(found):
        assert before.first < span.first <= before.last <= span.last


@settings(deadline=None)
@given(axes())
def test_tiles_cover_every_latent(case: tuple[int, int, int, Edge]) -> None:
    length, tile, overlap, edge = case
    found = spans(8 * length, 8 * tile, 8 * overlap, stride=8, edge=edge)
    check_cover(found, length)
    assert all((s.start, s.stop) == (8 * s.first, 8 * s.last) for s in found)


@settings(deadline=None)
@given(axes())
def test_shifted_tiles_have_one_shape_and_share_the_overlap_at_least(
    case: tuple[int, int, int, Edge],
) -> None:
    length, tile, overlap, _ = case
    found = spans(length, tile, overlap, stride=1, edge="shift")
    assert {s.stop - s.start for s in found} == {min(tile, length)}
    shared = [before.stop - span.start for before, span in itertools.pairwise(found)]
    assert all(n == overlap for n in shared[:-1])
    assert all(n >= overlap for n in shared)


def test_the_last_tile_is_moved_back_or_cut() -> None:
    assert [s.start for s in spans(480, 256, 64, stride=8, edge="shift")] == [0, 192, 224]
    cut = spans(480, 256, 64, stride=8, edge="cut")
    assert [(s.start, s.stop) for s in cut] == [(0, 256), (192, 448), (384, 480)]


@settings(deadline=None)
@given(time_axes())
def test_tiles_in_time_cover_every_latent_frame_with_its_own_pixel_frames(
    case: tuple[int, int, int, int, Edge],
) -> None:
    frames, tile, overlap, stride, edge = case
    found = frame_spans(frames, tile, overlap, stride=stride, edge=edge)
    check_cover(found, -(-frames // stride))
    alone = (frames - 1) % stride + 1
    for span in found:
        assert span.stop - span.start <= tile
        assert edge == "cut" or span.stop - span.start == min(tile, frames)
        # The frames of the latents that are kept: whole groups of the clip's own.
        kept_from = span.start + (alone if span.dropped else 0)
        assert kept_from == (0 if span.first == 0 else alone + stride * (span.first - 1))
        assert span.stop == alone + stride * (span.last - 1)


def test_a_first_frame_that_stands_alone_in_a_later_tile_is_dropped() -> None:
    cut = frame_spans(33, 17, 5, stride=4, edge="cut")
    assert cut == [Span(0, 17, 0, 5), Span(12, 29, 4, 8, 1), Span(24, 33, 7, 9, 1)]
    assert frame_spans(32, 16, 4, stride=4, edge="shift")[1] == Span(12, 28, 3, 7)


def test_a_tile_of_which_all_would_be_dropped_is_none() -> None:
    assert [s.start for s in frame_spans(25, 17, 5, stride=4, edge="cut")] == [0, 12]


def make_spans(case: tuple[tuple[int, int, int, Edge], ...]) -> Spans:
    (t, y, x) = (spans(n, tile, over, stride=1, edge=e) for n, tile, over, e in case)
    return t, y, x


def shape(of: Spans) -> tuple[int, int, int]:
    t, y, x = (along[-1].last for along in of)
    return t, y, x


@pytest.mark.slow
@settings(deadline=None)
@given(st.tuples(axes(5), axes(), axes()), st.integers(0, 99))
def test_tiles_of_one_picture_give_it_back_bit_for_bit(
    case: tuple[tuple[int, int, int, Edge], ...], seed: int
) -> None:
    of = make_spans(case)
    whole = torch.randn(1, 2, *shape(of), generator=torch.Generator().manual_seed(seed))
    tiles = [
        whole[..., t.first : t.last, y.first : y.last, x.first : x.last]
        for t, y, x in itertools.product(*of)
    ]
    assert torch.equal(stitch(tiles, of), whole)


@pytest.mark.slow
@settings(deadline=None)
@given(st.tuples(axes(3), axes(8), axes(8)))
def test_weights_are_shares_of_one(case: tuple[tuple[int, int, int, Edge], ...]) -> None:
    of = make_spans(case)
    sizes = [tuple(s.last - s.first for s in tile) for tile in itertools.product(*of)]
    total = torch.zeros(1, *shape(of))
    for chosen in range(len(sizes)):
        tiles = [torch.full((1, *size), float(n == chosen)) for n, size in enumerate(sizes)]
        weight = stitch(tiles, of)
        assert weight.min() >= 0
        assert weight.max() <= 1
        total += weight
    torch.testing.assert_close(total, torch.ones_like(total))


def test_overlaps_are_linear_ramps_from_the_tile_before() -> None:
    of = ([Span(0, 1, 0, 1)], [Span(0, 1, 0, 1)], spans(10, 7, 4, stride=1, edge="shift"))
    tiles = [torch.zeros(1, 1, 1, 7), torch.ones(1, 1, 1, 7)]
    assert stitch(tiles, of).flatten().tolist() == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_dropped_latents_count_for_nothing() -> None:
    of = (frame_spans(9, 5, 1, stride=4, edge="shift"), [Span(0, 1, 0, 1)], [Span(0, 1, 0, 1)])
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([float("nan"), 3.0])
    stitched = stitch([first.view(1, 2, 1, 1), second.view(1, 2, 1, 1)], of)
    assert stitched.flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_stitching_keeps_the_dtype_and_the_tiles(dtype: torch.dtype) -> None:
    of = ([Span(0, 1, 0, 1)], [Span(0, 1, 0, 1)], spans(10, 7, 4, stride=1, edge="shift"))
    tiles = [torch.zeros(1, 1, 1, 7, dtype=dtype), torch.ones(1, 1, 1, 7, dtype=dtype)]
    assert stitch(tiles, of).dtype == dtype
    assert tiles[1].min() == 1


def test_tiles_are_cut_out_in_order_and_batched_by_shape() -> None:
    pixels = torch.arange(2 * 5 * 7).view(1, 2, 5, 7, 1)
    of = ([Span(0, 2, 0, 2)], spans(5, 3, 1, stride=1, edge="cut"), [Span(0, 7, 0, 7)])
    tiles = cut_out(pixels, of)
    assert [tuple(tile.shape[1:4]) for tile in tiles] == [(2, 3, 7), (2, 3, 7), (2, 1, 7)]
    assert torch.equal(tiles[1], pixels[:, :, 2:5])
    assert batches(tiles) == [[0, 1], [2]]
