"""What the tests of storage run on."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

from latentcache.storage import retry
from latentcache.storage.folder import Storage
from tests.tools.s3 import S3, s3_fixture, s3_server_fixture  # noqa: F401 - fixtures


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """URL and options of an empty folder."""
    if request.param == "local":
        return str(tmp_path / "cache"), {}
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/cache", {}
    s3: S3 = request.getfixturevalue("s3")
    return f"{s3.url}/cache", s3.options


@pytest.fixture
def store(place: tuple[str, dict[str, Any]]) -> Storage:
    return Storage(*place)
