"""Text states of clips that are given away, and the texts that they are of. Reads only.

Those texts are of the field's own column, which need not be that of the captions.
Axes: L tokens, D their width.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence

import torch

from latentcache.config.caption_fields import CaptionField
from latentcache.config.fields import stored_field
from latentcache.config.files import load_stored_config
from latentcache.core.records import ShardId
from latentcache.core.units import plural
from latentcache.errors import ConfigError
from latentcache.exchange.clips import ClipRow, converted, named
from latentcache.exchange.lacking import lacking_rows, not_there
from latentcache.format.changes import read_changes
from latentcache.planning.fields.planned import PlannedField
from latentcache.planning.planned import PlannedCache
from latentcache.reading.cache import Cache
from latentcache.reading.fields import FieldReader
from latentcache.reading.text_choice import chosen_entries
from latentcache.storage.urls import redact


class Texts:
    """A field of text states, clip by clip.

    notes: what an export says of it, a sentence each. Raises ConfigError where clips have no text, or one
    of more tokens than at_most, and where it is not known which text the states of a clip are of.
    """

    def __init__(
        self, cache: Cache, name: str, rows: Sequence[ClipRow], at_most: int | None = None
    ) -> None:
        self._field = cache.field(name)
        self.name = name
        self.array = self._field.field.arrays[0]
        if self._field.field.kind == "joint":
            raise ConfigError(
                f"--text {name}: the field holds states of a text with an image (joint), which none of the "
                "trainers' models of this layout takes for a text's. Nothing was written. Name a field of "
                f"kind text; or export to webdataset, mds or hf, which take this one: --field {name}"
            )
        if self._field.field.kind != "text" or len(self.array.shape) != 2:
            raise ConfigError(
                f"--text {name}: the field is of kind {self._field.field.kind}, and text states [L, D] are "
                "needed. Nothing was written. Name a field of kind text."
            )
        if lacking := lacking_rows(self._field, rows):
            raise not_there(_planned(cache, self._field), lacking)
        refuse_stale(cache, self._field, rows)
        self._texts = _texts_of(cache, self._field, rows)
        self.notes = notes_on(self._field, rows)
        long = [] if at_most is None else [r.key for r in rows if self.num_tokens(r) > at_most]
        if long:
            raise ConfigError(
                f"--text {name}: {plural(len(long), 'text')} of more than the {at_most} tokens that the "
                f"trainer takes, of {named(long)}. Nothing was written. Add a field with length: {at_most}."
            )

    @property
    def columns(self) -> list[str]:
        """The columns that its texts are of."""
        return columns_of(self._field)

    def text(self, row: ClipRow) -> str:
        """Return the very text that a clip's states are of."""
        return self._texts[row.number]

    def num_tokens(self, row: ClipRow) -> int:
        """Return the number of the text's own tokens, without reading its states."""
        tokens = self._field.rows(row.bucket, row.shard)[row.row].pick(0).tokens[0]
        return self.array.shape[0] if tokens is None else tokens

    def unpadded(self, row: ClipRow, dtype: str | None = None) -> torch.Tensor:
        """Return the states of the text's own tokens [n, D], in the field's data type or another."""
        states, num = self._read(row)
        own = states[len(states) - num :] if self.array.side == "left" else states[:num]
        return self._converted(own, row, dtype)

    def padded(self, row: ClipRow, length: int, dtype: str | None = None) -> torch.Tensor:
        """Return the states of the text's own tokens, at most `length`, then zeros [length, D]."""
        states = self.unpadded(row, dtype)
        return torch.cat([states, states.new_zeros(length - len(states), states.shape[1])])

    def stored(self, row: ClipRow, dtype: str | None = None) -> torch.Tensor:
        """Return the states as they are stored [L, D], padding included."""
        return self._converted(self._read(row)[0], row, dtype)

    def _converted(self, states: torch.Tensor, row: ClipRow, dtype: str | None) -> torch.Tensor:
        if dtype is None:
            return states
        return converted(states, dtype, row.key, f"states {self.name}")

    def _read(self, row: ClipRow) -> tuple[torch.Tensor, int]:
        found = self._field.sample(row.bucket, row.shard, row.row)
        states: torch.Tensor = found[self.name]
        return states, int(found.get(f"{self.name}_tokens", len(states)))


def refuse_stale(cache: Cache, field: FieldReader, rows: Sequence[ClipRow]) -> None:
    """Raise ConfigError for clips whose texts, or paths, are others now than those that a field holds."""
    stale = _stale_rows(cache, field)
    keys = [
        row.key
        for row in rows
        if row.row in stale.get(ShardId(row.bucket, row.shard), ())
        or row.row in field.stale(row.bucket, row.shard)
    ]
    if keys:
        raise ConfigError(
            f"{plural(len(keys), 'clip')} with other texts or files now than those that the field "
            f"{field.name} is of: {named(keys)}. Its values would stand beside captions that are not "
            "theirs. Nothing was written. Encode the new ones: latentcache resume "
            f"{shlex.quote(redact(cache.storage.url))} --field {field.name}"
        )


def _stale_rows(cache: Cache, field: FieldReader) -> Mapping[ShardId, Collection[int]]:
    """Return rows whose texts have changed and are not encoded yet, whether that is planned or not."""
    changes = read_changes(cache.storage, cache.manifest)
    if field.is_view or field.field.kind == "given" or not changes.columns:
        return {}
    of = _planned(cache, field)
    stale: dict[ShardId, frozenset[int]] = of.changed_rows()
    for shard, versions in of.missing.items():
        for rows in (v.rows for v in versions if v.kind == "update" and v.rows is not None):
            stale[shard] = stale.get(shard, frozenset()) | rows[shard]
    return stale


def _planned(cache: Cache, field: FieldReader) -> PlannedField:
    """Return a field with the plan of its cache, in which the texts of all clips are."""
    kinds = [str(cache.manifest.config["encoder"]["kind"])]
    config = load_stored_config(
        cache.manifest.config, url=cache.storage.url, storage_options={}, allowed_encoders=kinds
    )
    planned = PlannedCache(config=config, manifest=cache.manifest, storage=cache.storage)
    settings = stored_field(field.name, field.field.settings)
    return PlannedField(cache=planned, field=field.field, config=settings)


def _texts_of(cache: Cache, field: FieldReader, rows: Sequence[ClipRow]) -> dict[int, str]:
    """Return the text that the states of each clip are of, by the clip's number.

    All clips must have states, and none may be stale. Raises ConfigError where the plan has not that text.
    """
    in_shard: dict[ShardId, list[ClipRow]] = {}
    for row in rows:
        in_shard.setdefault(ShardId(row.bucket, row.shard), []).append(row)
    of, now = _planned(cache, field), len(cache.manifest.generations)
    found: dict[int, str] = {}
    for shard in sorted(in_shard):
        try:
            planned = of.inputs.of(shard, now)
        except ConfigError as error:
            raise _unknown(cache, field, str(error)) from None
        for row in in_shard[shard]:
            texts = planned[row.row]
            choice = 0 if len(texts) == 1 else field.rows(*shard)[row.row].pick(0).choice
            if choice >= len(texts):
                raise _unknown(cache, field, f"the clip {row.key!r} has no such text now.")
            found[row.number] = texts[choice]
    return found


def _unknown(cache: Cache, field: FieldReader, why: str) -> ConfigError:
    return ConfigError(
        f"--text {field.name}: which texts its states are of is not known: {why} Others would stand beside "
        "them. Nothing was written. Add a field of a column that the clips have: latentcache add-field "
        f"{shlex.quote(redact(cache.storage.url))} FIELD.yaml"
    )


def columns_of(field: FieldReader) -> list[str]:
    """Return the columns that a field's texts are of; none if it is of no text."""
    config = stored_field(field.name, field.field.settings)
    return config.text_columns if isinstance(config, CaptionField) else []


def notes_on(
    field: FieldReader, rows: Sequence[ClipRow], beside: Sequence[FieldReader] = ()
) -> list[str]:
    """Return what an export says of clips with several texts, of which it writes one.

    beside: the exported fields of the same texts, which are written of the same one.
    """
    if not field.is_text or field.field.choices == 1:
        return []
    in_shard: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        in_shard.setdefault((row.bucket, row.shard), []).append(row.row)
    several = later = 0
    for shard, numbers in in_shard.items():
        there = field.rows(*shard)
        entries = chosen_entries([beside or [field]], *shard, numbers, [0] * len(numbers))
        written = zip(numbers, entries[field.name], strict=True)
        choices = [e.choice for n, e in written if e is not None and there[n].num_choices > 1]
        several += len(choices)
        later += sum(choice > 0 for choice in choices)
    if not several:
        return []
    which = "only the first one of each is written"
    if later:
        which = (
            f"one of each is written: the first one, or of {plural(later, 'clip')} a later one, since "
            "encoding those before it failed"
        )
    name = field.name
    return [f"{several} of {len(rows)} clips have several texts in the field {name}, and {which}"]
