"""Two Ctrl-C end any job within seconds, whatever it is waiting for.

The first one lets a job end in order: what is being written is finished. A wait for storage that does not
answer, or for a thread that hangs, would make that endless; so after the second one the process has END_S
left. What is committed stays, for nothing that counts is ever half-written.

Python runs its handlers only in the main thread, and only between two of its steps. So a thread looks at
signals, of which the interpreter tells a pipe at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

#: The job has this long to end in order after the second signal. Wrappers such as `uv run` pass on a
#: signal that the terminal has sent already, so a second one need not be the user's.
END_S = 3.0
#: A job that has not ended so long after the first signal says what it does, and what a second would do.
TELL_S = 2.0
INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOPPING = (
    "\nStopping; what is being written is finished first. Ctrl-C again ends at once: what is committed "
    "stays.\n"
)
_ENDED = "\nEnded at once. What is committed stays; the same command goes on.\n"


class Interrupts:
    """Counts signals that are to end this process, in a thread of its own; the second one does end it."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)  # so that a handler never waits
        self._count = 0
        self._is_over = threading.Event()

    def begin(self) -> None:
        """Watch this process. From another thread than the main one nothing is watched."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # A forked process, such as a worker of a DataLoader, gets the terminal's Ctrl-C, too.
        os.register_at_fork(after_in_child=_unwatched)
        threading.Thread(target=self._watch, name="interrupts", daemon=True).start()

    def renew(self) -> None:
        """Begin to count for the next job of this process."""
        self._count = 0
        self._is_over = threading.Event()

    def over(self) -> None:
        """Tell that the job has ended, though its threads may not have: nothing needs to be said."""
        self._is_over.set()

    def _watch(self) -> None:
        while numbers := os.read(self._reader, 64):
            for number in numbers:
                if number in SIGNALS:
                    self._count += 1
                    self._act()

    def _act(self) -> None:
        if self._count == 1:
            threading.Thread(target=self._explain, args=(self._is_over,), daemon=True).start()
        elif self._count == 2:
            threading.Thread(target=_end, daemon=True).start()

    def _explain(self, is_over: threading.Event) -> None:
        if not is_over.wait(TELL_S) and self._count == 1:
            _say(_STOPPING)


def _end() -> None:
    time.sleep(END_S)
    threading.Thread(target=_say, args=(_ENDED,), daemon=True).start()
    time.sleep(0.1)  # standard error may be a pipe that nobody reads
    os._exit(INTERRUPTED)


def _say(text: str) -> None:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())


def _unwatched() -> None:
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


_watching: Interrupts | None = None


def watch_interrupts() -> Interrupts:
    """Return what counts the signals of this process, which begins with the job."""
    global _watching
    if _watching is None:
        _watching = Interrupts()
        if threading.current_thread() is threading.main_thread():
            _watching.begin()
    _watching.renew()
    return _watching
