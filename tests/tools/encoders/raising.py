"""An encoder outside the project that raises, by the grey of an image, each kind of error there is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch

from latentcache.config.base import Section
from latentcache.core.spec import LatentSpec
from latentcache.encoders import dct
from latentcache.encoders.protocol import Encoder
from latentcache.errors import (
    ClipError,
    ConfigError,
    CorruptionError,
    EncoderError,
    GeometryError,
    MachineError,
    RunStoppedError,
    ShardError,
    SourceError,
    StorageError,
    UnreachableError,
)


class UnpicklableError(Exception):
    """Holds what cannot go to another process."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class UnloadableError(Exception):
    """Can be pickled, and not be made again."""

    def __init__(self, layer: str, number: int) -> None:
        super().__init__(f"layer {layer} has no weight {number}")


class SpeechlessError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("not even this")


class OwnInterrupt(BaseException):
    """Of a framework that cancels with an exception that is none."""


class OwnClipError(ClipError):
    def __init__(self) -> None:
        super().__init__("non_finite", "this model gives NaN for it")
        self.lock = threading.Lock()


class OwnStorageError(StorageError):
    def __init__(self) -> None:
        super().__init__("the bucket is gone")
        self.lock = threading.Lock()


#: What costs the shard, though nobody could say beforehand what an encoder raises.
OF_SHARD: Mapping[str, Callable[[], BaseException]] = {
    "KeyError": lambda: KeyError("weights"),
    "TypeError": lambda: TypeError("not callable"),
    "AttributeError": lambda: AttributeError("'NoneType' has no attribute 'to'"),
    "IndexError": lambda: IndexError("out of range"),
    "AssertionError": AssertionError,
    "NotImplementedError": lambda: NotImplementedError("upsample"),
    "ValueError": lambda: ValueError("too large"),
    "RuntimeError": lambda: RuntimeError("size mismatch\nlayer 1\nlayer 2"),
    "OSError": lambda: OSError(2, "No such file"),
    "MemoryError": MemoryError,
    "OutOfMemoryError": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "RecursionError": lambda: RecursionError("too deep"),
    "StopIteration": StopIteration,
    "UnicodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad byte"),
    "ExceptionGroup": lambda: ExceptionGroup("several", [ValueError("1"), TypeError("2")]),
    "secret": lambda: ValueError("cannot fetch https://host/vae?X-Amz-Signature=hunter2"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "own BaseException": lambda: OwnInterrupt("cancelled"),
    "unpicklable": UnpicklableError,
    "unloadable": lambda: UnloadableError("conv_in", 3),
    "speechless": SpeechlessError,
    "EncoderError": lambda: EncoderError("it gave another shape"),
    "ShardError": lambda: ShardError("lost"),
    "ConfigError": lambda: ConfigError("no such layer"),
    "GeometryError": lambda: GeometryError("not a multiple of 16"),
    "CorruptionError": lambda: CorruptionError("bad weights"),
    "unknown reason": lambda: ClipError("mood", "not today"),
}
OF_CLIP: Mapping[str, Callable[[], BaseException]] = {
    "ClipError": lambda: ClipError("non_finite", "NaN"),
    "own ClipError": OwnClipError,
}
OF_RUN: Mapping[str, Callable[[], BaseException]] = {
    "StorageError": lambda: StorageError("no room left"),
    "MachineError": lambda: MachineError("no more threads"),
    "SourceError": lambda: SourceError("no bytes"),
    "UnreachableError": lambda: UnreachableError("no answer"),
    "RunStoppedError": lambda: RunStoppedError("all is grey\n  and that in two lines"),
    "own StorageError": OwnStorageError,
}
#: What the installation lacks, and no clip.
OF_IMPORT: Mapping[str, Callable[[], BaseException]] = {
    "ImportError": lambda: ImportError("no module named flash_attn"),
    "ModuleNotFoundError": lambda: ModuleNotFoundError("No module named 'flash_attn'"),
}
#: What a GPU says that has failed; this one has failed for every process.
OF_WORKER: Mapping[str, Callable[[], BaseException]] = {
    "illegal access": lambda: RuntimeError(
        "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`"
    ),
}
KINDS = {**OF_SHARD, **OF_CLIP, **OF_RUN, **OF_IMPORT, **OF_WORKER}


def grey(kind: str | None) -> int:
    """The grey of an image that makes the encoder raise this; None: nothing."""
    return list(KINDS).index(kind) + 1 if kind else 255


class Config(Section):
    """build: what `build` raises."""

    kind: str
    build: str | None = None
    store: str = "mean"


INNER = dct.Config(kind="dct", store="mean")


def describe(config: Config, *, dtype: str) -> LatentSpec:
    return dct.describe(INNER, dtype=dtype)


def identity(config: Config) -> Mapping[str, Any]:
    return {"kind": "raising"}


class _Raising:
    def __init__(self, inner: Encoder) -> None:
        self.spec = inner.spec
        self._inner = inner

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        value = int(pixels_BTHWC.max())
        if value <= len(KINDS):
            raise list(KINDS.values())[value - 1]()
        return self._inner.encode(pixels_BTHWC)

    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        return self._inner.decode(latents_BCthw)


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> Encoder:
    if config.build is not None:
        raise KINDS[config.build]()
    return _Raising(dct.build(INNER, spec=spec, device=device))
