"""What the translators of trainers' data set files share: their result, and how it says what is lost."""

from __future__ import annotations

import glob
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentcache.config.presets import PRESETS
from latentcache.errors import ConfigError
from latentcache.storage.urls import is_url

Plain = Mapping[str, Any]

NO_EQUAL = "has no equal here"
OF_TRAINING = "belongs to training; the loader has its own"
SHARES = "is of training; give the loader `weights` where caches are mixed"
GIVE = "Give the file that the trainer itself reads"


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What a trainer takes of the files directly in a folder.

    key: what its file calls the folder. kind: None: videos and images. suffixes: the ends of names that it
    takes, as it spells them; None: any. caption: the end of the name of a file that must lie beside each.
    """

    trainer: str
    key: str
    folder: str
    kind: Literal["video", "image"] | None
    suffixes: tuple[str, ...] | None = None
    caption: str | None = None


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One of a trainer's data sets.

    corpus, clips: our sections. lost: what they do not carry, in words. reads: what the trainer takes of
    the folder that is their source; None where that is a table, or where it takes what `corpus` does.
    """

    corpus: dict[str, Any]
    clips: dict[str, Any]
    lost: tuple[str, ...]
    reads: Reads | None = None


def sections(data: Any, name: str, of_file: list[str], *known: str) -> list[Plain]:
    """Return the data sets of a file, its list `name`; what else it holds is lost. Raises ConfigError."""
    found: Any = data.get(name) if isinstance(data, dict) else None
    if not is_list_of_sections(found):
        raise ConfigError(f"it has no list {name!r} of sections. {GIVE}")
    of_file += [f"{key}: {NO_EQUAL}" for key in data if key not in (name, *known)]
    return list(found)


def is_list_of_sections(found: Any) -> bool:
    """Tell whether a part of a file is a list of sections."""
    return isinstance(found, list) and all(isinstance(one, dict) for one in found)


def text(given: Plain, key: str) -> str:
    """Return what must be some text. Raises ConfigError."""
    value = given.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key!r} should be the text of a place, and is {value!r}")
    return value


def flat(folder: str) -> str:
    """Return a glob of the files directly in a folder, which is all that a trainer reads of it."""
    return f"{glob.escape(folder).rstrip('/')}/*"


def names_in(folder: str) -> list[str] | None:
    """Return the names directly in a folder; None where it is not here."""
    try:
        return sorted(path.name for path in Path(folder).iterdir())
    except (OSError, ValueError):
        return None


def starts_here(key: str, place: str) -> list[str]:
    """Say of a relative path where it starts."""
    if posixpath.isabs(place) or is_url(place) or re.match(r"[A-Za-z]:[/\\]", place):
        return []
    return [f"{key}: {place!r} starts where precompute is run, not where the trainer is"]


def preset(name: str, given: Plain) -> dict[str, Any]:
    """Return a section `clips` of a preset, with those of its keys that are given."""
    known = PRESETS[name].model_fields
    return {"preset": name, **{key: value for key, value in given.items() if key in known}}


def others(given: Plain, used: set[str], why: Mapping[str, str]) -> tuple[str, ...]:
    """Say of every key that is not used that it is lost. Values are not said: some are secrets."""
    return tuple(f"{key}: {why.get(key, NO_EQUAL)}" for key in given if key not in used)


def weighted(corpus: dict[str, Any], times: Any) -> dict[str, Any]:
    """Return a section `corpus` whose clips come so many times per epoch."""
    return corpus if times == 1 else {**corpus, "weight": times}
