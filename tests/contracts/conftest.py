"""What the contracts of shard formats are tested on."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from latentcache.storage.folder import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}")
