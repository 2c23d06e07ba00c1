"""HEVC's headers: the order of pictures in a stream with start codes, as in transport streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latentcache.decoders.bits import Bits, payload
from latentcache.decoders.h264 import Place, units_by_start_codes

_SPS, _PPS = 33, 34
#: Pictures from which decoding can start, and those of them at which the order of pictures begins again.
_IRAP, _BEGINS, _IDR = range(16, 24), range(16, 21), range(19, 21)
_NUM_SLICES = 32
#: Enough of a slice's header, and of a picture parameter set's.
_HEAD_BYTES = 24
#: Of a unit: its kind, layer and temporal layer.
_HEADER_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    """What a picture parameter set says of slices' headers. sequence: the number of its set."""

    sequence: int
    has_output: bool
    extra_bits: int


class PictureOrder:
    """Finds the places of a stream's pictures, packet by packet."""

    def __init__(self, extradata: bytes) -> None:
        self._order_bits: dict[int, int] = {}
        self._has_planes: dict[int, bool] = {}
        self._pictures: dict[int, _Pictures] = {}
        for unit in units_by_start_codes(extradata):
            self._learn(unit)

    def place(self, packet: Any) -> Place | None:
        """Return the place of a packet's picture; None if its header does not tell."""
        for unit in units_by_start_codes(bytes(packet)):
            if unit[0] >> 1 & 63 < _NUM_SLICES:
                return self._place(unit)
            self._learn(unit)
        return None

    def _place(self, unit: bytes) -> Place | None:
        kind, bits = unit[0] >> 1 & 63, Bits(payload(unit[_HEADER_BYTES:_HEAD_BYTES]))
        try:
            if not bits.take(1):  # not the picture's first slice
                return None
            bits.take(kind in _IRAP)
            pictures = self._pictures.get(bits.golomb())
            order_bits = self._order_bits.get(pictures.sequence) if pictures else None
            if pictures is None or order_bits is None:
                return None
            if kind in _IDR:
                return Place(True, 0, 1 << order_bits)
            bits.take(pictures.extra_bits)
            bits.golomb()
            bits.take(pictures.has_output + 2 * self._has_planes[pictures.sequence])
            return Place(kind in _BEGINS, bits.take(order_bits), 1 << order_bits)
        except ValueError:
            return None

    def _learn(self, unit: bytes) -> None:
        """Take what a parameter set says; one that is damaged is as if it was not there."""
        kind = unit[0] >> 1 & 63
        try:
            if kind == _SPS:
                self._learn_sequence(Bits(payload(unit[_HEADER_BYTES:])))
            elif kind == _PPS:
                bits = Bits(payload(unit[_HEADER_BYTES:_HEAD_BYTES]))
                number, sequence = bits.golomb(), bits.golomb()
                bits.take(1)
                has_output, extra_bits = bool(bits.take(1)), bits.take(3)
                self._pictures[number] = _Pictures(
                    sequence=sequence, has_output=has_output, extra_bits=extra_bits
                )
        except ValueError:
            return

    def _learn_sequence(self, bits: Bits) -> None:
        bits.take(4)
        num_layers = bits.take(3)
        bits.take(1)
        _skip_levels(bits, num_layers)
        number = bits.golomb()
        has_planes = bits.golomb() == 3 and bool(bits.take(1))
        bits.skip_golomb(2)
        if bits.take(1):
            bits.skip_golomb(4)
        bits.skip_golomb(2)
        self._order_bits[number] = bits.golomb() + 4
        self._has_planes[number] = has_planes


def _skip_levels(bits: Bits, num_layers: int) -> None:
    """Skip profile_tier_level(1, num_layers)."""
    bits.take(96)
    layers = [(bits.take(1), bits.take(1)) for _ in range(num_layers)]
    if num_layers:
        bits.take(2 * (8 - num_layers))
    for has_profile, has_level in layers:
        bits.take(88 * has_profile + 8 * has_level)
