"""JSON beside weights that is not what a model's is: one message, and no file elsewhere is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentcache.encoders.diffusers import weights
from latentcache.encoders.pretrained import files
from latentcache.errors import ConfigError

NESTED = "[" * 100_000
INDEX = f"{weights._WHOLE}.index.json"


@pytest.mark.parametrize("text", ["", "[]", "7", "null", NESTED])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / weights.CONFIG).write_text(text)
    (tmp_path / weights._WHOLE).write_bytes(b"")
    with pytest.raises(ConfigError, match=weights.CONFIG):
        weights.locate(str(tmp_path), None, None)
    with pytest.raises(ConfigError, match=weights.CONFIG):
        files._json(tmp_path / weights.CONFIG, "encoder.model")


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"weight_map": []},
        {"weight_map": {"a": []}},
        {"weight_map": {"a": 7}},
        {"weight_map": {"a": "../elsewhere.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": ".."}},
        None,
    ],
)
def test_an_index_names_files_beside_it(tmp_path: Path, content: Any) -> None:
    (tmp_path / weights.CONFIG).write_text("{}")
    text = NESTED if content is None else json.dumps(content)
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(ConfigError, match="not an index of weights"):
        weights.locate(str(tmp_path), None, None)
