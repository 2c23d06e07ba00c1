"""H.264's headers: fields, of which a decoder shows two as one picture, and the order of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from latentcache.decoders.bits import Bits, payload

_SLICES = frozenset({1, 2, 5})
_IDR, _SPS, _PPS = 5, 7, 8
#: Profiles whose sequence parameter sets describe the chroma format.
_HIGH_PROFILES = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
#: Enough of a slice's header; the parameter sets are read as a whole.
_SLICE_HEAD_BYTES = 24


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    """What a sequence parameter set says of slices' headers. order_bits: 0 unless order_type is 0."""

    frames_only: bool
    frame_num_bits: int
    has_planes: bool
    order_type: int
    order_bits: int


class Place(NamedTuple):
    """A picture's place in the order of showing, as its header has it. begins: numbers restart with it.

    modulus: numbers are below it, and begin again from 0.
    """

    begins: bool
    number: int
    modulus: int


@dataclass(frozen=True, kw_only=True)
class _Field:
    is_bottom: bool
    frame_num: int


class FieldOrder:
    """Pairs the fields of a stream, packet by packet, as FFmpeg's decoder does."""

    def __init__(self, extradata: bytes) -> None:
        self._length_bytes = 0
        self._sequences: dict[int, _Sequence] = {}
        self._sequence_of: dict[int, int] = {}
        self._first: _Field | None = None
        if extradata[:1] == b"\x01" and len(extradata) > 6:
            self._length_bytes = (extradata[4] & 3) + 1
            units = _units_of_avcc(extradata)
        else:
            units = units_by_start_codes(extradata)
        for unit in units:
            self._learn(unit)

    @property
    def is_progressive(self) -> bool:
        """Tell whether the parameter sets in the header say that no picture has fields."""
        return bool(self._sequences) and all(s.frames_only for s in self._sequences.values())

    def is_second(self, packet: Any, is_key: bool) -> bool:
        """Tell whether a packet is the second field of the picture that the one before began."""
        if not is_key and all(s.frames_only for s in self._sequences.values()):
            return False  # the way of nearly all videos, without a look at the packet
        fields: list[_Field | None] = []
        for unit in self._units(bytes(packet)):
            if unit[0] & 31 in _SLICES:
                field = self._field(unit)
                if field not in fields:
                    fields.append(field)
            else:
                self._learn(unit)
        return self._pair(fields)

    def place(self, packet: Any) -> Place | None:
        """Return the place of a packet's picture; None if its header does not tell."""
        for unit in self._units(bytes(packet)):
            if unit[0] & 31 in _SLICES:
                return self._place(unit)
            self._learn(unit)
        return None

    def _pair(self, fields: list[_Field | None]) -> bool:
        first, self._first = self._first, None
        field = fields[0] if len(fields) == 1 else None
        if field is None:  # a frame, or both its fields
            return False
        if first and first.is_bottom != field.is_bottom and first.frame_num == field.frame_num:
            return True
        self._first = field
        return False

    def _units(self, packet: bytes) -> Iterator[bytes]:
        if not self._length_bytes:
            return units_by_start_codes(packet)
        return _units_by_length(packet, self._length_bytes)

    def _learn(self, unit: bytes) -> None:
        """Take what a parameter set says; one that is damaged is as if it was not there."""
        kind, data = unit[0] & 31, payload(unit[1:])
        try:
            if kind == _SPS:
                bits = Bits(data)
                profile = bits.take(8)
                bits.take(16)
                number = bits.golomb()
                self._sequences[number] = _sequence(bits, profile)
            elif kind == _PPS:
                bits = Bits(data[:16])
                number = bits.golomb()
                self._sequence_of[number] = bits.golomb()
        except ValueError:
            return

    def _field(self, unit: bytes) -> _Field | None:
        """Return which field a slice is of; None of a frame's."""
        try:
            bits, sequence, frame_num = self._begin(unit)
            if sequence.frames_only or not bits.take(1):
                return None
            return _Field(is_bottom=bool(bits.take(1)), frame_num=frame_num)
        except ValueError:
            return None

    def _place(self, unit: bytes) -> Place | None:
        try:
            bits, sequence, frame_num = self._begin(unit)
            begins = unit[0] & 31 == _IDR
            if sequence.order_type == 2:  # no picture is shown out of the order of decoding
                return Place(begins, frame_num, 1 << sequence.frame_num_bits)
            if sequence.order_type == 1:
                return None
            if not sequence.frames_only and bits.take(1):
                bits.take(1)
            bits.skip_golomb(begins)
            return Place(begins, bits.take(sequence.order_bits), 1 << sequence.order_bits)
        except ValueError:
            return None

    def _begin(self, unit: bytes) -> tuple[Bits, _Sequence, int]:
        """Return the rest of a slice's header, its sequence and frame_num. Raises ValueError."""
        bits = Bits(payload(unit[1:_SLICE_HEAD_BYTES]))
        bits.skip_golomb(2)
        sequence = self._sequences.get(self._sequence_of.get(bits.golomb(), -1))
        if sequence is None:
            raise ValueError("there are no parameter sets")
        bits.take(2 * sequence.has_planes)
        return bits, sequence, bits.take(sequence.frame_num_bits)


def _sequence(bits: Bits, profile: int) -> _Sequence:
    has_planes = _skip_chroma(bits) if profile in _HIGH_PROFILES else False
    frame_num_bits = bits.golomb() + 4
    order_type, order_bits = bits.golomb(), 0
    if order_type == 0:
        order_bits = bits.golomb() + 4
    elif order_type == 1:
        bits.take(1)
        bits.skip_golomb(2)
        bits.skip_golomb(bits.golomb())
    bits.golomb()
    bits.take(1)
    bits.skip_golomb(2)
    return _Sequence(
        frames_only=bool(bits.take(1)),
        frame_num_bits=frame_num_bits,
        has_planes=has_planes,
        order_type=order_type,
        order_bits=order_bits,
    )


def _skip_chroma(bits: Bits) -> bool:
    """Skip the chroma format, depths and scaling lists; tell whether colour planes are separate."""
    chroma = bits.golomb()
    has_planes = bool(bits.take(1)) if chroma == 3 else False
    bits.skip_golomb(2)
    bits.take(1)
    if bits.take(1):
        for number in range(12 if chroma == 3 else 8):
            if bits.take(1):
                _skip_scaling_list(bits, 16 if number < 6 else 64)
    return has_planes


def _skip_scaling_list(bits: Bits, size: int) -> None:
    scale = following = 8
    for _ in range(size):
        if following:
            following = (scale + bits.signed_golomb()) % 256
        scale = following or scale


def _units_of_avcc(extradata: bytes) -> Iterator[bytes]:
    """Yield the parameter sets of an MP4's or Matroska's `avcC`."""
    at = 5
    for mask in (31, 255):
        count, at = (extradata[at] & mask if at < len(extradata) else 0), at + 1
        for _ in range(count):
            size = int.from_bytes(extradata[at : at + 2])
            if unit := extradata[at + 2 : at + 2 + size]:
                yield unit
            at += 2 + size


def _units_by_length(packet: bytes, length_bytes: int) -> Iterator[bytes]:
    at = 0
    while at + length_bytes < len(packet):
        size = int.from_bytes(packet[at : at + length_bytes])
        at += length_bytes
        if size:
            yield packet[at : at + size]
        at += size


def units_by_start_codes(packet: bytes) -> Iterator[bytes]:
    """Yield the units of a stream with start codes, as transport streams have it."""
    at = packet.find(b"\0\0\1")
    while at >= 0:
        end = packet.find(b"\0\0\1", at + 3)
        if unit := packet[at + 3 : end if end >= 0 else len(packet)]:
            yield unit
        at = end
