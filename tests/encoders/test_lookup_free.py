from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentcache.encoders.tokenizers.lookup_free import BitOrder, bits_to_ids, ids_to_bits


@pytest.mark.parametrize(
    ("order", "expected"),
    [("lsb_first", [1, 4, 6, 0, 7]), ("msb_first", [4, 1, 3, 0, 7])],
)
def test_channels_are_worth_what_the_order_says(order: BitOrder, expected: list[int]) -> None:
    codes = torch.tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, 1], [-1, -1, -1], [1, 1, 1]])
    assert bits_to_ids(codes, order).tolist() == expected
    assert bits_to_ids(codes * 0.3, order).tolist() == expected
    assert bits_to_ids(codes > 0, order).tolist() == expected
    assert torch.equal(ids_to_bits(torch.tensor(expected), 3, order), codes > 0)


def test_zero_is_not_positive_as_in_both_implementations() -> None:
    assert bits_to_ids(torch.tensor([0.0, -0.0, 1e-30]), "msb_first") == 1


@pytest.mark.slow
@given(st.integers(1, 24), st.data())
def test_ids_come_back(bits: int, data: st.DataObject) -> None:
    ids = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=20)))
    for order in ("lsb_first", "msb_first"):
        codes = ids_to_bits(ids, bits, order)  # type: ignore[arg-type] # one of the literals
        assert codes.shape == (len(ids), bits)
        assert torch.equal(bits_to_ids(codes, order), ids)  # type: ignore[arg-type]


@pytest.mark.slow
@given(st.integers(1, 24), st.data())
def test_one_order_is_the_other_with_the_channels_reversed(bits: int, data: st.DataObject) -> None:
    ids = torch.tensor([data.draw(st.integers(0, 2**bits - 1))])
    assert torch.equal(
        ids_to_bits(ids, bits, "lsb_first"), ids_to_bits(ids, bits, "msb_first").flip(-1)
    )


def test_stored_types_are_taken() -> None:
    ids = torch.tensor([0, 1, 200], dtype=torch.uint8)
    for dtype in (torch.uint8, torch.int32, torch.uint16, torch.uint32):
        assert torch.equal(
            bits_to_ids(ids_to_bits(ids.to(dtype), 18, "lsb_first"), "lsb_first"), ids.long()
        )
