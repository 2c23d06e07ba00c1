from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tools.texts.threads import one_thread  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from tests.tools.texts.checkpoints import Parts


@pytest.fixture(scope="session")
def saved_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Parts]]:
    """Return a case's checkpoint, which is made once: its folder, and the components saved in it."""

    @functools.cache
    def get(name: str) -> tuple[Path, Parts]:
        from tests.tools.texts.references import saved  # it imports transformers

        return saved(name, tmp_path_factory.mktemp(name))

    return get


@pytest.fixture(scope="session")
def made(saved_case: Callable[[str], tuple[Path, Parts]]) -> Callable[[str], Path]:
    """Return the folder of a case's checkpoint, which is not to be changed."""
    return lambda name: saved_case(name)[0]
