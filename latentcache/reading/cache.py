"""A cache for reading: what its latents are, samples by number and by key, and its table of clips."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa
import torch

from latentcache.core.arguments import by_name, sample_number, text, whole_number
from latentcache.core.dtypes import AnyDtype
from latentcache.errors import CacheError, ConfigError, CorruptionError
from latentcache.format.changes import read_changes
from latentcache.format.damage import damaged
from latentcache.format.fields.manifest import field_names
from latentcache.format.fields.paths import FIELDS
from latentcache.format.generations import require
from latentcache.format.manifest import Manifest, read_cache_json, refresh
from latentcache.format.paths import QUANTISER
from latentcache.format.quantiser import read_quantiser
from latentcache.format.snapshot import generation_of, make_index, read_index, shard_of
from latentcache.reading import shard_set
from latentcache.reading.column_history import ColumnHistory
from latentcache.reading.expectations import check_expectations, check_provenance, describe
from latentcache.reading.fields import FieldReader, expect_field, open_field
from latentcache.reading.handover import guard_handover
from latentcache.reading.keys import Keys, joined_keys
from latentcache.reading.quantiser import Quantiser
from latentcache.reading.sample import Sample
from latentcache.reading.shard_set import Bits
from latentcache.reading.snapshot import NUM_THREADS, Snapshot
from latentcache.reading.steps import Steps, steps_of
from latentcache.storage.disk_cache import DiskCache
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

if TYPE_CHECKING:
    from latentcache.reading.dataset import LatentDataset
    from latentcache.reading.loader.filters import Where
    from latentcache.reading.loader.transform import Posterior


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
    fields = expected_fields(expect.pop(FIELDS, None))
    check_provenance(redact(storage.url), manifest.provenance, expect)
    check_expectations(redact(storage.url), manifest.spec, expect)
    disk = None
    if disk_cache is not None and not storage.is_local:
        disk = DiskCache(disk_cache, disk_cache_bytes, manifest.fingerprint)
    cache = Cache(storage, manifest, index, disk)
    for name, wanted in fields.items():
        expect_field(redact(storage.url), cache.field(name).field, wanted)
    return cache


def expected_fields(expect: Any) -> dict[str, dict[str, Any]]:
    """Return what is expected of fields, by their names. Raises ConfigError."""
    fields = by_name("expect['fields']", expect, {"umt5": {"length": 512}})
    example = {"length": 512}
    return {n: by_name(f"expect['fields'][{n!r}]", v, example) for n, v in fields.items()}


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


def _dataset_module() -> Any:
    return importlib.import_module("latentcache.reading.dataset")  # which imports this module


class Cache(Snapshot):
    """A published snapshot. Clips that failed have no number: len() and cache[i] count only ok clips.

    The `latents` of cache[i] and cache[key] are what a `LatentLoader` gives in its epoch 0; `stored` gives
    what is stored. Samples are ordered by bucket, shard and row. Safe to use from several threads, after a
    fork and when pickled.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fields: dict[str, FieldReader] = {}
        self._decoder: Any = None
        self._decoding = threading.Lock()
        guard_handover()

    def __reduce__(self) -> tuple[Any, ...]:
        # Of an old cache it took a table of each generation, which no worker need read again.
        known = {n: v for n, v in self.__dict__.items() if n == "sample_schema"}
        return type(self), (self.storage, self.manifest, self._index, self._disk), known

    def __repr__(self) -> str:
        return f"Cache({redact(self.storage.url)!r}: {len(self)} clips, {describe(self.spec)})"

    def quantiser(self) -> Quantiser:
        """Return the codebook of a cache of ids: ids to vectors, and a VAR transformer's input.

        It is read once. Raises CacheError if the cache has none, CorruptionError.
        """
        return self._quantiser

    @functools.cached_property
    def _quantiser(self) -> Quantiser:
        found = Quantiser(self.spec, read_quantiser(self.storage, self.manifest))
        if not found.has_codebook:
            raise damaged(self.storage, QUANTISER, "has no codebook")
        return found

    @property
    def field_names(self) -> list[str]:
        """The cache's fields, as they are listed now: what it has beside latents."""
        return field_names(self.storage)

    def field(self, name: str) -> FieldReader:
        """Return a field, as it was published when it was first asked for.

        Its values are of this cache's captions and columns: what was encoded since, of others, is left out.
        Raises ConfigError if there is none, CacheError.
        """
        if text("field", name) not in self._fields:
            self._fields[name] = open_field(
                self.storage, self.manifest, name, self._disk, self.column_history
            )
        return self._fields[name]

    @functools.cached_property
    def column_history(self) -> ColumnHistory:
        """What captions and kept columns of its shards were, by which values of fields are judged."""
        return ColumnHistory(self.storage, self.manifest)

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
        return isinstance(key, str) and self._keys.find(key) >= 0

    def keys(self) -> list[str]:
        """Return the keys of the ok clips, in the order of the samples; see `number` for the cost."""
        return self._keys.to_list()

    def number(self, key: str) -> int:
        """Return the number of the ok clip with this key. Raises KeyError.

        The first call reads the keys of every sample table and keeps them (about 50 bytes per clip).
        Every call then scans them, which takes some milliseconds per million clips. Raises CorruptionError
        where a key is in no table that can be read, and one of them is damaged.
        """
        if isinstance(key, str) and (number := self._keys.find(key)) >= 0:
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
        fields: Sequence[str] = (),
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
            fields=fields,
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
            place, position = self._locate(sample_number(index, len(self)))
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

    def _of_shards(
        self, places: Sequence[int], positions: Sequence[Sequence[int]]
    ) -> Iterable[list[dict[str, Any]]]:
        if len(places) <= 1 or self.storage.is_local:
            return list(map(self._samples, places, positions))
        with ThreadPoolExecutor(min(NUM_THREADS, len(places))) as pool:
            return list(pool.map(self._samples, places, positions))

    def _samples(self, place: int, positions: Sequence[int]) -> list[dict[str, Any]]:
        bucket, shard = self._places["bucket"][place], self._places["shard"][place]
        latents = [self.empty(bucket, 1)[0] for _ in positions]
        self.read(bucket, shard, positions, latents)
        rows = self.rows(bucket, shard)
        names = ["key", "caption", "source", "bucket", "start_s", "end_s", *self.kept_by([rows])]
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

    @functools.cached_property
    def _keys(self) -> Keys:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            tables = pool.map(self._key_table, self._all_places())
            return joined_keys(tables, self._index["num_ok"].to_pylist())

    def _key_table(self, place: tuple[str, int]) -> pa.Table | CorruptionError:
        try:
            return self._read_table(*place, ["key", "status"])
        except CorruptionError as error:
            return error
