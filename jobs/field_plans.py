"""What jobs check and say of fields before one is made: their columns, their settings and their arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa

from latentcache.config.fields import FieldConfig
from latentcache.config.sections import Config
from latentcache.core.fields import FieldArray
from latentcache.core.records import Bucket
from latentcache.core.units import human_bytes, plural
from latentcache.corpus.sources import Corpus
from latentcache.errors import ConfigError
from latentcache.format.fields.manifest import read_field
from latentcache.format.fields.paths import field_json_path
from latentcache.format.kept_schema import united
from latentcache.format.manifest import read_all
from latentcache.format.paths import CACHE_JSON
from latentcache.format.schemas import PLAN_SCHEMA
from latentcache.planning.fields.ahead import as_after, check_paths, fields_in_doubt
from latentcache.planning.fields.columns import check_columns, check_start, columns_of, new_clips
from latentcache.planning.fields.describe import describe_field
from latentcache.planning.fields.planned import PlannedField, plan_field
from latentcache.planning.planned import PlannedCache
from latentcache.planning.step import Step
from latentcache.redaction import redact
from latentcache.running.shards_in_hand import most_in_hand
from latentcache.storage.folder import Storage

#: Where relative paths start that have no one folder.
OWN_CORPUS = "the corpus that each clip came from"
#: Shards in hand of fewer bytes are not worth a line.
MUCH_BYTES = 1 << 30


def check_step(fields: Mapping[str, FieldConfig], cache: PlannedCache, step: Step) -> None:
    """Raise ConfigError where fields cannot read the columns of a step that is still to be written."""
    known = columns_of(cache.manifest, step)
    _check_columns(fields, known, list(new_clips(step)), step.corpus)
    if in_doubt := fields_in_doubt(cache, step, fields):
        after = as_after(cache, step)
        for name, config in in_doubt.items():
            with naming(name):
                check_paths(after, name, config)


def check_corpus(fields: Mapping[str, FieldConfig], config: Config, corpus: Corpus) -> pa.Schema:
    """Return the columns that clips of a corpus have, with those of its cache where that is there.

    Raises ConfigError where fields cannot read them.
    """
    storage = Storage(config.cache.url, config.cache.storage_options)
    kept = [corpus.table.select(corpus.keep).schema]
    if fields and storage.exists(CACHE_JSON):
        kept.append(columns_of(read_all(storage)))
    known = united([PLAN_SCHEMA, *kept])
    _check_columns(fields, known, [corpus.table], corpus.folder)
    return known


def _check_columns(
    fields: Mapping[str, FieldConfig], known: pa.Schema, clips: Sequence[pa.Table], corpus: str
) -> None:
    for name, config in fields.items():
        with naming(name):
            check_columns(config, known)
            check_start(name, config, clips, corpus, known)


def check_fields(
    cache: PlannedCache, fields: Mapping[str, FieldConfig], *, dry_run: bool
) -> list[PlannedField]:
    """Plan fields; raises ConfigError or EncoderError before hours of encoding latents, if one cannot be.

    dry_run: the cache's plan is not written, so texts are not counted; print what the fields are.
    """
    planned = []
    for name, config in fields.items():
        with naming(name):
            if dry_run:
                print_arrays(name, describe_field(config, cache.manifest).arrays)
            else:
                planned.append(plan_field(cache, name, config, cache.config.corpus.source))
    return planned


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Name a field in what is said of its settings, which do not say whose they are."""
    try:
        yield
    except ConfigError as error:
        said, section = str(error), f"fields.{name}"
        if said.startswith(section) or repr(name) in said:
            raise
        first = re.split(r"[.:]", said, maxsplit=1)[0]
        if first == "encoder":
            raise type(error)(f"{section}.{said}") from error
        if first in ("text", "joint"):  # the encoder's settings stand beside the field's own
            raise type(error)(section + said.removeprefix(first)) from error
        raise type(error)(f"{section}: {said}") from error


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
