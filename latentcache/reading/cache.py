"""A cache for reading: what its latents are, samples by number and by key, and its table of clips."""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latentcache.core.arguments import by_name, list_of_names, sample_number, text, whole_number
from latentcache.core.dtypes import AnyDtype, Array, as_numpy, torch_dtype
from latentcache.core.lru import Lru
from latentcache.core.records import ClipId, ShardId
from latentcache.core.spec import LatentSpec
from latentcache.errors import CacheError, ConfigError, CorruptionError, did_you_mean
from latentcache.format.changes import read_changes
from latentcache.format.fields.manifest import field_names
from latentcache.format.fields.paths import FIELDS
from latentcache.format.generations import require
from latentcache.format.manifest import Manifest, read_cache_json, refresh
from latentcache.format.per_frame import PER_FRAME, names_in
from latentcache.format.planned_sources import read_rejected
from latentcache.format.quantiser import read_quantiser
from latentcache.format.samples import read_samples
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.format.shards import get_format
from latentcache.format.snapshot import check_index, generation_of, make_index, read_index, shard_of
from latentcache.reading import shard_set
from latentcache.reading.expectations import check_expectations, check_provenance, describe
from latentcache.reading.fields import FieldReader, expect_field, open_field
from latentcache.reading.handover import guard_handover
from latentcache.reading.picks import Picks
from latentcache.reading.quantiser import Quantiser
from latentcache.reading.sample import Sample
from latentcache.reading.shard_rows import ShardRows
from latentcache.reading.shard_set import Bits
from latentcache.reading.steps import Steps, steps_of
from latentcache.reading.time_ids import TIME_IDS
from latentcache.storage.disk_cache import DiskCache
from latentcache.storage.folder import Storage
from latentcache.storage.urls import join, redact

if TYPE_CHECKING:
    from latentcache.reading.dataset import LatentDataset
    from latentcache.reading.loader.filters import Where
    from latentcache.reading.loader.transform import Posterior

#: Sample tables kept in memory. One of 64 clips with captions takes about 50 kB.
MAX_TABLES = 1024
#: Generations of which a table is looked at for a column that the first table lacks.
LOOKED_AT = 8
#: Sample tables read concurrently when all are wanted.
NUM_THREADS = 16
#: Sample tables that a scan requests at a time; it frees each after its turn.
NUM_QUEUED = 1024


@dataclass(frozen=True, kw_only=True)
class CacheBucket:
    """What is committed of a bucket. shape: of one stored sample; num_clips: ok and failed clips."""

    name: str
    shape: tuple[int, ...]
    num_ok: int
    num_clips: int
    num_shards: int
    stored_bytes: int


def open_cache(
    url: str,
    storage_options: Mapping[str, Any] | None = None,
    expect: Mapping[str, Any] | None = None,
    *,
    disk_cache: str | Path | None = None,
    disk_cache_bytes: int = 200 << 30,
) -> Cache:
    """Open the published snapshot of a cache.

    disk_cache: a folder on a local disk that keeps what is read from a remote cache, at most
    disk_cache_bytes for all processes that name it; nothing is kept of a local cache.

    expect: fields of the latent spec that the reader relies on, such as {"channels": 16}; give
    what your model was built for. Under "fields" it says the same of the cache's fields, by name, such as
    {"fields": {"umt5": {"length": 512}}}: see `spec_of`. Under "provenance" it says how the latents came
    to be: encoder, sampler, roundtrip, transcode or import. Raises CacheError if there is no cache, if
    nothing is committed yet, or if an expectation is not met.
    """
    expect = by_name("expect", expect, {"channels": 16})
    options = by_name("storage_options", storage_options, {"anon": True})
    if not isinstance(url, str | PurePath):
        raise ConfigError(f"{url!r} is no cache: give its URL, or the path of its folder")
    if not isinstance(disk_cache, str | PurePath | None):
        raise ConfigError(f"disk_cache is {disk_cache!r}: give the path of a folder")
    whole_number("disk_cache_bytes", disk_cache_bytes, 1)
    storage = Storage(str(url), options)
    manifest, index = read_snapshot(storage)
    fields = expect.pop(FIELDS, {})
    check_provenance(redact(storage.url), manifest.provenance, expect)
    check_expectations(redact(storage.url), manifest.spec, expect)
    disk = None
    if disk_cache is not None and not storage.is_local:
        disk = DiskCache(disk_cache, disk_cache_bytes, manifest.fingerprint)
    cache = Cache(storage, manifest, index, disk)
    for name, wanted in fields.items():
        expect_field(redact(storage.url), cache.field(name).field, wanted)
    return cache


def read_snapshot(storage: Storage, manifest: Manifest | None = None) -> tuple[Manifest, pa.Table]:
    """Read the published snapshot, and the cache as it was planned by then.

    manifest: as it was read before. Raises CacheError.
    """
    manifest = manifest or read_cache_json(storage)  # first, to say where there is no cache at all
    index = read_index(storage)  # before the generations, of which there are never fewer afterwards
    planned = refresh(storage, manifest)
    require(storage, planned.generations)
    generation = min(generation_of(index), len(planned.generations))
    return planned.at(generation) if generation > 0 else planned, index


def _concatenated(url: str, tables: Sequence[pa.Table]) -> pa.Table:
    """Join sample tables. Kept columns may differ between generations: whole numbers become floats."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise CacheError(
            f"{url}: kept columns have types that do not go together ({error}): the corpus has changed "
            "them since some clips were planned. Give the column its former type in the corpus, and "
            f"grow the cache again: latentcache precompute CONFIG.yaml cache.url={url}"
        ) from None


def _dataset_module() -> Any:
    return importlib.import_module("latentcache.reading.dataset")  # which imports this module


class Cache:
    """A published snapshot. Clips that failed have no number: len() and cache[i] count only ok clips.

    The `latents` of cache[i] and cache[key] are what a `LatentLoader` gives in its epoch 0; `stored` gives
    what is stored. Samples are ordered by bucket, shard and row. Sample tables are read when needed, and
    the last `MAX_TABLES` are kept. Safe to use from several threads, after a fork and when pickled.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Manifest,
        index: pa.Table,
        disk: DiskCache | None = None,
    ) -> None:
        self.storage, self.manifest, self._index, self._disk = storage, manifest, index, disk
        self._format = get_format(manifest.format)
        self._layouts = manifest.layouts()
        self._tables: Lru[tuple[str, int], ShardRows] = Lru(MAX_TABLES)
        self._fields: dict[str, FieldReader] = {}
        self._decoder: Any = None
        self._decoding = threading.Lock()
        guard_handover()
        try:
            check_index(index, manifest)
        except ValueError as error:
            raise CacheError(
                f"{redact(storage.url)}: the snapshot does not fit: {error}. It is of another "
                "cache; resume this one to write its snapshot again."
            ) from None
        self._places = index.select(["bucket", "shard"]).to_pydict()
        self._numbers = {place: n for n, place in enumerate(self._all_places())}
        num_ok = index["num_ok"].to_numpy()
        self._ends = np.cumsum(num_ok, dtype=np.int64)

    def __reduce__(self) -> tuple[type[Cache], tuple[Any, ...]]:
        return type(self), (self.storage, self.manifest, self._index, self._disk)

    def __repr__(self) -> str:
        return f"Cache({redact(self.storage.url)!r}: {len(self)} clips, {describe(self.spec)})"

    @property
    def spec(self) -> LatentSpec:
        """What the latents are."""
        return self.manifest.spec

    def quantiser(self) -> Quantiser:
        """Return the codebook of a cache of ids: ids to vectors, and a VAR transformer's input.

        It is read once. Raises CacheError if the cache has none, CorruptionError.
        """
        return self._quantiser

    @functools.cached_property
    def _quantiser(self) -> Quantiser:
        return Quantiser(self.spec, read_quantiser(self.storage, self.manifest))

    @property
    def field_names(self) -> list[str]:
        """The cache's fields, as they are listed now: what it has beside latents."""
        return field_names(self.storage)

    def field(self, name: str) -> FieldReader:
        """Return a field, as it was published when it was first asked for.

        Raises ConfigError if there is none, CacheError.
        """
        if text("field", name) not in self._fields:
            self._fields[name] = open_field(self.storage, self.manifest, name, self._disk)
        return self._fields[name]

    @functools.cached_property
    def buckets(self) -> Mapping[str, CacheBucket]:
        """What is committed of every bucket of the plan, by name, in the order of the samples."""
        sums = self._index.group_by("bucket").aggregate(
            [("shard", "count")] + [(n, "sum") for n in ("num_ok", "num_clips", "stored_bytes")]
        )
        found = {row["bucket"]: row for row in sums.to_pylist()}
        infos = [
            CacheBucket(
                name=name,
                shape=self._layouts[name].shape,
                num_ok=found.get(name, {}).get("num_ok_sum", 0),
                num_clips=found.get(name, {}).get("num_clips_sum", 0),
                num_shards=found.get(name, {}).get("shard_count", 0),
                stored_bytes=found.get(name, {}).get("stored_bytes_sum", 0),
            )
            for name in sorted(self._layouts)
        ]
        return {info.name: info for info in infos}

    @functools.cached_property
    def committed(self) -> frozenset[ShardId]:
        """The shards of this snapshot."""
        return frozenset(ShardId(*place) for place in self._all_places())

    @functools.cached_property
    def snapshot(self) -> str:
        """SHA-256 of what samples and their order follow from: shards, their ok clips, the generation."""
        named = [self._places["bucket"], len(self.manifest.generations)]
        digest = hashlib.sha256(json.dumps(named).encode())
        for column in ("shard", "num_ok"):
            digest.update(self._index[column].to_numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def shard_bits(self) -> Bits:
        """Which shards of the plan are in this snapshot: the argument of `at`."""
        return shard_set.to_bits(self.manifest.buckets, self._index)

    def newest(self) -> Cache:
        """Open the snapshot that is published now; the same cache if it is this one."""
        cache = Cache(self.storage, *read_snapshot(self.storage, self.manifest), self._disk)
        return self if cache.snapshot == self.snapshot else cache

    def at(self, generation: int, shard_bits: Bits, snapshot: str) -> Cache:
        """Return an earlier or a later snapshot, by its generation, its shards and its digest.

        Raises CacheError if one of its shards is not there, or was cleaned away.
        """
        if snapshot == self.snapshot:
            return self
        manifest = refresh(self.storage, self.manifest)
        if not 0 < generation <= len(manifest.generations):
            raise CacheError(
                f"{redact(self.storage.url)} has {len(manifest.generations)} generations, and snapshot "
                f"{snapshot[:12]} is of generation {generation}: it is of another cache."
            )
        manifest = manifest.at(generation)
        shards = shard_set.shards_of(manifest.buckets, shard_bits)
        known = {shard_of(row): row for row in self._index.to_pylist()}
        changes = read_changes(self.storage, manifest)
        rows = make_index(
            self.storage, manifest, changes, {shard: known.get(shard) for shard in shards}
        )
        found = Cache(self.storage, manifest, rows, self._disk)
        if found.snapshot != snapshot:
            raise CacheError(
                f"{redact(self.storage.url)}: snapshot {snapshot[:12]} cannot be read: its shards hold "
                "other clips than they did. Start an epoch on the snapshot that there is."
            )
        return found

    def shards(self, bucket: str) -> tuple[Array, Array]:
        """Return (shard, num_ok) of a bucket's committed shards, int64 arrays in storage order."""
        table = self._index.filter(pc.equal(self._index["bucket"], bucket))
        return table["shard"].to_numpy(), table["num_ok"].to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int | str) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | str | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Return an ok clip by its number or its key, or those of a slice: see `dataset`."""
        return self._default[index]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several samples by number, in as few requests per shard as their places allow."""
        return self._default.__getitems__(indices)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) >= 0

    def keys(self) -> list[str]:
        """Return the keys of the ok clips, in the order of the samples; see `number` for the cost."""
        return self._keys.to_pylist()  # type: ignore[no-any-return]

    def number(self, key: str) -> int:
        """Return the number of the ok clip with this key. Raises KeyError.

        The first call reads the keys of every sample table and keeps them (about 50 bytes per clip).
        Every call then scans them, which takes some milliseconds per million clips.
        """
        if isinstance(key, str) and (number := self._find(key)) >= 0:
            return number
        raise KeyError(
            f"no ok clip has the key {key!r}; cache.table() lists all clips, with the reasons of "
            "those that failed"
        )

    def sample(self, key: str) -> dict[str, Any]:
        """Return the ok clip with this key: the same as cache[key]. Raises KeyError."""
        return self[key]

    def dataset(
        self,
        *,
        posterior: Posterior = "sample",
        normalise: bool = True,
        dtype: AnyDtype | None = None,
        seed: int = 0,
        where: Where | None = None,
        frames: int | None = None,
        numpy: bool = False,
    ) -> LatentDataset:
        """Return the samples as a map-style dataset for torch's DataLoader: see `LatentDataset`."""
        return _dataset_module().LatentDataset(  # type: ignore[no-any-return]
            self,
            posterior=posterior,
            normalise=normalise,
            dtype=dtype,
            seed=seed,
            where=where,
            frames=frames,
            numpy=numpy,
        )

    @functools.cached_property
    def _default(self) -> LatentDataset:
        return self.dataset()

    def steps(self, array: str, key: str) -> Steps:
        """Return an array of a field that is read step by step, such as a trajectory, of the clip `key`.

        array: by its key in batches, such as "ddim" or "ddim.scores". Raises KeyError where the clip or its
        sample is not there, ConfigError if the cache has no such array.
        """
        place, position = self._locate(self.number(key))
        bucket, shard = self._places["bucket"][place], self._places["shard"][place]
        row = self.rows(bucket, shard).chunks[position].row
        return steps_of(self.field(array.partition(".")[0]), array, (bucket, shard, row))

    def stored(self, index: int | str) -> torch.Tensor:
        """Return what is stored of an ok clip, unchanged, by number or key: of moments [2C, t, h, w]."""
        number = self.number(index) if isinstance(index, str) else index
        stored: torch.Tensor = self.stored_samples([number])[0]["latents"]
        return stored

    def stored_samples(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return samples by number, with what is stored as their `latents`."""
        groups: dict[int, list[tuple[int, int]]] = {}
        for n, index in enumerate(numbers):
            place, position = self._locate(index)
            groups.setdefault(place, []).append((n, position))
        samples: dict[int, dict[str, Any]] = {}
        positions = [[position for _, position in wanted] for wanted in groups.values()]
        for wanted, found in zip(
            groups.values(), self._of_shards(list(groups), positions), strict=True
        ):
            samples.update(zip((n for n, _ in wanted), found, strict=True))
        return [samples[n] for n in range(len(numbers))]

    def decode(
        self,
        key: str,
        *,
        encoder: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
    ) -> torch.Tensor:
        """Return the decoded ok clip with this key: uint8 [T, H, W, 3] on the CPU.

        encoder: changes to the configuration that the cache was made with, such as the model's place on
        this machine: {"model": "models/wan"}. device: omitted, the GPU if there is one. The model stays
        loaded for later calls; calls from several threads take turns. Some encoders give fewer frames
        than they took.

        Raises KeyError, as `sample` does; RecipeMismatchError if the model is not the cache's; EncoderError
        if the encoder cannot decode; ConfigError if it is not found or not installed.
        """
        stored, encoder = self.stored(key), by_name("encoder", encoder, {"model": "models/wan"})
        decoding = importlib.import_module(
            "latentcache.encoders.stored"
        )  # imports the encoders, which a trainer does not need
        with self._decoding:
            if self._decoder is None or not self._decoder.is_for(encoder, device):
                self._decoder = None  # frees the memory first
                self._decoder = decoding.Decoder(self.manifest, encoder, device)
            pixels: torch.Tensor = self._decoder.decode(stored)
        return pixels

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row per clip, ok and failed, and one per rejected source; or only some columns.

        Reads every sample table. Columns are those of `schemas.SAMPLE_SCHEMA` and those kept from
        the corpus. Raises CacheError for any other.
        """
        names = None if columns is None else list_of_names("columns", columns)
        tables = [
            *self._read_tables(self._all_places()),
            read_rejected(self.storage, self.manifest),
        ]
        table = _concatenated(redact(self.storage.url), tables)
        for name in names or ():
            if name not in table.column_names:
                raise CacheError(
                    f"the cache's table has no column {name!r}."
                    f"{did_you_mean(name, table.column_names)} It has: "
                    f"{', '.join(table.column_names)}"
                )
        return table if names is None else table.select(names)

    @functools.cached_property
    def sample_schema(self) -> pa.Schema:
        """Columns of the sample tables: those of every cache, and those kept from the corpus."""
        places = self._all_places()
        return self._read_table(*places[0]).schema if places else SAMPLE_SCHEMA

    @property
    def column_names(self) -> list[str]:
        """Names of the sample tables' columns."""
        return list(self.sample_schema.names)

    def has_column(self, name: str) -> bool:
        """Tell whether sample tables have a column: some lack those that were kept later or earlier.

        The shards of one generation have the same columns, so one table of each is looked at, of the newest
        ones, and one whose columns were changed later.
        """
        if name in self.column_names:
            return True
        changed = pc.indices_nonzero(pc.is_valid(self._index["columns"])).to_pylist()[:1]
        places = [self._all_places()[n] for n in changed]
        places += itertools.islice(self._one_per_generation(), LOOKED_AT)
        others = set(places) - set(self._all_places()[:1])
        return any(name in table.schema.names for table in self._read_tables(sorted(others)))

    def _one_per_generation(self) -> Iterator[tuple[str, int]]:
        """Yield a committed shard of each generation that has one, the newest first."""
        for generation in reversed(self.manifest.generations):
            shards = (
                (part.bucket, shard)
                for part in generation.parts
                for shard in range(part.first_shard, part.first_shard + part.num_shards)
            )
            if (place := next((s for s in shards if s in self._numbers), None)) is not None:
                yield place

    @property
    def batch_columns(self) -> list[str]:
        """Names of what batches can have of the tables: columns per frame by their own names; time_ids."""
        names = [name for name in self.column_names if name != PER_FRAME]
        return [*names, *self.per_frame_names, TIME_IDS]

    @property
    def per_frame_names(self) -> list[str]:
        """Names of the columns with a value per frame of each clip, such as actions."""
        return names_in(self.sample_schema)

    def scan(self, columns: list[str]) -> Iterator[tuple[tuple[str, int], pa.Table]]:
        """Yield ((bucket, shard), table) of every committed shard, with some of its columns."""
        places = self._all_places()
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for start in range(0, len(places), NUM_QUEUED):
                some = places[start : start + NUM_QUEUED]
                tables = pool.map(lambda at: self._read_table(at[0], at[1], columns), some)
                yield from zip(some, tables, strict=True)

    def rows(self, bucket: str, shard: int) -> ShardRows:
        """Return the ok rows of a shard, from memory if they were read recently."""
        return self._tables.get_or_make(
            (bucket, shard), lambda: ShardRows(bucket, shard, self._read_table(bucket, shard))
        )

    def read(
        self,
        bucket: str,
        shard: int,
        positions: Sequence[int],
        out: Sequence[torch.Tensor],
        *,
        check: bool = True,
        picks: Picks | None = None,
    ) -> None:
        """Read samples of a shard, by their position among its ok rows, into CPU tensors.

        check: compare their CRC32C. picks: latent frames of each sample, if not all are wanted. Raises
        CorruptionError, naming the clip.
        """
        frames = [None] * len(positions) if picks is None else picks
        rows, layout = self.rows(bucket, shard), self._layouts[bucket]
        chunks, arrays = [rows.chunks[p] for p in positions], [as_numpy(tensor) for tensor in out]
        try:
            self._format.read_frames(
                self.storage, layout, shard, chunks, frames, arrays, check=check, disk=self._disk
            )
        except CorruptionError:
            # One by one, to find the damaged clip; no error if the next read is sound.
            some = zip(positions, chunks, frames, arrays, strict=True)
            for position, chunk, pick, array in some:
                try:
                    self._format.read_frames(self.storage, layout, shard, [chunk], [pick], [array])
                except CorruptionError as error:
                    key = rows.column("key", [position])[0]
                    raise CorruptionError(f"clip {key!r}: {error}") from error

    def name_of(self, bucket: str, shard: int) -> str:
        """Say which shard that is, and where its object is."""
        path = self._format.path(self._layouts[bucket], shard)
        return f"shard {shard} of bucket {bucket} ({redact(join(self.storage.url, path))})"

    def read_row(self, place: ClipId) -> torch.Tensor:
        """Return the stored sample of one row of a shard. Raises CorruptionError."""
        latents = self.empty(place.shard.bucket, 1)[0]
        self.read(*place.shard, [self.rows(*place.shard).position(place.row)], [latents])
        return latents

    def empty(self, bucket: str, num_samples: int) -> torch.Tensor:
        """Return an uninitialised CPU tensor [num_samples, *shape] in the stored dtype."""
        return torch.empty(
            (num_samples, *self._layouts[bucket].shape), dtype=torch_dtype(self.spec.dtype)
        )

    def _of_shards(
        self, places: Sequence[int], positions: Sequence[Sequence[int]]
    ) -> Iterable[list[dict[str, Any]]]:
        if len(places) == 1 or self.storage.is_local:
            return list(map(self._samples, places, positions))
        with ThreadPoolExecutor(min(NUM_THREADS, len(places))) as pool:
            return list(pool.map(self._samples, places, positions))

    def _samples(self, place: int, positions: Sequence[int]) -> list[dict[str, Any]]:
        bucket, shard = self._places["bucket"][place], self._places["shard"][place]
        latents = [self.empty(bucket, 1)[0] for _ in positions]
        self.read(bucket, shard, positions, latents)
        rows = self.rows(bucket, shard)
        names = ["key", "caption", "source", "bucket", "start_s", "end_s", *rows.kept]
        columns = [latents, *(rows.column(name, positions) for name in names)]
        return [
            Sample(
                dict(zip(["latents", *names], values, strict=True)),
                functools.partial(
                    self._read_field, bucket, shard, rows.chunks[position].row, values[0]
                ),
            )
            for position, *values in zip(positions, *columns, strict=True)
        ]

    def _read_field(
        self, bucket: str, shard: int, row: int, latents: torch.Tensor, key: str
    ) -> Mapping[str, Any]:
        """Return what the field of a key has of a clip. Raises KeyError if there is no such field."""
        name = key.partition(".")[0].removesuffix("_tokens")
        if name not in self._fields and name not in self.field_names:
            raise KeyError(key)
        field = self.field(name)
        return {name: field.view(latents)} if field.is_view else field.sample(bucket, shard, row)

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the row of the snapshot and the position among its ok rows of sample `index`."""
        positive = sample_number(index, len(self))
        place = int(np.searchsorted(self._ends, positive, side="right"))
        before = int(self._ends[place - 1]) if place else 0
        return place, positive - before

    def _all_places(self) -> list[tuple[str, int]]:
        return list(zip(self._places["bucket"], self._places["shard"], strict=True))

    def _find(self, key: str) -> int:
        return int(pc.index(self._keys, pa.scalar(key, pa.string())).as_py())

    @functools.cached_property
    def _keys(self) -> pa.ChunkedArray:
        tables = self._read_tables(self._all_places(), columns=["key", "status"])
        keys = [table.filter(pc.equal(table["status"], "ok"))["key"] for table in tables]
        return pa.chunked_array([c for key in keys for c in key.chunks], type=pa.string())

    def _read_tables(
        self, places: Iterable[tuple[str, int]], columns: list[str] | None = None
    ) -> list[pa.Table]:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return list(pool.map(lambda at: self._read_table(at[0], at[1], columns), places))

    def _read_table(self, bucket: str, shard: int, columns: list[str] | None = None) -> pa.Table:
        number = self._numbers[bucket, shard]
        row = self._index.slice(number, 1).to_pylist()[0]
        return read_samples(self.storage, self.manifest.fingerprint, row, columns)
