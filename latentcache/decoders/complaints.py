"""What FFmpeg says about damage: both decoders conceal it, and only standard error tells."""

from __future__ import annotations

import os
import re
import tempfile
from typing import Self

import av

av.logging.restore_default_callback()  # FFmpeg's own, which writes to standard error
av.logging.set_libav_level(av.logging.PANIC)

#: Errors of FFmpeg that leave the picture as it is: optional messages, and orders to forget frames that
#: the decoder has forgotten already. Also what it says of its own set-up.
HARMLESS = re.compile(
    r"SEI|mmco|deprecated pixel format|reorder buffer|Reinit context", re.IGNORECASE
)


class Complaints:
    """Collects what this process's native libraries write to standard error while it is entered."""

    def __enter__(self) -> Self:
        self._file = tempfile.TemporaryFile()
        self._standard_error = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        av.logging.set_libav_level(av.logging.ERROR)
        return self

    def __exit__(self, *_: object) -> None:
        av.logging.set_libav_level(av.logging.PANIC)
        os.dup2(self._standard_error, 2)
        os.close(self._standard_error)
        self._file.close()

    def first(self, source: str | None = None, harmless: re.Pattern[str] = HARMLESS) -> str | None:
        """Return the first line that tells of damage, if there is one.

        source: the FFmpeg component whose lines count, such as `h264`; omitted: any. harmless: lines
        that do not count.
        """
        size = os.fstat(self._file.fileno()).st_size
        if not size:  # nearly always
            return None
        text = os.pread(self._file.fileno(), min(size, 1 << 16), 0).decode(errors="replace")
        for line in text.splitlines():
            prefix, _, said = line.partition("] ")
            if (source is None or prefix.startswith(f"[{source} @")) and not harmless.search(line):
                return said or line
        return None
