"""What jobs print: whatever a name, a caption or an error holds, a terminal obeys none of it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from latentcache.redaction import printable, redact

if TYPE_CHECKING:
    import pyarrow as pa

#: Names that are printed before it is said how many more there are.
NAMED = 5
#: How a progress bar draws, whose words are its own: over its line, or up some lines.
_DRAWN = re.compile(r"\r[^\x00-\x1f\x7f-\x9f]*\r?|(?:\n|\x1b\[A)+")
#: To the start of the line that is so many lines up, and clear what is below.
_REDRAW = "\x1b[{}F\x1b[J"


class OutputError(OSError):
    """What a job prints cannot be written, such as to a full disk."""


class Output:
    """A stream of text that escapes control characters, and hides the secrets of URLs.

    draws: whether a progress bar draws on it.
    """

    def __init__(self, stream: TextIO, *, draws: bool = False) -> None:
        self._stream = stream
        self._draws = draws

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; lines stay lines."""
        if not (self._draws and _DRAWN.fullmatch(text)):
            text = "\n".join(printable(redact(line)) for line in text.split("\n"))
        return self.obeyed(text)

    def obeyed(self, text: str) -> int:
        """Write what the terminal is to obey."""
        with _told():
            return self._stream.write(text)

    def flush(self) -> None:
        """Write what is still held back."""
        with _told():
            self._stream.flush()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Make OutputError of what the system says about a stream. A reader that has gone is no error."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from None


def open_streams() -> None:
    """Let what is printed go nowhere where this process was started without a stream for it (`>&-`)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good
            setattr(sys, name, nowhere)


def drop_unwritten() -> None:
    """Drop what cannot be written, or Python tries again at its end, and complains."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def redraw(num_lines: int) -> None:
    """Go to the start of the line that is so many lines up, and clear the rest of the screen."""
    out = sys.stdout
    (out.obeyed if isinstance(out, Output) else out.write)(_REDRAW.format(num_lines))


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Print through `Output` inside; what a stream's encoding does not have is shown escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    out, err = Output(sys.stdout), Output(sys.stderr, draws=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def some_names(names: pa.ChunkedArray) -> str:
    """Return the first of some names in one line, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(printable, names[:NAMED].to_pylist())) + more
