"""How many pictures a packet shows, from its first bytes: packets are not frames.

VP8 and VP9 have hidden frames, MPEG-4 pictures that are not coded, and H.264 a packet per field.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

from latentcache.decoders.bits import Bits
from latentcache.decoders.h264 import FieldOrder


class Shows(IntEnum):
    """What a decoder shows for a packet."""

    NOTHING = 0
    PICTURE = 1
    #: The other half of the picture that the packet before began.
    SECOND_FIELD = 2


#: From a packet, as a buffer so that few bytes are copied, and whether it is a key frame.
Classify = Callable[[Any, bool], Shows]


def classifier(codec: str, extradata: bytes | None) -> Classify | None:
    """Return what tells of a packet what it shows.

    None where each packet is one picture. What cannot be read counts as a picture.
    """
    if codec in ("vp8", "libvpx-vp8"):
        return lambda packet, _: Shows(memoryview(packet)[0] >> 4 & 1)
    if codec in ("vp9", "libvpx-vp9"):
        return lambda packet, _: Shows(any(map(_vp9_shows, _vp9_frames(memoryview(packet)))))
    if codec == "mpeg4":
        return _Mpeg4(extradata or b"")
    if codec == "h264":
        fields = FieldOrder(extradata or b"")
        return lambda packet, is_key: (
            Shows.SECOND_FIELD if fields.is_second(packet, is_key) else Shows.PICTURE
        )
    return None


def _vp9_frames(packet: memoryview) -> list[memoryview]:
    """Return the frames of a packet: a superframe has several, and their sizes at its end."""
    marker = packet[-1]
    if marker & 0b1110_0000 != 0b1100_0000:
        return [packet]
    count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = packet[-2 - count * width :]
    if len(index) < 2 + count * width or index[0] != marker:
        return [packet]
    frames, at = [], 0
    for number in range(count):
        size = int.from_bytes(index[1 + number * width : 1 + (number + 1) * width], "little")
        frames.append(packet[at : at + size])
        at += size
    return [frame for frame in frames if frame] or [packet]


def _vp9_shows(frame: memoryview) -> bool:
    bits = Bits(bytes(frame[:2]).ljust(2, b"\0"))
    bits.take(2)
    profile = bits.take(1) | bits.take(1) << 1
    if profile == 3:
        bits.take(1)
    shows_existing = bits.take(1)
    bits.take(1)  # frame_type
    return bool(shows_existing or bits.take(1))


_VOP = b"\0\0\1\xb6"


class _Mpeg4:
    """Finds the pictures of MPEG-4 Part 2 that are not coded: they repeat the one before."""

    def __init__(self, extradata: bytes) -> None:
        self._time_bits: int | None = None
        self._is_packed = False
        self._find_layer(extradata)

    def __call__(self, buffer: Any, _: bool) -> Shows:
        packet = bytes(buffer)
        at = packet.find(_VOP)
        if at < 0:
            return Shows.PICTURE
        self._find_layer(packet[:at])
        was_packed, self._is_packed = self._is_packed, packet.find(_VOP, at + 4) > 0
        # DivX puts a B picture behind the one that it needs; FFmpeg shows it for the next packet
        return Shows(was_packed or self._is_coded(packet[at + 4 : at + 40]))

    def _is_coded(self, header: bytes) -> bool:
        if self._time_bits is None:
            return True
        bits = Bits(header)
        try:
            bits.take(2)
            while bits.take(1):
                pass
            bits.take(1 + self._time_bits + 1)
            return bool(bits.take(1))
        except ValueError:
            return True

    def _find_layer(self, data: bytes) -> None:
        """Read how long a picture's time is from a video object layer's header, if there is one."""
        at = data.find(b"\0\0\1")
        while at >= 0 and at + 3 < len(data):
            if 0x20 <= data[at + 3] <= 0x2F:
                try:
                    self._time_bits = _time_bits(Bits(data[at + 4 : at + 64]))
                except ValueError:
                    return
            at = data.find(b"\0\0\1", at + 3)


def _time_bits(bits: Bits) -> int:
    bits.take(9)
    if bits.take(1):
        bits.take(7)
    if bits.take(4) == 15:  # extended PAR
        bits.take(16)
    if bits.take(1):  # vol_control_parameters
        bits.take(3)
        if bits.take(1):  # vbv_parameters
            bits.take(79)
    if bits.take(2):
        raise ValueError("the layer is not rectangular")
    bits.take(1)
    return max(1, (bits.take(16) - 1).bit_length())
