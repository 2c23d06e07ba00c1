"""A cache as a corpus: its clips are the sources. What they are is read from its newest snapshot.

A source's name is the clip's key, its URL says where the row is. Its identity is of the stored bytes, which
copying into other shards does not change. No model is loaded here, and nothing is decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentcache.config.sections import CorpusConfig
from latentcache.core.lru import Lru
from latentcache.core.records import Bucket, ShardId
from latentcache.corpus.kept import keepable
from latentcache.corpus.source_table import to_source_table
from latentcache.errors import CacheError, ClipError, CorpusError, CorruptionError, LatentCacheError
from latentcache.format.columns import WEIGHT
from latentcache.format.generations import Parent
from latentcache.format.manifest import Manifest, read_cache_json
from latentcache.format.samples import read_all_rows
from latentcache.format.schemas import SAMPLE_SCHEMA
from latentcache.reading.cache import Cache, read_snapshot
from latentcache.storage.cache_urls import cache_of, clip_url, refused_cache, split_clip_url
from latentcache.storage.folder import Storage
from latentcache.storage.urls import public_name, redact, redact_url

#: Sample tables in memory while clips are looked at in the order of their shards.
_TABLES = 4


def open_parent(config: CorpusConfig) -> Storage:
    """Return the storage of the cache that is the corpus. Raises CorpusError if it may not be opened."""
    if why := refused_cache(config.source, config.schemes):
        raise CorpusError(f"corpus.source {redact_url(config.source)!r} {why}")
    return Storage(cache_of(config.source), config.storage_options)


def read_parent(config: CorpusConfig) -> Manifest:
    """Return what the cache is that is the corpus, without its generations. Raises CacheError."""
    return read_cache_json(open_parent(config))


def read_clips(config: CorpusConfig) -> tuple[pa.Table, tuple[str, ...], Parent]:
    """Return the ok clips of the newest snapshot as sources, their kept columns, and what it is of.

    Raises CorpusError, CacheError, StorageError.
    """
    storage = open_parent(config)
    manifest, index = read_snapshot(storage)
    cache = Cache(storage, manifest, index)
    keep = _kept(config, cache)
    tables = list(_sources(cache, keep))
    if not tables:
        raise CorpusError(
            f"corpus.source: the cache {redact(storage.url)} has no clip that is ok, so there is nothing "
            "to decode. Let its run go on: latentcache status says how far it is"
        )
    try:
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException as error:
        raise CacheError(
            f"{redact(storage.url)}: kept columns have types that do not go together ({error}). Name "
            "those to carry over in corpus.keep"
        ) from None
    for name in set(keep).intersection(table.column_names):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, keepable(name, table[name]))
    parent = Parent(
        url=public_name(storage.absolute_url),
        fingerprint=manifest.fingerprint,
        generation=len(manifest.generations),
        sha256=manifest.generations[-1].sha256,
    )
    return table, keep, parent


def _kept(config: CorpusConfig, cache: Cache) -> tuple[str, ...]:
    """Return the columns to carry over: those that are named, else all that the cache has kept."""
    there = [name for name in cache.column_names if name not in SAMPLE_SCHEMA.names]
    if config.per_frame:
        raise CorpusError(
            "corpus.per_frame names columns of a table, and the corpus is a cache. Remove it: what the "
            f"cache {redact(cache.storage.url)} has per frame is carried over with its other columns"
        )
    if missing := [name for name in config.keep if name not in there]:
        raise CorpusError(
            f"corpus.keep: the cache {redact(cache.storage.url)} has kept no column {missing[0]!r}. It "
            f"has: {', '.join(there) or 'none'}. Leave corpus.keep out to carry over all."
        )
    weight = [WEIGHT] if WEIGHT in there and config.keep else []
    return tuple([*config.keep, *weight] or there)


def _sources(cache: Cache, keep: tuple[str, ...]) -> Iterator[pa.Table]:
    url = cache.storage.absolute_url
    for (bucket, shard), table in cache.scan(["key", "row", "status", "caption", *keep]):
        ok = table.filter(pc.equal(table["status"], "ok"))
        if not ok.num_rows:
            continue
        kind = "image" if Bucket.parse(bucket).frames == 1 else "video"
        columns = {
            "name": ok["key"],
            "url": pa.array([clip_url(url, bucket, shard, row) for row in ok["row"].to_pylist()]),
            "kind": pa.array([kind] * ok.num_rows, pa.string()),
            "caption": ok["caption"],
        }
        kept = {name: ok[name] for name in keep if name in ok.column_names}
        yield to_source_table(columns, kept)


def identity_of(fingerprint: str, row: Mapping[str, Any]) -> str:
    """Return what identifies a clip's stored bytes. row: of the sample table of a cache."""
    text = f"{fingerprint} {row['bucket']} {row['length']} {row['crc32c']}"
    return f"{row['length']}-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def duration_of(row: Mapping[str, Any]) -> float:
    """Return how long the clip of a sample table's row lasts, in s; 0 if nothing says so."""
    start_s, end_s, fps = row["start_s"], row["end_s"], row["fps"]
    if start_s is not None and end_s is not None and end_s > start_s:
        return float(end_s - start_s)
    return row["frames"] / fps if fps else 0.0


def times_of(row: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Return when the frames of a clip are shown since its first one, in s; zeros if nothing says so."""
    frames: int = row["frames"]
    return np.arange(frames, dtype=np.float64) * (duration_of(row) / frames)


class ParentRows:
    """Finds rows of sample tables by the URLs of clips. Not for several threads.

    options: of the parent's storage. schemes: `corpus.schemes`. Rows that were retired since are found too.
    """

    def __init__(self, options: Mapping[str, Any], schemes: list[str]) -> None:
        self._options, self._schemes = options, schemes
        self._caches: dict[str, tuple[Storage, Manifest]] = {}
        self._tables: Lru[tuple[str, ShardId], dict[int, dict[str, Any]]] = Lru(_TABLES)

    def cache(self, url: str) -> tuple[Storage, Manifest]:
        """Return the cache that has a clip. Raises ClipError if it is no such URL, CacheError."""
        place = self._place(url)[0]
        if place not in self._caches:
            storage = Storage(place, self._options)
            self._caches[place] = (storage, read_snapshot(storage)[0])
        return self._caches[place]

    def row(self, url: str) -> dict[str, Any]:
        """Return a clip's row without kept columns.

        Raises ClipError if there is none that is ok, CacheError, StorageError.
        """
        place, shard, number = self._place(url)
        storage, manifest = self.cache(url)

        if shard.bucket not in {bucket.name for bucket in manifest.buckets}:
            raise ClipError("missing", f"the cache has no such bucket: {redact_url(url)}")

        def read() -> dict[int, dict[str, Any]]:
            names = list(SAMPLE_SCHEMA.names)
            table = read_all_rows(storage, manifest.fingerprint, shard, names)
            return {row["row"]: row for row in table.to_pylist() if row["status"] == "ok"}

        rows = self._tables.get_or_make((place, shard), read)
        if number not in rows:
            raise ClipError("missing", f"the cache has no ok clip there: {redact_url(url)}")
        return rows[number]

    def _place(self, url: str) -> tuple[str, ShardId, int]:
        try:
            cache, bucket, shard, row = split_clip_url(url)
            Bucket.parse(bucket)
        except ValueError as error:
            raise ClipError("unreadable", f"{redact_url(url)}: {error}") from None
        if why := refused_cache(cache, self._schemes):
            raise ClipError("unreadable", f"{redact_url(url)} {why}")
        return cache, ShardId(bucket, shard), row


class ParentProbes:
    """Looks at clips of caches as a `DecodePool` looks at files; a context manager, as that is."""

    window = 1  # an answer is there at once

    def __init__(self, config: CorpusConfig) -> None:
        self._rows = ParentRows(config.storage_options, config.schemes)

    def __enter__(self) -> ParentProbes:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def probe(
        self,
        url: str,
        kind: str,  # noqa: ARG002 - as a pool's
        *,
        identity_only: bool = False,
        times: bool = False,
    ) -> Future[dict[str, Any]]:
        """Return frames, duration_s, fps, height, width and identity of a clip, as a pool does.

        times: when its frames are shown, too, as times_s.
        """
        future: Future[dict[str, Any]] = Future()
        try:
            row = self._rows.row(url)
            identity = identity_of(self._rows.cache(url)[1].fingerprint, row)
        except CorruptionError as error:
            future.set_exception(_gone(error))
        except LatentCacheError as error:
            future.set_exception(error)
        else:
            facts = {} if identity_only else _facts(row)
            if times and not identity_only:
                facts["times_s"] = times_of(row).tolist()
            future.set_result({"identity": identity, **facts})
        return future


def _facts(row: Mapping[str, Any]) -> dict[str, Any]:
    duration_s = duration_of(row)
    return {
        "frames": row["frames"],
        "duration_s": duration_s,
        "fps": row["frames"] / duration_s if duration_s else None,
        "height": row["height"],
        "width": row["width"],
    }


def _gone(error: CorruptionError) -> ClipError:
    """Return what a sample table is that cannot be read: its clips say nothing of themselves any more."""
    return ClipError("missing", str(error))
