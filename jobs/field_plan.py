"""What jobs print of a field before they make it."""

from __future__ import annotations

from collections.abc import Sequence

from latentcache.core.fields import FieldArray
from latentcache.core.records import Bucket
from latentcache.core.units import human_bytes, plural
from latentcache.format.fields.manifest import read_field
from latentcache.format.fields.paths import field_json_path
from latentcache.planning.fields.planned import PlannedField
from latentcache.redaction import redact
from latentcache.running.shards_in_hand import most_in_hand

#: Where relative paths start that have no one folder.
OWN_CORPUS = "the corpus that each clip came from"
#: Shards in hand of fewer bytes are not worth a line.
MUCH_BYTES = 1 << 30


def print_plan(planned: PlannedField) -> None:
    """Say what a field is, and what it takes to make it."""
    field = planned.field
    print_arrays(field.name, field.arrays)
    if planned.has_paths:
        print(f"         relative paths start at {start_of(planned)}")
    _print_choices(planned)
    manifest = planned.cache.manifest
    clips = {Bucket.parse(bucket.name): bucket.num_clips for bucket in manifest.buckets}
    if field.kind != "view":
        print_memory(*most_in_hand(field.arrays, manifest, clips, field.choices))


def _print_choices(planned: PlannedField) -> None:
    """Say how many texts of a clip a field holds: one that is there keeps the number it was made with."""
    name, storage, num = planned.field.name, planned.storage, planned.field.choices
    held = num
    if storage.exists(field_json_path(name)):
        held = read_field(storage, name, planned.cache.manifest).choices
    if max(held, num) > 1:
        print(f"         {plural(held, 'text')} per clip at most")
    if held < num:
        print(
            f"warning: clips have up to {num} texts now. The field {name} was made for {held}, so further "
            "ones are not encoded. To have all, make a field of another name, or drop it and make it "
            f"again: latentcache drop-field {redact(storage.url)} {name} --yes"
        )


def start_of(planned: PlannedField) -> str:
    """Return where a field's relative paths start, as it is said."""
    return redact(planned.folders.only or OWN_CORPUS)


def print_memory(num_shards: int, shard_bytes: int) -> None:
    """Say what the arrays of shards in hand take, if it is much."""
    if num_shards * shard_bytes >= MUCH_BYTES:
        print(
            f"         memory of a worker: {plural(num_shards, 'shard')} of {human_bytes(shard_bytes)} "
            "at once at most, and twice as much again while they are written (cache.shard_clips)"
        )


def print_arrays(name: str, arrays: Sequence[FieldArray]) -> None:
    """Print what a field's arrays are."""
    for array in arrays:
        key = f"{name}.{array.name}" if array.name else name
        how = f", padding: {array.padding}" if array.padding else ""
        print(f"field    {key}: {array.shape_text} {array.dtype}{how}")
