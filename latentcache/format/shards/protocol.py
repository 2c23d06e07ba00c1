"""The protocols of the families: encoders, shard formats. One file a member; see the contract suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from latentcache.core.dtypes import Array
from latentcache.core.records import Bucket, ChunkRef

if TYPE_CHECKING:
    from latentcache.storage.disk_cache import DiskCache
    from latentcache.storage.folder import Storage


@dataclass(frozen=True)
class EncodedShard:
    """A finished shard object: its path in the cache, its bytes and where each row's bytes are."""

    path: str
    data: bytes
    chunks: Sequence[ChunkRef | None]


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """The array of one bucket: `shape` is one sample's; `num_rows` counts failed clips too."""

    bucket: Bucket
    shape: tuple[int, ...]
    dtype: str
    num_rows: int
    shard_rows: int
    codec: str = "zstd"
    level: int = 5


class Format(Protocol):
    """A shard format. Pure but for `read`; safe to use from several threads."""

    def metadata(self, layouts: Sequence[ArrayLayout]) -> Mapping[str, bytes]:
        """Return the metadata objects of a cache by path, sealed, in the order to write them."""
        ...

    def encode_shard(
        self, layout: ArrayLayout, index: int, rows: Sequence[Array | None]
    ) -> EncodedShard:
        """Compress the rows of shard `index` (None where a clip failed) to one object's bytes.

        Deterministic: the same rows give the same bytes.
        """
        ...

    def read(
        self,
        storage: Storage,
        layout: ArrayLayout,
        index: int,
        chunks: Sequence[ChunkRef],
        out: Sequence[Array],
        *,
        check: bool = True,
        disk: DiskCache | None = None,
    ) -> None:
        """Read, check and decompress chunks of one shard object into `out`, arrays of the layout's shape.

        check: compare their CRC32C. disk: where chunks of remote objects are kept. Raises
        CorruptionError where bytes are missing, fail their CRC32C or do not decompress.
        """
        ...

    def path(self, layout: ArrayLayout, index: int) -> str:
        """Return the path of shard `index` in the cache."""
        ...

    def decode(self, layout: ArrayLayout, data: bytes, chunk: ChunkRef, out: Array) -> None:
        """Decompress one chunk of a whole shard object, without a look at its CRC32C, into `out`.

        Raises ValueError where it is not one sample of the layout.
        """
        ...
