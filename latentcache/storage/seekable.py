"""What files that are read by ranges have in common: a size, and the byte that is read next."""

from __future__ import annotations

import io
import os


class SeekableFile(io.RawIOBase):
    """A file of `size` bytes to read, of which any byte can be next. What reads moves `_position`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that any byte can be read next."""
        return True

    def tell(self) -> int:
        """Return which byte is read next."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set which byte is read next; it may be past the end."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position
