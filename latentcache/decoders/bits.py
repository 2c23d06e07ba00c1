"""Bits of a codec's header, one after the other."""

from __future__ import annotations


class Bits:
    """Reads unsigned integers of any number of bits; raises ValueError past the end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Return the next `count` bits."""
        if count > self._left:
            raise ValueError("the header ends too early")
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        """Return the next Exp-Golomb code, ue(v) of H.264."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed_golomb(self) -> int:
        """Return the next signed Exp-Golomb code, se(v) of H.264."""
        code = self.golomb()
        return (code + 1) // 2 if code & 1 else -(code // 2)

    def skip_golomb(self, count: int) -> None:
        """Skip Exp-Golomb codes, signed or not."""
        for _ in range(count):
            self.golomb()


def payload(data: bytes) -> bytes:
    """Return a unit of H.264 or HEVC without the bytes that keep start codes out of it."""
    return data.replace(b"\0\0\3", b"\0\0")
