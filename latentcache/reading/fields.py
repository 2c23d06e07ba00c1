"""A field as a reader sees it: which clips it has, and their arrays. Holds the field's snapshot."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latentcache.core.dtypes import as_numpy, torch_dtype
from latentcache.core.fields import FieldArray
from latentcache.core.lru import Lru
from latentcache.core.records import Bucket, ChunkRef, ShardId
from latentcache.core.spec import LatentSpec
from latentcache.errors import CacheError, ConfigError, did_you_mean
from latentcache.format.damage import damaged
from latentcache.format.fields.commit import chunk_refs, read_field_table
from latentcache.format.fields.manifest import FieldManifest, read_field
from latentcache.format.fields.nulls import Null, read_nulls
from latentcache.format.fields.paths import field_sample_path
from latentcache.format.fields.snapshot import Part, newest_versions, parts_of, read_field_index
from latentcache.format.manifest import Manifest, refresh
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.reading.column_history import ColumnHistory
from latentcache.reading.expectations import as_json
from latentcache.reading.stale import CHANGED_SINCE, Found, StaleRows
from latentcache.storage.disk_cache import DiskCache
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

#: Kinds of fields of texts, which are dropped and chosen together.
TEXT_KINDS = ("text", "joint")
#: Merged sample tables kept in memory.
MAX_TABLES = 1024


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A stored sample. refs and tokens: of each array of the field.

    tokens: of the first, the text's own; of others, the rows that are not padding. None where there is no
    axis of tokens.
    """

    version: int
    choice: int
    refs: tuple[ChunkRef, ...]
    tokens: tuple[int | None, ...]
    lost_tokens: int


@dataclass(frozen=True, kw_only=True)
class FieldRow:
    """What a field has of a clip. num_choices: its texts, failed ones too; entries: those that are ok."""

    num_choices: int
    entries: tuple[Entry, ...]

    def entry(self, choice: int) -> Entry | None:
        """Return the entry of a text; None if that failed, or if there is no such text."""
        return next((entry for entry in self.entries if entry.choice == choice), None)

    def pick(self, number: int) -> Entry:
        """Return the entry that a random number chooses, each as likely; the first one for 0."""
        choice = chosen_text([self], number)
        return next(entry for entry in self.entries if entry.choice == choice)


def chosen_text(rows: Sequence[FieldRow], number: int) -> int | None:
    """Return which text a random number chooses of those that all rows have, each as likely.

    The first one for 0. None if they have none in common. rows: one clip's, of at least one field.
    """
    num_texts = min(row.num_choices for row in rows)
    wanted = number % num_texts
    if all(row.entry(wanted) for row in rows):
        return wanted
    common = [n for n in range(num_texts) if all(row.entry(n) for row in rows)]
    # The quotient says nothing of the remainder, so those in common stay equally likely.
    return common[number // num_texts % len(common)] if common else None


class FieldReader:
    """One field of a cache. Safe to use from several threads, after a fork and when pickled."""

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        field: FieldManifest,
        index: Any,
        disk: DiskCache | None = None,
        history: ColumnHistory | None = None,
        found: Found | None = None,
    ) -> None:
        self.storage, self.field, self._index = storage, field, index
        self._manifest, self._disk = manifest, disk
        self._format = get_format(manifest.format)
        self._newest = newest_versions(field, index)
        self._history = history or ColumnHistory(storage, manifest)
        self._stale = StaleRows(field, self._newest, self._history, found)
        self._rows: Lru[ShardId, Mapping[int, FieldRow]] = Lru(MAX_TABLES)
        self._layouts: dict[tuple[int, str], list[ArrayLayout]] = {}

    def __reduce__(self) -> tuple[type[FieldReader], tuple[Any, ...]]:
        read = (self._manifest, self.field, self._index, self._disk, self._history)
        return type(self), (self.storage, *read, self._stale.found)

    @property
    def name(self) -> str:
        """The field's name."""
        return self.field.name

    @functools.cached_property
    def parts(self) -> list[Part]:
        """What is committed of it here, in the order of the snapshot's rows."""
        return parts_of(self._index)

    @functools.cached_property
    def snapshot(self) -> str:
        """The digest of what the field is, and of its shards that are committed here."""
        rows = sorted(json.dumps(row, sort_keys=True) for row in self._index.to_pylist())
        text = "\n".join([self.field.fingerprint, *rows])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def is_view(self) -> bool:
        """Whether it is a part of the latents, of which nothing is stored."""
        return self.field.kind == "view"

    @property
    def is_text(self) -> bool:
        """Whether it is of texts, which are dropped and chosen together."""
        return self.field.kind in TEXT_KINDS

    @property
    def spec(self) -> LatentSpec:
        """What the cache's latents are."""
        return self._manifest.spec

    @property
    def arrays(self) -> Mapping[str, FieldArray]:
        """The field's arrays by their keys in samples and batches."""
        return {self.field.key(array): array for array in self.field.arrays}

    def shape(self, array: FieldArray, bucket: str) -> tuple[int, ...]:
        """Return the shape of a clip's sample in a bucket, padding included."""
        return array.shape_in(Bucket.parse(bucket), self._manifest.spec)

    @functools.cached_property
    def nulls(self) -> Mapping[str, Null]:
        """What stands for a dropped text, by name."""
        return read_nulls(self.storage, self.field)

    def only(self, kept: npt.NDArray[np.bool_]) -> FieldReader:
        """Return the field with some of its `parts`. kept: a bool for each."""
        return self._with(self._index.filter(pa.array(kept)), self._history)

    def at(self, history: ColumnHistory) -> FieldReader:
        """Return the field beside captions and columns of another generation of its cache.

        Raises CacheError if it was added of later ones.
        """
        if history.now == self._history.now:
            return self
        index = self._index
        if history.now < self._history.now:
            index = _of_these_captions(self.storage, history.manifest, self.field, index)
        return self._with(index, history)

    def _with(self, index: Any, history: ColumnHistory) -> FieldReader:
        return FieldReader(self.storage, self._manifest, self.field, index, self._disk, history)

    def lacks(self, bucket: str, shard: int, num_rows: int) -> frozenset[int]:
        """Return the rows of a shard that the field does not have, by its snapshot alone."""
        if self.is_view:
            return frozenset()
        place, seen, lacking = ShardId(bucket, shard), set[int](), set[int]()
        for row in self._newest.get(place, ()):
            listed = self.field.all_versions[row["version"] - 1].rows
            rows = set(range(num_rows)) if listed is None else set(listed[place])
            lacking |= rows.intersection(row["failed"]) - seen
            seen |= rows
        return frozenset(lacking | (set(range(num_rows)) - seen))

    def with_failed_texts(self, bucket: str, shard: int) -> frozenset[int]:
        """Return the rows of a shard some of whose texts may have failed, by its snapshot alone."""
        versions = self._newest.get(ShardId(bucket, shard), ())
        failed = (texts for version in versions for texts in version["failed_texts"])
        return frozenset(row for texts in failed for row in texts["rows"])

    @property
    def maybe_stale(self) -> frozenset[ShardId]:
        """The shards that may have rows whose values are of former texts: see `stale`."""
        return self._stale.shards

    def stale(self, bucket: str, shard: int) -> frozenset[int]:
        """Return the rows of a committed shard whose values are of other texts, or paths, than now's."""
        return self._stale.of(ShardId(bucket, shard))

    def current(self, bucket: str, shard: int) -> Mapping[int, FieldRow]:
        """Return the rows of a shard that have a sample of the texts that their clips have now."""
        rows, stale = self.rows(bucket, shard), self.stale(bucket, shard)
        return {n: row for n, row in rows.items() if n not in stale} if stale else rows

    def rows(self, bucket: str, shard: int) -> Mapping[int, FieldRow]:
        """Return the rows of a shard that have a sample, the newest version of each."""
        place = ShardId(bucket, shard)
        return self._rows.get_or_make(place, lambda: self._read_rows(place))

    def _read_rows(self, shard: ShardId) -> Mapping[int, FieldRow]:
        found: dict[int, FieldRow] = {}
        seen: set[int] = set()
        for row in self._newest.get(shard, ()):
            merged = self._read_version(row["version"], shard)
            found.update({n: r for n, r in merged.items() if n not in seen and r.entries})
            seen |= merged.keys()
        return found

    def _read_version(self, version: int, shard: ShardId) -> dict[int, FieldRow]:
        try:
            table, _ = read_field_table(self.storage, self.field, version, shard)
        except FileNotFoundError:
            path = field_sample_path(self.name, version, shard)
            what = "is missing, although the field's snapshot lists it"
            dropped = "If the field was dropped since, open the cache again"
            raise damaged(self.storage, path, f"{what}. {dropped}", may_be_cleaned=True) from None
        status = table["status"].to_pylist()
        ok = [n for n, value in enumerate(status) if value == "ok"]
        refs = [chunk_refs(table, a, self.field.choices, ok) for a in self.field.arrays]
        tokens = [_tokens_of(table, array) for array in self.field.arrays]
        lost = table["lost_tokens"].to_pylist()
        numbers, choices = table["row"].to_pylist(), table["choice"].to_pylist()
        entries: dict[int, list[Entry]] = {row: [] for row in numbers}
        for i, n in enumerate(ok):
            entries[numbers[n]].append(
                Entry(
                    version=version,
                    choice=choices[n],
                    refs=tuple(of_array[i] for of_array in refs),
                    tokens=tuple(of_array[n] for of_array in tokens),
                    lost_tokens=lost[n] or 0,
                )
            )
        num_choices = Counter(numbers)
        return {
            row: FieldRow(num_choices=num_choices[row], entries=tuple(found))
            for row, found in entries.items()
        }

    def read(
        self,
        bucket: str,
        shard: int,
        entries: Sequence[Entry],
        out: Mapping[str, Sequence[torch.Tensor]],
        *,
        check: bool = True,
    ) -> None:
        """Read entries of a shard into CPU tensors, of each array by its key. Raises CorruptionError."""
        groups: dict[int, list[int]] = {}
        for n, entry in enumerate(entries):
            groups.setdefault(entry.version, []).append(n)
        for version, numbers in groups.items():
            layouts = self._layouts_of(version, bucket)
            for a, (key, layout) in enumerate(zip(self.arrays, layouts, strict=True)):
                refs = [entries[n].refs[a] for n in numbers]
                arrays = [as_numpy(out[key][n]) for n in numbers]
                self._format.read(
                    self.storage, layout, shard, refs, arrays, check=check, disk=self._disk
                )

    def read_steps(
        self,
        bucket: str,
        shard: int,
        entry: Entry,
        key: str,
        steps: Sequence[int],
        out: torch.Tensor,
    ) -> None:
        """Read some steps of an entry's array, by its key, into a CPU tensor [n, ...].

        Only their chunks are read, and near ones in one request. Raises CorruptionError.
        """
        number = list(self.arrays).index(key)
        self._format.read_frames(
            self.storage,
            self._layouts_of(entry.version, bucket)[number],
            shard,
            [entry.refs[number]],
            [steps],
            [as_numpy(out)],
            disk=self._disk,
        )

    def _layouts_of(self, version: int, bucket: str) -> list[ArrayLayout]:
        key = (version, bucket)
        if key not in self._layouts:
            self._layouts[key] = self.field.layouts(self._manifest, version, bucket)
        return self._layouts[key]

    def view(self, stored: torch.Tensor) -> torch.Tensor:
        """Return a view's part of a clip's stored latents: the first latent frame's mean [C, 1, h, w]."""
        return stored[: self.field.arrays[0].shape[0], :1]

    def sample(self, bucket: str, shard: int, row: int, number: int = 0) -> dict[str, Any]:
        """Return a clip's arrays by their keys, and `NAME_tokens`.

        Raises KeyError if it has none of the texts that the clip has now.
        """
        found = self.rows(bucket, shard).get(row)
        if found is None:
            raise KeyError(self.name)
        self.check_current(bucket, shard, row)
        return self.sample_of(bucket, shard, found.pick(number))

    def check_current(self, bucket: str, shard: int, row: int) -> None:
        """Raise KeyError if a clip's value is of other texts, or paths, than it has now."""
        if row in self.stale(bucket, shard):
            raise KeyError(f"{self.name}: {CHANGED_SINCE}")

    def sample_of(self, bucket: str, shard: int, entry: Entry) -> dict[str, Any]:
        """Return a stored sample's arrays by their keys, and `NAME_tokens`."""
        out = {
            key: torch.empty(self.shape(array, bucket), dtype=torch_dtype(array.dtype))
            for key, array in self.arrays.items()
        }
        self.read(bucket, shard, [entry], {key: [tensor] for key, tensor in out.items()})
        tokens = dict(zip(self.arrays, entry.tokens, strict=True))
        return {**out, **{f"{key}_tokens": num for key, num in tokens.items() if num is not None}}


def _tokens_of(table: pa.Table, array: FieldArray) -> list[int | None]:
    """Return the tokens of an array's samples, by row of a sample table."""
    name = f"{array.name}.tokens" if array.name else "tokens"
    if array.padding is None or name not in table.column_names:
        return [None] * table.num_rows
    return table[name].to_pylist()  # type: ignore[no-any-return]


def open_field(
    storage: Storage,
    manifest: Manifest,
    name: str,
    disk: DiskCache | None = None,
    history: ColumnHistory | None = None,
) -> FieldReader:
    """Open a field as it is published now, but for versions of other captions than the manifest's.

    history: of the manifest's columns. Raises ConfigError if there is none, CacheError.
    """
    field = read_field(storage, name, manifest)
    index = read_field_index(storage, field)
    if not index.num_rows and field.kind != "view":
        url = redact(storage.url)
        raise CacheError(
            f"{url}: the field {name} has no snapshot yet: its run has committed no shard. Let it go on, "
            f"or run: latentcache resume {url}"
        )
    index = _of_these_captions(storage, manifest, field, index)
    return FieldReader(storage, manifest, field, index, disk, history)


def _of_these_captions(
    storage: Storage, manifest: Manifest, field: FieldManifest, index: Any
) -> Any:
    """Return a snapshot without versions of other captions than the manifest's. Raises CacheError."""
    later = _of_later_captions(storage, manifest, field)
    if 1 in later:
        url = redact(storage.url)
        raise CacheError(
            f"{url}: the field {field.name} was added after captions or columns had changed, and this "
            "snapshot has those of before. Open the cache again. If that says the same, the run that "
            f"changed them was stopped: latentcache resume {url}"
        )
    return index.filter(pc.invert(pc.is_in(index["version"], pa.array(later, pa.int32()))))


def _of_later_captions(storage: Storage, manifest: Manifest, field: FieldManifest) -> list[int]:
    """Return the versions of a field that may be of other captions, or columns, than a manifest's."""
    now = len(manifest.generations)
    later = [version for version in field.all_versions if version.generation > now]
    if not later or not field.has_columns:
        return []
    since = refresh(storage, manifest).generations[now:]
    first = next((generation.number for generation in since if generation.num_relabelled), None)
    return [v.number for v in later if first is not None and v.generation >= first]


def spec_of(field: FieldManifest) -> dict[str, Any]:
    """Return what a model can expect of a field: its own array, its length and width, and its recipe."""
    array = field.arrays[0]
    facts = {
        "kind": field.kind,
        "shape": list(array.shape),
        "dtype": array.dtype,
        "padding": array.padding,
        "side": array.side,
        "choices": field.choices,
    }
    if array.padding is not None:
        facts |= {"length": array.shape[0], "width": array.shape[-1]}
    encoder = field.recipe.get("encoder")
    return {**(encoder if isinstance(encoder, dict) else {}), **facts}


def expect_field(url: str, field: FieldManifest, wanted: Mapping[str, Any]) -> None:
    """Raise CacheError where a field is not what a model was trained with, ConfigError for other names."""
    actual = spec_of(field)
    for name in wanted:
        if name not in actual:
            raise ConfigError(
                f"expect: the field {field.name} has no {name!r}.{did_you_mean(name, actual)} "
                f"It has: {', '.join(actual)}"
            )
    said = {name: (as_json(wanted[name]), as_json(actual[name])) for name in wanted}
    wrong = {name: (ours, theirs) for name, (ours, theirs) in said.items() if ours != theirs}
    if wrong:
        lines = [f"  {name}: {a} expected, {b} in the cache" for name, (a, b) in wrong.items()]
        raise CacheError(
            f"{url}: the field {field.name} is not what is expected:\n"
            + "\n".join(lines)
            + "\nA model that was trained with other states, or with other padding, takes these without a "
            "word and gets worse. Add a field as the model was trained, or change `expect`."
        )
