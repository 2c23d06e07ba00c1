"""What FFmpeg says about damage: both decoders conceal it, and only standard error tells."""

from __future__ import annotations

import os
import re
from collections import deque
from typing import ClassVar, Self

import av

from latentcache.core.machine import anonymous_file

av.logging.restore_default_callback()  # FFmpeg's own, which writes to standard error
av.logging.set_libav_level(av.logging.PANIC)

#: Errors of FFmpeg that leave the picture as it is: optional messages, and orders to forget frames that
#: the decoder has forgotten already. Also what it says of its own set-up. They only save a second look:
#: see `pyav.Reader`.
HARMLESS = re.compile(
    r"SEI|mmco|deprecated pixel format|reorder buffer|Reinit context", re.IGNORECASE
)
#: What one read takes of what was said; a library can say more in a file than memory should hold.
_READ_BYTES = 1 << 16


class Complaints:
    """Collects what this process's native libraries write to standard error while it is entered."""

    _num_open: ClassVar = 0

    def __enter__(self) -> Self:
        self._file = os.fdopen(anonymous_file("latentcache-complaints"), "r+b")
        self._offset = 0
        self._lines: deque[str] = deque()
        self._standard_error = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        av.logging.set_libav_level(av.logging.ERROR)
        type(self)._num_open += 1
        return self

    def __exit__(self, *_: object) -> None:
        type(self)._num_open -= 1
        if not self._num_open:  # the one around this listens on
            av.logging.set_libav_level(av.logging.PANIC)
        os.dup2(self._standard_error, 2)
        os.close(self._standard_error)
        self._file.close()

    def first(self, source: str | None = None, harmless: re.Pattern[str] = HARMLESS) -> str | None:
        """Return the first line since the last call that may tell of damage, if there is one.

        source: the FFmpeg component whose lines count, such as `h264`; omitted: any. harmless: lines
        that do not count.
        """
        while line := self._next():
            prefix, _, said = line.partition("] ")
            if (source is None or prefix.startswith(f"[{source} @")) and not harmless.search(line):
                return said or line
        return None

    def _next(self) -> str | None:
        """Return the next line that was said, None where there is no other."""
        if not self._lines:
            if os.fstat(self._file.fileno()).st_size <= self._offset:  # nearly always
                return None
            data = os.pread(self._file.fileno(), _READ_BYTES, self._offset)
            whole = data[: data.rfind(b"\n") + 1] or data
            self._offset += len(whole)
            self._lines.extend(filter(None, whole.decode(errors="replace").splitlines()))
        return self._lines.popleft() if self._lines else self._next()
