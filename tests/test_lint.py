"""Style, types and the layers between modules."""

from __future__ import annotations

import pytest

from tests.lint import LINTERS, run


@pytest.mark.parametrize("name", LINTERS)
def test_linter_has_nothing_to_say(name: str) -> None:
    status, output = run(name)
    assert status == 0, output
