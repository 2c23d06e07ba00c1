"""What an import refuses of a layout before anything is written: clips that no cache could hold."""

from __future__ import annotations

import dataclasses
import math

from latentcache.core.spec import ITEM_BYTES, LatentSpec
from latentcache.core.units import some_of
from latentcache.errors import ConfigError, CorpusError, GeometryError
from latentcache.exchange.clips import named
from latentcache.exchange.layouts import LOOKS_FOR
from latentcache.exchange.records import Found, Record
from latentcache.format.manifest import MAX_SAMPLE_BYTES
from latentcache.storage.folder import Storage, redact

#: Frames per second that a clip may have: films of explosions have fewer.
MAX_FPS = 1e7


def expect_clips(found: Found, source: Storage) -> None:
    """Raise ConfigError if there is no clip, or if two have one name."""
    if not found.records:
        raise ConfigError(
            f"{redact(source.url)}: no clip of the layout {found.layout} is there; they are "
            f"{LOOKS_FOR[found.layout]}. Nothing was imported. Check the path and the layout."
        )
    paths: dict[str, list[str]] = {}
    for record in found.records:
        paths.setdefault(record.key, []).append(record.path)
    if twice := {key: files for key, files in paths.items() if len(files) > 1}:
        raise ConfigError(
            f"{redact(source.url)}: {len(twice)} names of clips are there twice: {_where(twice)}. Nothing "
            "was imported. Rename or remove one of each two; or, to have both, import each from a "
            "folder of its own into a cache of its own."
        )


def _where(twice: dict[str, list[str]]) -> str:
    """Return the first names that are there twice, and the files that have each."""
    return some_of([f"{key!r} in {named(files)}" for key, files in twice.items()], separator="; ")


def check_found(spec: LatentSpec, found: Found) -> None:
    """Raise ConfigError or CorpusError for clips that cannot be of the encoder, or of no cache."""
    if (spec.ids is not None) != (found.stored == "ids"):
        raise ConfigError(
            f"{spec.model_class} gives {'ids' if spec.ids else 'latents'}, and the layout holds "
            f"{found.stored}. Nothing was imported. Name the encoder that made them with --like."
        )
    wanted = dataclasses.replace(spec, stored=found.stored)
    for record in found.records:
        _check_names(record)
        _check_shape(wanted, record)


def _check_names(record: Record) -> None:
    """Raise CorpusError for what no table of a cache holds."""
    for name in (record.key, record.source, record.path):
        if not _is_text(name):
            raise CorpusError(
                f"{name!r}: a cache's tables hold UTF-8, and this name is none. Nothing was imported. "
                "Rename the file."
            )
    if not 0 <= record.start < 1 << 63:
        raise CorpusError(
            f"{record.path}: {record.key!r} begins at frame {record.start}, which no video has. Nothing "
            "was imported."
        )
    times = [time for time in (record.start_s, record.end_s) if time is not None]
    if not all(map(math.isfinite, times)) or times != sorted(times):
        raise CorpusError(
            f"{record.path}: {record.key!r} is shown from {record.start_s} to {record.end_s} s, which no "
            "clip is. Nothing was imported."
        )
    if record.fps is not None and not 0 < record.fps <= MAX_FPS:  # nor NaN
        raise CorpusError(
            f"{record.path}: {record.key!r} has {record.fps} frames per second, which no video has. "
            "Nothing was imported."
        )


def _is_text(name: str) -> bool:
    return name.encode(errors="replace").decode() == name


def _check_shape(spec: LatentSpec, record: Record) -> None:
    """Raise ConfigError unless a record's shape is that of the encoder's latents for its pixels."""
    bucket = record.bucket
    try:
        shape = spec.latent_shape(bucket.frames, bucket.height, bucket.width)
        why = f"are {list(shape)}, and {record.key!r} has {list(record.shape)}"
    except GeometryError as error:
        shape, why = (), f"are not possible: {error}"
    if record.shape == shape and math.prod(shape) * ITEM_BYTES["float32"] <= MAX_SAMPLE_BYTES:
        return
    raise ConfigError(
        f"{record.path}: {spec.stored} of {spec.model_class} for clips of {bucket.name} {why}. Nothing "
        "was imported. Name the encoder that made them with --like."
    )
