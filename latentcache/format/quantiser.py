"""`quantiser.safetensors`: what turns ids into vectors, created once; cache.json has its SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from latentcache.errors import CacheError
from latentcache.format.damage import damaged
from latentcache.format.manifest import Manifest
from latentcache.format.paths import QUANTISER
from latentcache.format.safetensors import read_float32, safetensors_bytes
from latentcache.format.tables import read_sealed
from latentcache.storage.folder import Storage
from latentcache.storage.urls import redact

#: 262,144 codes of 256 values take 256 MiB.
MAX_QUANTISER_BYTES = 1 << 30


def to_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the object for float32 tensors; the same tensors give the same bytes."""
    return safetensors_bytes(dict(sorted(tensors.items())), {})


def sha256(data: bytes) -> str:
    """Return the digest that cache.json has of it, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_quantiser(storage: Storage, manifest: Manifest, data: bytes) -> None:
    """Create the object if it is the cache's and is not there."""
    if sha256(data) == manifest.quantiser_sha256:
        storage.create(QUANTISER, data)


def read_quantiser_bytes(storage: Storage, manifest: Manifest) -> bytes:
    """Return the object's bytes. Raises CacheError if the cache has none, CorruptionError."""
    if manifest.quantiser_sha256 is None:
        raise CacheError(
            f"{redact(storage.url)} has no quantiser: {manifest.spec.model_class} has none to store, or "
            "the cache was imported. Build the encoder, and use its own."
        )
    try:
        data = read_sealed(storage, QUANTISER, MAX_QUANTISER_BYTES)
    except FileNotFoundError:
        raise damaged(storage, QUANTISER, "is missing") from None
    if sha256(data) != manifest.quantiser_sha256:
        raise damaged(storage, QUANTISER, "is not what cache.json was written with")
    return data


def read_quantiser(storage: Storage, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Return the tensors by name, float32. Raises CacheError, CorruptionError.

    That the bytes are those of cache.json proves nothing: a stranger has written both.
    """
    data = read_quantiser_bytes(storage, manifest)
    try:
        return read_float32(data)
    except ValueError as error:
        raise damaged(storage, QUANTISER, f"is no file of float32 tensors ({error})") from None
