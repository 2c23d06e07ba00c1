"""Warnings of a worker, wherever it runs, on their way to the one who started the run."""

from __future__ import annotations

import logging

#: Different messages that are kept; after that a worker is saying the same thing of each clip.
LIMIT = 100


class WarningLog(logging.Handler):
    """Keeps what is logged as a warning or worse, each message once, until it is taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._messages: list[str] = []
        self._num_taken = 0

    def __enter__(self) -> WarningLog:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        message = record.getMessage()
        if message not in self._messages and len(self._messages) < LIMIT:
            self._messages.append(message)

    def take(self) -> tuple[str, ...]:
        """Return the messages since the last time."""
        fresh = tuple(self._messages[self._num_taken :])
        self._num_taken += len(fresh)
        return fresh
