"""Fields in a loader: which clips have them, which text a batch has, what is dropped, how it is padded.

Choices and drops are functions of (seed, epoch, key), so that they are the same for any number of ranks and
workers, and after a restart. Axes: B batch, L tokens, D width.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from latentcache.core import posterior
from latentcache.core.arguments import one_of, part, text
from latentcache.core.dtypes import AnyDtype, as_numpy, resolve_dtype, torch_dtype
from latentcache.core.fields import FieldArray, given_frames
from latentcache.core.posterior import sample_seed
from latentcache.core.records import Bucket, ShardId
from latentcache.errors import CacheError, ConfigError, did_you_mean
from latentcache.format.fields.nulls import NULL
from latentcache.format.manifest import recipe_difference
from latentcache.reading.cache import Cache
from latentcache.reading.fields import Entry, FieldReader
from latentcache.reading.loader import field_parts
from latentcache.reading.loader.filters import Chosen
from latentcache.reading.loader.in_all_fields import choose_clips
from latentcache.reading.loader.targets import Arriving, Target
from latentcache.reading.text_choice import chosen_entries, grouped

ZEROS = "zeros"
#: Bits of `sample_seed`.
SEED_BITS = 63


@dataclass(frozen=True, kw_only=True)
class FieldOptions:
    """What a loader takes of fields. names: which; the others as LatentLoader says.

    normalise, dtype: of fields that are latents, as of the latents themselves.
    """

    names: tuple[str, ...] = ()
    seed: int = 0
    caption_dropout: float = 0.0
    dropped: str = NULL
    pad: Literal["spec", "batch"] = "spec"
    missing: Literal["leave_out", "null"] = "leave_out"
    normalise: bool = True
    dtype: AnyDtype | None = None

    def __post_init__(self) -> None:
        part("caption_dropout", self.caption_dropout)
        text("dropped", self.dropped)
        one_of("pad", self.pad, ("spec", "batch"))
        one_of("missing", self.missing, ("leave_out", "null"))
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"fields: one is named twice: {', '.join(self.names)}")
        if self.caption_dropout and not self.names:
            raise ConfigError("caption_dropout drops the texts of fields: name them in `fields`")

    @property
    def missing_text(self) -> str:
        """The name of what stands for a text that a clip lacks."""
        return ZEROS if self.dropped == ZEROS else NULL

    def drops(self, epoch: int, key: str) -> bool:
        """Tell whether a clip's texts are dropped, all together."""
        if not self.caption_dropout:
            return False
        return sample_seed(self.seed, epoch, key, "drop") < int(self.caption_dropout * 2**SEED_BITS)

    def choice(self, epoch: int, key: str) -> int:
        """Return the random number that chooses a clip's text in all fields."""
        return sample_seed(self.seed, epoch, key, "text")


class LoaderFields:
    """The fields of one cache as a loader takes them, on the snapshots that they had when it was made."""

    def __init__(self, readers: Sequence[FieldReader], options: FieldOptions) -> None:
        self.readers, self.options = list(readers), options
        self.groups = grouped(readers)
        for reader in readers:
            self._check(reader)

    @classmethod
    def of(cls, cache: Cache, options: FieldOptions) -> LoaderFields:
        """Open the fields of a cache. Raises ConfigError, CacheError."""
        readers = [cache.field(name) for name in options.names]
        for reader in readers:
            check_columns(reader, cache.batch_columns)
        return cls(readers, options)

    def __bool__(self) -> bool:
        return bool(self.readers)

    def _check(self, reader: FieldReader) -> None:
        """Raise ConfigError where a field cannot be taken like this."""
        for key, array in reader.arrays.items():
            if self.options.pad == "batch" and array.padding in ("zeros", "attended"):
                raise ConfigError(
                    f"pad='batch': the model attends to the padding of {key} ({array.padding}), up to "
                    f"{array.shape[0]} tokens, so that fewer would be another condition. Use pad='spec'."
                )
        if self._needs_null(reader):
            self._check_null(reader)

    def _needs_null(self, reader: FieldReader) -> bool:
        options = self.options
        return reader.is_text and (options.caption_dropout > 0 or options.missing == "null")

    def _check_null(self, reader: FieldReader) -> None:
        name = self.options.dropped
        if name == ZEROS:
            return
        if reader.field.kind == "joint":
            raise ConfigError(
                f"dropped {name!r}: the states of {reader.name} depend on each clip's image, too, so no "
                "one text stands for all that are dropped. Use dropped='zeros'; or, for what the pipeline "
                "takes as an empty prompt, add a second joint field of empty texts, and choose between the "
                "two yourself, without caption_dropout: docs/fields.md, Texts with images."
            )
        self._check_text(reader, name, f"dropped {name!r}", "Use another one, or dropped='zeros'.")
        if self.options.missing == "null":
            self._check_text(
                reader, NULL, "missing 'null'", "Use missing='leave_out', or dropped='zeros'."
            )

    def _check_text(self, reader: FieldReader, name: str, option: str, instead: str) -> None:
        if name not in reader.nulls:
            known = [*reader.nulls, ZEROS]
            raise ConfigError(
                f"{option}: the field {reader.name} has no such text.{did_you_mean(name, known)} "
                f"It has: {', '.join(known)}"
            )
        if reader.nulls[name].message is not None:
            raise CacheError(
                f"{option}: the field {reader.name} could not encode it: "
                f"{reader.nulls[name].message}. {instead}"
            )

    def identity(self, shards: Sequence[ShardId]) -> dict[str, Any]:
        """Return which fields these are, and what is there of them, as JSON values.

        shards: those of the cache's snapshot, in order.
        """
        return {reader.name: field_parts.identity_of(reader, shards) for reader in self.readers}

    @property
    def num_parts(self) -> int:
        """How many parts all fields have together."""
        return sum(len(reader.parts) for reader in self.readers)

    def kept(self, saved: Mapping[str, Any], shards: Sequence[ShardId]) -> field_parts.Mask:
        """Return which parts there were, field by field, as `identity` said; all of a field not named.

        Raises CacheError.
        """
        masks = [np.ones(0, np.bool_)]
        for reader in self.readers:
            of_field = saved.get(reader.name)
            if isinstance(of_field, Mapping):
                masks.append(field_parts.kept(reader, of_field, shards))
            else:
                masks.append(np.ones(len(reader.parts), np.bool_))
        return np.concatenate(masks)

    def only(self, kept: field_parts.Mask) -> LoaderFields:
        """Return the fields with some of their parts, as `kept` returns them."""
        ends = np.cumsum([len(reader.parts) for reader in self.readers])
        masks = np.split(kept, ends[:-1])
        readers = [reader.only(mask) for reader, mask in zip(self.readers, masks, strict=True)]
        return LoaderFields(readers, self.options)

    def at(self, cache: Cache) -> LoaderFields:
        """Return the fields beside the captions and columns of another snapshot of their cache."""
        readers = [reader.at(cache.column_history) for reader in self.readers]
        same = all(one is other for one, other in zip(readers, self.readers, strict=True))
        return self if same else LoaderFields(readers, self.options)

    def choose(
        self, cache: Cache, chosen: Mapping[str, Chosen] | None
    ) -> tuple[dict[str, Chosen] | None, Counter[str]]:
        """Return which clips are in all fields, of those chosen before, and how many each leaves out.

        See `choose_clips`.
        """
        if not self.readers or self.options.missing == "null":
            return (None if chosen is None else dict(chosen)), Counter()
        return choose_clips(cache, self.readers, self.groups, chosen)

    def sample_bytes(self, bucket: str) -> int:
        """Return the bytes of a clip's fields, padding included."""
        return sum(
            int(np.prod(reader.shape(array, bucket))) * torch_dtype(array.dtype).itemsize
            for reader in self.readers
            for array in reader.arrays.values()
        )

    def stage(self, bucket: str, num_samples: int, target: Target) -> FieldsOfBatch:
        """Return the memory of a batch's fields."""
        return FieldsOfBatch(self, bucket, num_samples, target)


def check_columns(reader: FieldReader, columns: Sequence[str]) -> None:
    """Raise ConfigError where a kept column has the name of a field: a batch has one place for both."""
    if reader.name in columns:
        raise ConfigError(
            f"fields: {reader.name} is also a column that is kept from the corpus, and a batch has one "
            "place for both. Add the field by another name."
        )


def check_fields_alike(caches: Sequence[LoaderFields | None]) -> None:
    """Raise ConfigError where the fields of several caches are not of one kind."""
    first, *others = [fields.readers if fields else [] for fields in caches]
    for readers in others:
        for one, other in zip(first, readers, strict=True):
            facts = [(r.field.arrays, r.field.recipe.get("encoder")) for r in (one, other)]
            if facts[0] != facts[1]:
                raise ConfigError(
                    f"these caches cannot be mixed: their fields {one.name} differ: "
                    + "; ".join(recipe_difference(one.field.recipe, other.field.recipe)[:3])
                )


class FieldsOfBatch:
    """The fields of one batch, filled part by part from several threads."""

    def __init__(self, fields: LoaderFields, bucket: str, num_samples: int, target: Target) -> None:
        self._fields, self._bucket, self._target = fields, bucket, target
        self._options = fields.options
        self._tensors = {
            key: target.empty((num_samples, *reader.shape(array, bucket)), torch_dtype(array.dtype))
            for reader in fields.readers
            for key, array in reader.arrays.items()
        }
        names = [reader.name for reader in fields.readers]
        self._tokens = {key: [0] * num_samples for key in self._tensors}
        self._choices = {name: [0] * num_samples for name in names}
        self._lacking = {name: [False] * num_samples for name in names}
        self._dropped = [False] * num_samples
        self._lock = threading.Lock()

    def read(
        self,
        shard: int,
        rows: Sequence[int],
        where: Sequence[int],
        keys: Sequence[str],
        visits: Sequence[int],
        stored: Sequence[torch.Tensor],
        *,
        check: bool,
    ) -> None:
        """Read the fields of rows of a shard, by their numbers in it, to their places in the batch.

        visits: what stands for the epoch of each, see `selection.Rows`. stored: the rows' latents as they
        are stored.
        """
        drawn = list(zip(where, visits, keys, strict=True))
        dropped = {n for n, visit, key in drawn if self._options.drops(visit, key)}
        numbers = [self._options.choice(visit, key) for _, visit, key in drawn]
        chosen = chosen_entries(self._fields.groups, self._bucket, shard, rows, numbers)
        for reader in self._fields.readers:
            if reader.is_view:
                for n, latents in zip(where, stored, strict=True):
                    self._tensors[reader.name][n] = reader.view(latents)
                continue
            wanted = []
            for n, entry in zip(where, chosen[reader.name], strict=True):
                self._lacking[reader.name][n] = entry is None
                if reader.is_text and n in dropped:
                    self._fill(reader, n, self._options.dropped)
                elif entry is not None:
                    wanted.append((n, entry))
                else:
                    self._fill(reader, n, self._options.missing_text)
            self._read(reader, shard, wanted, check=check)
        for n in dropped:
            self._dropped[n] = True

    def _read(
        self, reader: FieldReader, shard: int, wanted: Sequence[tuple[int, Entry]], *, check: bool
    ) -> None:
        out = {key: [self._tensors[key][n] for n, _ in wanted] for key in reader.arrays}
        reader.read(self._bucket, shard, [entry for _, entry in wanted], out, check=check)
        for n, entry in wanted:
            for key, tokens in zip(reader.arrays, entry.tokens, strict=True):
                self._tokens[key][n] = tokens or 0
            self._choices[reader.name][n] = entry.choice

    def _fill(self, reader: FieldReader, n: int, name: str) -> None:
        """Put there the text that stands for a dropped or missing one; zeros in what is no text."""
        null = reader.nulls.get(name) if reader.is_text else None
        for a, (key, array) in enumerate(reader.arrays.items()):
            out = self._tensors[key][n]
            out.zero_()
            given = null.arrays[a] if null is not None else ()
            if len(given):
                values = as_numpy(out)
                at = slice(len(given)) if array.side == "right" else slice(-len(given), None)
                values[at if array.ragged else slice(None)] = given
            self._tokens[key][n] = 0 if null is None else len(given) if a else null.tokens

    def finish(self) -> dict[str, Any]:
        """Return what a batch gains; tensors may still be on their way to a device."""
        found: dict[str, Any] = {}
        for reader in self._fields.readers:
            name = reader.name
            for key, array in reader.arrays.items():
                found.update(self._finish(reader, key, array))
            if reader.field.choices > 1:
                found[f"{name}_choice"] = self._choices[name]
            if self._options.missing == "null":
                lacking = torch.tensor(self._lacking[name])
                found[f"{name}_missing"] = self._target.send_plain(lacking)
        if self._options.caption_dropout:
            found["dropped"] = self._target.send_plain(torch.tensor(self._dropped))
        return found

    def _finish(self, reader: FieldReader, key: str, array: FieldArray) -> dict[str, Any]:
        """Return what a batch has of one array: itself, its tokens and its mask."""
        tokens = torch.tensor(self._tokens[key])
        length = max(1, int(tokens.max())) if self._options.pad == "batch" else None
        tensor = _cut(self._tensors[key], array, length)
        if array.rule == "levels":
            tensor = hiding(tensor, reader, self._options)
        if array.rule == "latents":
            tensor = condition(tensor, reader, self._bucket, self._options)
        found = {key: tensor}
        if array.padding is not None and (array.ragged or not array.name):
            found[f"{key}_tokens"] = tokens
        if array.padding == "mask":
            found[f"{key}_mask"] = _mask(tokens, length or array.shape[0], array.side)
        return {name: self._target.send_plain(value) for name, value in found.items()}


def _cut(tensor: torch.Tensor, array: FieldArray, length: int | None) -> torch.Tensor:
    """Return a batch of padded texts cut to a length, contiguous."""
    if length is None or not array.ragged:
        return tensor
    return (tensor[:, :length] if array.side == "right" else tensor[:, -length:]).contiguous()


def condition(
    latents: torch.Tensor, reader: FieldReader, bucket: str, options: FieldOptions
) -> torch.Tensor:
    """Return latents [B, C, t, h, w] of a field as a model takes them: normalised, after their mask."""
    if options.normalise:
        # Of one clip, or of two.
        streams = latents.float().reshape(-1, reader.spec.channels, *latents.shape[2:])
        latents = posterior.normalise(streams, reader.spec.normaliser).reshape(latents.shape)
    latents = latents.to(_dtype(reader, options))
    if reader.field.recipe.get("mask") != "wan":
        return latents
    mask = wan_mask(str(reader.field.recipe["of"]), Bucket.parse(bucket), reader.spec.stride[0])
    shape = (len(latents), *mask.shape[:2], *latents.shape[-2:])
    return torch.cat([mask[None, :, :, None, None].expand(shape).to(latents), latents], dim=1)


def hiding(levels: torch.Tensor, reader: FieldReader, options: FieldOptions) -> torch.Tensor:
    """Return a mask as a model takes it, from 0 to 1; levels: uint8.

    Arithmetic of `preprocess_conditions` of diffusers' WanVACEPipeline.
    """
    values = levels.float().div_(255.0).mul_(2.0).sub_(1.0)
    return ((values + 1) / 2).clamp(0, 1).to(_dtype(reader, options))


def _dtype(reader: FieldReader, options: FieldOptions) -> torch.dtype:
    stored = torch_dtype(reader.field.arrays[0].dtype)
    return stored if options.dtype is None else resolve_dtype(options.dtype)


def wan_mask(of: str, bucket: Bucket, stride: int) -> torch.Tensor:
    """Return which frames are given, as Wan's image-to-video models take it: [stride, t].

    The first frame, which has a latent by itself, counts as often as a latent has frames; see
    `prepare_latents` of diffusers' WanImageToVideoPipeline.
    """
    given = torch.zeros(bucket.frames)
    given[given_frames(of, bucket.frames)] = 1
    return torch.cat([given[:1].expand(stride), given[1:]]).view(-1, stride).T


def _mask(tokens: torch.Tensor, length: int, side: str) -> torch.Tensor:
    """Return bool [B, L]: where a text has tokens of its own."""
    numbers = torch.arange(length)
    if side == "left":
        numbers = numbers.flip(0)
    return numbers[None] < tokens[:, None]


def arriving(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch whose tensors are taken by the calling thread's stream."""
    return {k: v.take() if isinstance(v, Arriving) else v for k, v in batch.items()}


def check_with_fields(frames: int | None, *, follow: bool, on_damaged: str) -> None:
    """Raise ConfigError for what a loader cannot do beside fields."""
    if frames is not None:
        raise ConfigError(
            "frames: fields are of whole clips, so a clip that is cut would have conditions of another "
            "one. Leave frames out, or take no fields."
        )
    if follow:
        raise ConfigError(
            "follow: a loader of fields keeps the snapshots that they had when it was made, so clips "
            "to come would have none. Leave follow out, and make a new loader when fields have grown."
        )
    if on_damaged != "raise":
        raise ConfigError(
            f"on_damaged {on_damaged!r} leaves clips out of batches by their latents only. With fields, "
            'leave it "raise"; `latentcache verify URL --repair` plans damaged clips again.'
        )
