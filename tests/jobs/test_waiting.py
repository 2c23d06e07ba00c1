"""What a job says before there is anything to count."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest

from jobs import waiting
from jobs.waiting import Waiting


class Terminal(io.StringIO):
    """A stream that says it is a terminal or not, and when it was written to a third time."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal, self._writes = is_terminal, 0
        self.written = threading.Event()

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        self._writes += 1
        if self._writes >= 3:
            self.written.set()
        return super().write(text)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "REDRAW_INTERVAL_S", 0.001)
    monkeypatch.setattr(waiting, "LINE_INTERVAL_S", 0.001)


def test_elsewhere_every_step_and_the_time_are_lines() -> None:
    stream = Terminal(is_terminal=False)
    with Waiting(stream) as shown:
        shown.say("loading the model")
        assert stream.getvalue().startswith("loading the model ...\n")
        assert stream.written.wait(60)
        shown.say("encoding")
    lines = stream.getvalue().splitlines()
    assert "loading the model ... 0 s" in lines
    assert "encoding ..." in lines
    before = stream.getvalue()
    shown.stop()
    assert stream.getvalue() == before


def test_on_a_terminal_one_line_changes_and_is_cleared() -> None:
    stream = Terminal(is_terminal=True)
    with Waiting(stream) as shown:
        shown.say("loading the model")
        assert stream.written.wait(60)
    said: Any = stream.getvalue()
    assert "\n" not in said
    assert said.endswith(waiting.CLEAR)
    assert f"{waiting.CLEAR}loading the model ... 0 s" in said


def test_nothing_is_shown_where_only_a_terminal_is_to_see_it() -> None:
    stream = Terminal(is_terminal=False)
    with Waiting(stream, only_on_terminal=True) as shown:
        shown.say("starting")
    assert stream.getvalue() == ""
