"""Files of fields that hold none, and settings in the wrong place: one sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentcache.config.fields import load_fields, parse_field
from latentcache.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no field; write  NAME: {kind: text, family: wan, model: FOLDER}"),
        ("- kind: text\n", "holds no field; write  NAME: {kind: text"),
        ("fields:\n", "holds no field; write  NAME: {kind: text"),
        ("umt5: text\n", "FIELD.yaml.umt5 is 'text', and no field. Write  NAME: {kind: text"),
        ("umt5: [text]\n", "FIELD.yaml.umt5 is ['text'], and no field"),
        ("umt5: {family: wan}\n", "FIELD.yaml.umt5.kind: required. Kinds: text, joint"),
        ("umt5: {kind: text", "FIELD.yaml is not YAML"),
    ],
)
def test_a_file_without_fields_is_told_what_to_write(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "FIELD.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_fields(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            {"kind": "visual", "of": "first", "family": "wan_clip", "model": "x"},
            "fields.clip:\n  family and model: settings of an image tower stand in `encoder`, such as "
            "encoder: {family: wan_clip, model: FOLDER}",
        ),
        (
            {"kind": "audio", "seconds": 1, "family": "wav2vec2"},
            "fields.clip:\n  family: settings of an encoder of sound stand in `encoder`, such as "
            "encoder: {family: wav2vec2, model: FOLDER}",
        ),
        (
            {"kind": "audio", "seconds": 1},
            "fields.clip:\n  rate: say how many samples per second the waveform has",
        ),
    ],
)
def test_settings_that_make_no_field_are_told_where_they_stand(
    field: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_field("clip", field)
    assert str(caught.value) == message
