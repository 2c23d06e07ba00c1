"""Lookup-free quantisation (MAGVIT-v2, arXiv:2310.05737): an id holds the signs of a code's channels.

Both open implementations map a positive channel to a 1. They differ in where channel 0 goes. The
same code of three channels (+, -, -) is

    lsb_first   0b001 = 1   Open-MAGVIT2: channel i is worth 2**i
    msb_first   0b100 = 4   magvit2-pytorch, vector-quantize-pytorch: channel i is worth 2**(bits - 1 - i)

So ids of one, read as the other's, are other codes, and all of them are valid.
`spec.IdSpec.bit_order` says which order it is.
"""

from __future__ import annotations

from typing import Literal

import torch

BitOrder = Literal["lsb_first", "msb_first"]


def _worth(bits: int, order: BitOrder, device: torch.device) -> torch.Tensor:
    """Return int64 [bits], what each positive channel adds to the id."""
    exponents = torch.arange(bits, device=device)
    return 1 << (exponents if order == "lsb_first" else exponents.flip(0))


def bits_to_ids(codes: torch.Tensor, order: BitOrder) -> torch.Tensor:
    """Return int64 ids [...] of codes [..., bits]: a number above 0, or True, gives a 1."""
    positive = codes if codes.dtype == torch.bool else codes > 0
    return (positive * _worth(codes.shape[-1], order, codes.device)).sum(-1)


def ids_to_bits(ids: torch.Tensor, bits: int, order: BitOrder) -> torch.Tensor:
    """Return bool [..., bits], True if the channel is positive, for ids [...] of any integer type."""
    return (ids.long().unsqueeze(-1) & _worth(bits, order, ids.device)) != 0
