"""A text encoder outside the project: states that are a hash of the text's characters. It counts its work.

`pooled` gives a pooled vector, too. Texts whose first word is NAN, CLIP, SHARD or KILL fail so, unless the
field's settings are `calm`. `takes_s`: seconds per text, in which other threads go on.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentcache.encoders.text.protocol import EncodedText, TextArray
from latentcache.errors import ClipError, ConfigError, EncoderError

WIDTH = 8
#: A file to which each encoding adds a line; for counting over processes.
COUNTED = "TEST_TEXTS"


def states(text: str, length: int, width: int = WIDTH) -> np.ndarray[Any, Any]:
    """float32 [min(characters + 1, length), width]: a character's state, then one of the end."""
    rows = [f"{n} {c}" for n, c in enumerate([*text, "</s>"])][:length]
    digests = b"".join(hashlib.blake2b(r.encode(), digest_size=2 * width).digest() for r in rows)
    values = np.frombuffer(digests, "<i2").astype(np.float32) / 4096
    return values.reshape(len(rows), width)


def arrays_of(settings: Mapping[str, Any]) -> dict[str, TextArray]:
    length = settings.get("length", 32)
    padding = settings.get("padding", "zeros")
    side = settings.get("side", "right")
    found = {"states": TextArray((length, WIDTH), padding, side)}
    if settings.get("pooled"):
        found["pooled"] = TextArray((WIDTH,), None)
    return found


def recipe_of(settings: Mapping[str, Any]) -> dict[str, object]:
    return {
        "class": "HashedText",
        "length": settings.get("length", 32),
        "salt": settings.get("salt", ""),
    }


class HashedText:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self.arrays = arrays_of(settings)
        self._length = settings.get("length", 32)

    def recipe(self) -> dict[str, object]:
        return recipe_of(self._settings)

    def encode(self, text: str) -> EncodedText:
        if COUNTED in os.environ:
            with Path(os.environ[COUNTED]).open("a") as file:
                file.write(f"{text}\n")
        time.sleep(self._settings.get("takes_s", 0))
        trouble = "" if self._settings.get("calm") else text.split(" ")[0]
        if trouble == "CLIP":
            raise ClipError("non_finite", "the encoder does not like it")
        if trouble == "SHARD":
            raise ValueError("size mismatch")
        if trouble == "KILL":
            os.kill(os.getpid(), 9)
        own = states(self._settings.get("salt", "") + text, self._length)
        if trouble == "NAN":
            own[0, 0] = np.nan
        pooled = torch.from_numpy(own.mean(axis=0))
        if not self.arrays["states"].ragged:
            own = np.concatenate([own, np.full((self._length - len(own), WIDTH), 0.5, np.float32)])
        num = min(len(text) + 1, self._length)
        if self._settings.get("broken") == "tokens":
            num += 1
        found = {"states": torch.from_numpy(own)}
        if "pooled" in self.arrays:
            found = {"pooled": pooled, **found}  # the order is that of `arrays`
        if self._settings.get("broken") == "names":
            found = {"other": found["states"]}
        return EncodedText(found, tokens=num, lost_tokens=len(text) + 1 - num)


def describe(settings: Mapping[str, Any]) -> tuple[dict[str, TextArray], dict[str, object]]:
    broken = settings.get("broken")
    if broken == "describe":
        raise ConfigError("hashed_text: there is no such model")
    if broken == "code":
        raise KeyError("hidden_size")
    if broken == "name":
        return {"states": TextArray((32, WIDTH), "zeros"), "a/b": TextArray((WIDTH,), None)}, {}
    if broken == "padding":
        return {"states": TextArray((32, WIDTH), "zeroes")}, {}  # type: ignore[arg-type]
    return arrays_of(settings), recipe_of(settings)


def build(settings: Mapping[str, Any], device: torch.device) -> HashedText:
    if settings.get("broken") == "build":
        raise EncoderError("the weights are cut short")
    if settings.get("broken") == "settings":
        raise ConfigError("length: the model has no such positions")
    return HashedText(settings)
