"""Latents that come in pieces: joined as they are, each let go before the next one is made."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch

from latentcache.encoders.streaming import joined
from latentcache.errors import EncoderError


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("sizes", [[9], [1, 4, 4], [4, 0, 5], [1] * 9])
def test_pieces_are_joined_along_an_axis(sizes: list[int], axis: int) -> None:
    whole = torch.randn(2, 9, 9, 3).to(torch.bfloat16)
    pieces = [piece.clone() for piece in torch.split(whole, sizes, dim=axis)]
    assert torch.equal(joined(pieces, 9, axis), whole)


@pytest.mark.parametrize("sizes", [[], [4, 4], [10], [4, 6], [9, 1]])
def test_other_sizes_than_the_clip_has_are_an_error(sizes: list[int]) -> None:
    pieces = [torch.zeros(1, 2, size, 1) for size in sizes]
    with pytest.raises(EncoderError, match=f"9 latent frames was encoded to {sum(sizes)}"):
        joined(pieces, 9, 2)


def test_no_piece_is_kept_while_the_next_is_made() -> None:
    given: list[weakref.ref[torch.Tensor]] = []

    def pieces() -> Iterator[torch.Tensor]:
        for number in range(5):
            assert not any(piece() is not None for piece in given)
            piece = torch.full((1, 1, 2), float(number))
            given.append(weakref.ref(piece))
            yield piece
            del piece

    assert joined(pieces(), 10, 2).flatten().tolist() == [n // 2 for n in range(10)]
