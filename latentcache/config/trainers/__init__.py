"""Data set files of trainers as configurations, for `latentcache init --from`: one module per trainer.

Whatever a file says is carried over, or named among what is lost.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from latentcache.config.trainers.diffusion_pipe import from_diffusion_pipe
from latentcache.config.trainers.finetrainers import from_finetrainers
from latentcache.config.trainers.musubi import from_musubi
from latentcache.config.trainers.records import GIVE, Converted, Reads
from latentcache.config.trainers.simpletuner import from_simpletuner
from latentcache.core.json_text import OTHER_SHAPE, parse_json
from latentcache.core.regular_files import read_regular
from latentcache.errors import ConfigError

__all__ = ["JSON", "TRAINERS", "Converted", "Reads", "convert"]


def convert(trainer: str, path: str) -> list[Converted]:
    """Return the data sets of a trainer's file. Raises ConfigError."""
    data = _read(trainer, path)
    of_file: list[str] = []
    try:
        found = list(TRAINERS[trainer](data, of_file))
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be taken over: {error}.") from None
    except OTHER_SHAPE as error:
        raise ConfigError(
            f"{path} is no data set file of {trainer}: {type(error).__name__} at {error}. {GIVE}."
        ) from None
    if not found:
        why = "".join(f" Left out: {line}." for line in of_file)
        raise ConfigError(
            f"{path} has no data set of videos or images that could be taken over.{why}"
        )
    return [dataclasses.replace(one, lost=(*of_file, *one.lost)) for one in found]


def _read(trainer: str, path: str) -> Any:
    is_json = trainer in JSON or path.lower().endswith(".json")
    try:
        text = read_regular(path, "utf-8-sig")
        return parse_json(text) if is_json else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path!r}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not {'JSON' if is_json else 'TOML'}: {error}") from None


TRAINERS: Mapping[str, Callable[[Any, list[str]], Iterator[Converted]]] = {
    "musubi": from_musubi,
    "finetrainers": from_finetrainers,
    "diffusion-pipe": from_diffusion_pipe,
    "simpletuner": from_simpletuner,
}
#: Trainers whose files are JSON, whatever they are called.
JSON = ("finetrainers", "simpletuner")
