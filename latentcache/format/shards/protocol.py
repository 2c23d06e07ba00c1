"""The protocols of the families: encoders, shard formats. One file a member; see the contract suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt
import torch

from latentcache.core.records import Bucket, ChunkRef, LatentSpec

if TYPE_CHECKING:
    from pydantic import BaseModel

    from latentcache.storage.disk_cache import DiskCache
    from latentcache.storage.folder import Storage

Array = npt.NDArray[Any]


class Encoder(Protocol):
    """A built encoder on its device. Not thread-safe: callers take turns.

    Deterministic: the same pixels give the same bits on the same device. Stateless between calls:
    an exception in one call must not change the next one's result.
    """

    spec: LatentSpec

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels [B, T, H, W, 3] (on the CPU, perhaps pinned).

        Returns on the encoder's device, un-normalised, in its compute dtype: [B, 2C, t, h, w] mean and
        log-variance (clamped as the model's own distribution does) where it has a posterior and
        [B, C, t, h, w] where it has none; ids [B, t, h, w] for discrete encoders.
        """
        ...

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode un-normalised latents (means) to uint8 pixels [B, T, H, W, 3] on the CPU."""
        ...


class EncoderModule(Protocol):
    """What a module under `latentcache/encoders` exposes."""

    Config: type[BaseModel]

    def describe(self, config: Any, *, dtype: str) -> LatentSpec:
        """Return the spec without loading weights into memory.

        dtype: of stored latents; discrete tokenizers take that of their IdSpec instead.

        Raises ConfigError or EncoderError with what to do.
        """
        ...

    def identity(self, config: Any) -> Mapping[str, Any]:
        """Return the encoder's part of the recipe: everything that determines the latents' values."""
        ...

    def build(self, config: Any, *, spec: LatentSpec, device: torch.device) -> Encoder:
        """Load the weights and return the encoder on `device`."""
        ...


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
