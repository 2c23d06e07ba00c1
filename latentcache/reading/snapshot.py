"""A published snapshot of a cache: its shards, their sample tables, and what is stored of their rows."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latentcache.core.arguments import list_of_names
from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.lru import Lru
from latentcache.core.records import ClipId, ShardId
from latentcache.core.spec import LatentSpec
from latentcache.errors import CacheError, CorruptionError, did_you_mean
from latentcache.format.kept_schema import kept_schema, united
from latentcache.format.manifest import Manifest
from latentcache.format.per_frame import PER_FRAME, names_in
from latentcache.format.planned_sources import read_rejected
from latentcache.format.samples import read_samples
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.format.shards import get_format
from latentcache.format.snapshot import check_index
from latentcache.reading import shard_set
from latentcache.reading.picks import Picks
from latentcache.reading.shard_rows import ShardRows
from latentcache.reading.shard_set import Bits
from latentcache.reading.shared_schema import steps_of, with_kept
from latentcache.reading.time_ids import TIME_IDS
from latentcache.storage.disk_cache import DiskCache
from latentcache.storage.folder import Storage
from latentcache.storage.urls import join, redact

#: Sample tables kept in memory. One of 64 clips with captions takes about 50 kB.
MAX_TABLES = 1024
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


@dataclass(eq=False, repr=False)
class Snapshot:
    """The shards that count, and their ok clips, which are numbered by bucket, shard and row.

    Sample tables are read when needed, and the last `MAX_TABLES` are kept.
    """

    storage: Storage
    manifest: Manifest
    _index: pa.Table
    _disk: DiskCache | None = None

    def __post_init__(self) -> None:
        self._format = get_format(self.manifest.format)
        self._layouts = self.manifest.layouts()
        self._tables: Lru[tuple[str, int], ShardRows] = Lru(MAX_TABLES)
        try:
            check_index(self._index, self.manifest)
        except ValueError as error:
            raise CacheError(
                f"{redact(self.storage.url)}: the snapshot does not fit: {error}. It is of another "
                "cache; resume this one to write its snapshot again."
            ) from None
        self._places = self._index.select(["bucket", "shard"]).to_pydict()
        self._numbers = {place: n for n, place in enumerate(self._all_places())}
        num_ok = self._index["num_ok"].to_numpy()
        self._ends = np.cumsum(num_ok, dtype=np.int64)

    @property
    def spec(self) -> LatentSpec:
        """What the latents are."""
        return self.manifest.spec

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

    def shards(self, bucket: str) -> tuple[Array, Array]:
        """Return (shard, num_ok) of a bucket's committed shards, int64 arrays in storage order."""
        table = self._index.filter(pc.equal(self._index["bucket"], bucket))
        return table["shard"].to_numpy(), table["num_ok"].to_numpy().astype(np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

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
        """Columns of the sample tables: those of every cache, and those kept of the corpus."""
        folders = self._index["columns"].to_pylist()
        steps = steps_of(self.manifest.generations, self._all_places(), folders)
        return united([SAMPLE_SCHEMA, *(kept_schema(step.kept) for step in steps)])

    @property
    def column_names(self) -> list[str]:
        """Names of the sample tables' columns; tables of clips that were planned without one lack it."""
        return list(self.sample_schema.names)

    @functools.cached_property
    def kept_names(self) -> list[str]:
        """Names of the columns kept from the corpus; columns per frame by their own names."""
        per_frame = self.per_frame_names
        known = {*SAMPLE_SCHEMA.names, *([PER_FRAME] if per_frame else [])}
        return [*(name for name in self.column_names if name not in known), *per_frame]

    def kept_by(self, tables: Iterable[ShardRows]) -> list[str]:
        """Return the kept columns of clips: those of the snapshot, and any other that their tables have."""
        ordered = sorted(tables, key=lambda rows: (rows.bucket, rows.shard))
        own = (name for rows in ordered for name in rows.kept)
        return list(dict.fromkeys([*self.kept_names, *own]))

    @property
    def batch_columns(self) -> list[str]:
        """Names of what batches can have of the tables: columns per frame by their own names; time_ids."""
        return [*SAMPLE_SCHEMA.names, *self.kept_names, TIME_IDS]

    @property
    def per_frame_names(self) -> list[str]:
        """Names of the columns with a value per frame of each clip, such as actions."""
        return names_in(self.sample_schema)

    def scan(self, columns: list[str]) -> Iterator[tuple[tuple[str, int], pa.Table]]:
        """Yield ((bucket, shard), table) of every committed shard, with some of its columns.

        A kept column has one type in all tables, and is null in those of clips planned without it.
        """
        places = self._all_places()
        schema = SAMPLE_SCHEMA if {*columns} <= {*SAMPLE_SCHEMA.names} else self.sample_schema
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for start in range(0, len(places), NUM_QUEUED):
                some = places[start : start + NUM_QUEUED]
                tables = pool.map(lambda at: self._read_table(at[0], at[1], columns), some)
                for place, table in zip(some, tables, strict=True):
                    yield place, with_kept(table, columns, schema)

    def rows(self, bucket: str, shard: int) -> ShardRows:
        """Return the ok rows of a shard, from memory if they were read recently."""
        return self._tables.get_or_make(
            (bucket, shard), lambda: ShardRows(bucket, shard, self._read_table(bucket, shard))
        )

    def ok_rows(self, bucket: str, shard: int) -> Array:
        """Return the numbers of a shard's ok rows in it, in order, without reading it if all are ok."""
        num_ok = self._index["num_ok"][self._numbers[bucket, shard]].as_py()
        if num_ok == self.manifest.num_rows(ShardId(bucket, shard)):
            return np.arange(num_ok)
        if (rows := self._tables.get((bucket, shard))) is not None:
            return np.array([chunk.row for chunk in rows.chunks])
        table = self._read_table(bucket, shard, ["row", "status"])
        found: Array = table.filter(pc.equal(table["status"], "ok"))["row"].to_numpy()
        return found

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

    def place(self, number: int) -> tuple[str, int, int]:
        """Return the bucket, the shard and the row in it of an ok clip, by its number from 0."""
        at, position = self._locate(number)
        bucket, shard = self._places["bucket"][at], self._places["shard"][at]
        return bucket, shard, self.rows(bucket, shard).chunks[position].row

    def _locate(self, number: int) -> tuple[int, int]:
        """Return the row of the snapshot and the position among its ok rows of a clip, by its number."""
        at = int(np.searchsorted(self._ends, number, side="right"))
        return at, number - (int(self._ends[at - 1]) if at else 0)

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

    def _all_places(self) -> list[tuple[str, int]]:
        return list(zip(self._places["bucket"], self._places["shard"], strict=True))

    def _read_tables(
        self, places: Iterable[tuple[str, int]], columns: list[str] | None = None
    ) -> list[pa.Table]:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return list(pool.map(lambda at: self._read_table(at[0], at[1], columns), places))

    def _read_table(self, bucket: str, shard: int, columns: list[str] | None = None) -> pa.Table:
        number = self._numbers[bucket, shard]
        row = self._index.slice(number, 1).to_pylist()[0]
        return read_samples(self.storage, self.manifest.fingerprint, row, columns)
