"""Fields of small caches: configurations, and what the encoder of the tests gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from latentcache.core.dtypes import Array, numpy_dtype
from tests.tools.encoders.hashed_text import WIDTH, states

FAMILY = "tests.tools.encoders.hashed_text"


def text_field(**settings: Any) -> dict[str, Any]:
    """A text field of the encoder of the tests, of 32 tokens unless `length` says otherwise."""
    return {"kind": "text", "family": FAMILY, **settings}


def write_fields(folder: Path, **fields: Any) -> Path:
    """Write FIELD.yaml."""
    path = folder / f"{'-'.join(fields)}.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def padded(text: str, length: int = 32, dtype: str = "bfloat16", side: str = "right") -> Array:
    """What a field with padding of zeros, or one with a mask, gives a model for a text: [length, WIDTH]."""
    own = states(text, length)
    whole = np.zeros((length, WIDTH), numpy_dtype(dtype))
    whole[slice(len(own)) if side == "right" else slice(length - len(own), None)] = own
    return whole
