"""Says what a job is doing before there is anything to count, from the first second on."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import Self, TextIO

#: Seconds between two looks at the clock: on a terminal, and elsewhere, where each is a line.
REDRAW_INTERVAL_S = 1.0
LINE_INTERVAL_S = 10.0
CLEAR = "\r\x1b[K"


class Waiting:
    """Shows what is going on, and for how long: on a terminal by one line of stderr that changes.

    Elsewhere by lines of stdout, as other progress: stderr is for what is wrong.
    only_on_terminal: nothing is shown elsewhere.
    """

    def __init__(self, stream: TextIO | None = None, *, only_on_terminal: bool = False) -> None:
        self._stream = stream or (sys.stderr if sys.stderr.isatty() else sys.stdout)
        self._is_terminal = self._stream.isatty()
        self._is_shown = self._is_terminal or not only_on_terminal
        self._lock = threading.Lock()
        self._text, self._since = "", 0.0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def say(self, text: str) -> None:
        """Show what begins now, in place of what was shown."""
        if not self._is_shown:
            return
        with self._lock:
            self._text, self._since = text, time.monotonic()
            self._write(CLEAR + f"{text} ..." if self._is_terminal else f"{text} ...\n")
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._run, name="waiting", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Show nothing more; on a terminal the line is cleared for what comes."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._ended.set()
            thread.join()
            if self._is_terminal:
                self._write(CLEAR)

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # of writing, which the job's own thread meets, too
            self._count()

    def _count(self) -> None:
        interval_s = REDRAW_INTERVAL_S if self._is_terminal else LINE_INTERVAL_S
        while not self._ended.wait(interval_s):
            with self._lock:
                line = f"{self._text} ... {time.monotonic() - self._since:.0f} s"
                self._write(CLEAR + line if self._is_terminal else f"{line}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
