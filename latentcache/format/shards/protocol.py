"""The protocols of the families: encoders, shard formats. One file a member; see the contract suites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from latentcache.core.dtypes import Array
from latentcache.core.records import Bucket, ChunkRef
from latentcache.core.spec import ITEM_BYTES

if TYPE_CHECKING:
    from latentcache.storage.disk_cache import DiskCache
    from latentcache.storage.folder import Storage


#: The folder of the latents' arrays, which every cache has; those of fields lie in others.
LATENTS = "latents"
#: Eight bytes that follow a sample table and its length inside a shard object.
TABLE_MARK = b"lcTABLE1"


@dataclass(frozen=True)
class EncodedShard:
    """A shard object but for its sample table, which goes between `body` and `tail`.

    chunks: where each row's bytes are, None if the clip failed.
    """

    path: str
    body: bytes
    tail: bytes
    chunks: Sequence[ChunkRef | None]

    def with_table(self, table: bytes) -> bytes:
        """Return the whole object. table: the sample table as a Parquet file."""
        return b"".join([self.body, table, len(table).to_bytes(8, "little"), TABLE_MARK, self.tail])


@dataclass(frozen=True)
class StoredChunk:
    """A clip's compressed bytes, taken out of a shard object.

    facts: what the object's footer says of them, if it has one.
    """

    data: bytes
    facts: bytes = b""


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """The array of one bucket: `shape` is one sample's; `num_rows` counts failed clips too.

    folder: where the array is in the cache; latents, or a field's. choices: samples that each row can
    have, such as one per caption; where there are several, they are an axis of the array, and row i's
    sample k is number i * choices + k of all that is given and read here. padded: the side on which a
    sample is filled up with zeros to its shape, where it may have fewer of its first axis; None if all
    samples have the shape. piece: how many of an axis are compressed together, all if None: of a padded
    sample's first axis, which is a multiple of it; of others of the axis piece_axis, whose last piece is
    filled up.
    """

    bucket: Bucket
    shape: tuple[int, ...]
    dtype: str
    num_rows: int
    shard_rows: int
    codec: str = "zstd"
    level: int = 5
    folder: str = LATENTS
    choices: int = 1
    padded: Literal["left", "right"] | None = None
    piece: int | None = None
    piece_axis: int = 0

    @property
    def shard_samples(self) -> int:
        """Samples that a shard has room for."""
        return self.shard_rows * self.choices

    @property
    def pieces(self) -> int:
        """Pieces of a whole sample."""
        return -(-self.shape[self.piece_axis] // self.piece) if self.piece else 1

    @property
    def piece_shape(self) -> tuple[int, ...]:
        """Shape of a piece; of the whole sample if there are no pieces."""
        if not self.piece:
            return self.shape
        return (*self.shape[: self.piece_axis], self.piece, *self.shape[self.piece_axis + 1 :])

    @property
    def sample_bytes(self) -> int:
        """Bytes of a whole sample."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def whole(self, sample: Array) -> Array:
        """Return a sample filled up with zeros to its shape; itself if it has it."""
        missing = self.shape[0] - len(sample) if self.padded else 0
        if not missing:
            return sample
        ends = (missing, 0) if self.padded == "left" else (0, missing)
        return np.pad(sample, [ends] + [(0, 0)] * (sample.ndim - 1))


def embedded_table(data: bytes, tail_bytes: int) -> bytes:
    """Return the sample table of a whole shard object. Raises ValueError if it has none."""
    end = len(data) - tail_bytes - len(TABLE_MARK)
    length = int.from_bytes(data[max(0, end - 8) : max(0, end)], "little")
    if end < 8 or data[end : end + len(TABLE_MARK)] != TABLE_MARK or length > end - 8:
        raise ValueError("there is no sample table in it")
    return data[end - 8 - length : end - 8]


class Format(Protocol):
    """A shard format. Pure but for `read`; safe to use from several threads."""

    def metadata(self, layouts: Sequence[ArrayLayout]) -> Mapping[str, bytes]:
        """Return the metadata objects of a cache by path, sealed, in the order to write them."""
        ...

    def encode_shard(
        self, layout: ArrayLayout, index: int, rows: Sequence[Array | None]
    ) -> EncodedShard:
        """Compress the rows of shard `index` (None where a clip failed) to one object's bytes.

        Deterministic: the same rows give the same bytes. Rows that are the same object are stored once
        if the format can.
        """
        ...

    def take(
        self, storage: Storage, layout: ArrayLayout, index: int, chunks: Sequence[ChunkRef]
    ) -> list[StoredChunk]:
        """Read chunks of one shard object as they are, and compare their CRC32C. Raises CorruptionError."""
        ...

    def pack(
        self, layout: ArrayLayout, index: int, chunks: Sequence[StoredChunk | None]
    ) -> EncodedShard:
        """Put chunks of other shards (None where a clip failed) into one object, without compressing them.

        The object is the one that `encode_shard` gives for the same rows. Rows that are the same chunk are
        stored once if the format can. Raises ValueError if the chunks are not of this format, as this
        version writes it.
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

    def read_frames(
        self,
        storage: Storage,
        layout: ArrayLayout,
        index: int,
        chunks: Sequence[ChunkRef],
        picks: Sequence[Sequence[int] | None],
        out: Sequence[Array],
        *,
        check: bool = True,
        disk: DiskCache | None = None,
    ) -> None:
        """Read as `read` does, but of each chunk only some latent frames, if not None.

        Of a layout with pieces along the latent frames, only the pieces that hold them are read.
        """
        ...

    def tail_bytes(self, layout: ArrayLayout, data: bytes) -> int:
        """Return how many bytes of a whole object come after its sample table. Raises ValueError."""
        ...

    def path(self, layout: ArrayLayout, index: int) -> str:
        """Return the path of shard `index` in the cache."""
        ...

    def decode(self, layout: ArrayLayout, data: bytes, chunk: ChunkRef, out: Array) -> None:
        """Decompress one chunk of a whole shard object, without a look at its CRC32C, into `out`.

        Raises ValueError where it is not one sample of the layout.
        """
        ...
