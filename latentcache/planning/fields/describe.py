"""What a field's configuration makes: its arrays, and the recipe of their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentcache.config.fields import FieldConfig, TextField
from latentcache.core.fields import FieldArray
from latentcache.encoders.text import resolve
from latentcache.encoders.text.protocol import TextArray
from latentcache.errors import EncoderError

FIELD_RECIPE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Description:
    """arrays: the first is the field's own. recipe: all that determines its values but the corpus."""

    arrays: tuple[FieldArray, ...]
    recipe: Mapping[str, Any]


def describe_field(config: FieldConfig) -> Description:
    """Return what a field is. Raises ConfigError, EncoderError."""
    assert isinstance(config, TextField)
    return _describe_text(config)


def _describe_text(config: TextField) -> Description:
    settings = config.encoder()
    arrays, recipe = resolve.describe(settings)
    dtype = config.store or config.dtype
    whole = {
        "version": FIELD_RECIPE_VERSION,
        "kind": config.kind,
        "encoder": recipe,
        "dtype": config.dtype,
        "stored": dtype,
        "columns": config.columns,
        "missing": config.missing,
        "nulls": dict(config.nulls),
    }
    return Description(arrays=text_arrays(arrays, dtype), recipe=_plain(whole))


def text_arrays(arrays: Mapping[str, TextArray], dtype: str) -> tuple[FieldArray, ...]:
    """Return a text encoder's arrays as those of a field. Raises EncoderError if there is none."""
    if not arrays:
        raise EncoderError("the text encoder names no array")
    return tuple(
        FieldArray(
            name=name if n else "",
            shape=tuple(array.shape),
            dtype=dtype,
            padding=array.padding,
            side=array.side,
        )
        for n, (name, array) in enumerate(arrays.items())
    )


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values, as reading them gives them back. Raises EncoderError."""
    try:
        return json.loads(json.dumps(recipe, allow_nan=False))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise EncoderError(f"the encoder's recipe holds more than JSON values: {error}") from None
