"""Which parts of a field a loader has: what its state and `newest` keep of one that is still being encoded.

A part is a shard of a version. Parts are numbered by version, and then by the shards of the cache's
snapshot, so that numbers stay as they are when the field gains versions, or the cache gains shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from latentcache.core.records import ShardId
from latentcache.core.units import plural
from latentcache.errors import CacheError
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.fields.snapshot import Part
from latentcache.reading import shard_set
from latentcache.reading.fields import FieldReader
from latentcache.storage.urls import redact

Mask = npt.NDArray[np.bool_]
_FORMER_GONE = (
    "The former values are gone. Make a loader without the state, and start the epoch again with "
    "set_epoch."
)


def identity_of(reader: FieldReader, shards: Sequence[ShardId]) -> dict[str, Any]:
    """Return which field this is and which parts of it are there, as JSON values.

    shards: those of the cache's snapshot, in order.
    """
    numbers = {part: n for n, part in enumerate(_parts(reader.field, shards))}
    there = np.zeros(len(numbers), np.bool_)
    there[[numbers[part] for part in reader.parts if part in numbers]] = True
    # Later versions, of which nothing was there, change no text.
    bits = np.trim_zeros(np.packbits(there), "b")
    return {**_made(reader.field), "parts": shard_set.to_text(bits)}


def kept(reader: FieldReader, saved: Mapping[str, Any], shards: Sequence[ShardId]) -> Mask:
    """Return which of a field's parts were there, as `identity_of` said: a bool for each of `reader.parts`.

    Raises CacheError if it is of another field, or if parts that were there are not here.
    """
    url = redact(reader.storage.url)
    if saved.get("fingerprint") != reader.field.fingerprint:
        raise CacheError(
            f"{url}: the field {reader.name} is not the one of the state or snapshot, but has "
            "another recipe, so the run would go on with other values. Drop it and add it with its "
            "former recipe; or make a loader without the state, and start the epoch again with set_epoch."
        )
    if saved.get("generation") != reader.field.generation:
        raise CacheError(
            f"{url}: the field {reader.name} was dropped and made again since, of other captions, "
            f"so the run would go on with other values. {_FORMER_GONE}"
        )
    parts = _parts(reader.field, shards)
    bits = np.unpackbits(shard_set.from_text(str(saved.get("parts")), len(parts)))
    numbers = {part: n for n, part in enumerate(parts)}
    wanted = set(np.flatnonzero(bits).tolist())
    here = [numbers.get(part) for part in reader.parts]
    if lost := wanted.difference(here):
        raise CacheError(_lost(url, reader.name, sorted(lost), parts))
    return np.array([n in wanted for n in here], np.bool_)


def _made(field: FieldManifest) -> dict[str, Any]:
    """Return what a field's first version is of: a recipe, and the captions of a generation."""
    return {"fingerprint": field.fingerprint, "generation": field.generation}


def _lost(url: str, field: str, lost: Sequence[int], parts: Sequence[Part]) -> str:
    """Return what can be done about parts of a state that are not here: files are gone, or versions."""
    num = plural(len(lost), "shard")
    says = f"{url}: the state or snapshot that was given has {num} of the field {field} which it lacks here"
    opened = "If this cache was opened before that, open it again."
    if lost[-1] >= len(parts):
        return (
            f"{says}, of versions that the field does not have, so the run would go on with other values. "
            f"{opened} If the field was dropped and made again, that does not help. {_FORMER_GONE}"
        )
    return (
        f"{says}, such as {_name(parts[lost[0]])}, so the run would go on with other values. {opened} If "
        f"files are gone, `latentcache resume {url}` encodes them again."
    )


def _parts(field: FieldManifest, shards: Sequence[ShardId]) -> list[Part]:
    """Return the parts that a field can have of shards, in the order of their numbers."""
    known, parts = set(shards), list[Part]()
    for version in field.all_versions:
        listed = shards if version.rows is None else sorted(known.intersection(version.rows))
        parts += [Part(version.number, shard) for shard in listed]
    return parts


def _name(part: Part) -> str:
    return f"{part.shard.name} of version {part.version}"
