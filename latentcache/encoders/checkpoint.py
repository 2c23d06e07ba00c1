"""One-file checkpoints: read without running code, checked tensor by tensor, hashed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentcache.core.spec import LatentSpec
from latentcache.errors import ConfigError, EncoderError, LatentCacheError

Shapes = Mapping[str, tuple[int, ...]]

_SAFETENSORS: tuple[type[Exception], ...] = ()
with contextlib.suppress(ImportError):  # it comes with the extra `diffusers`
    from safetensors import SafetensorError

    _SAFETENSORS = (SafetensorError,)

#: What is said of a program where weights are expected.
TORCHSCRIPT = (
    "is TorchScript, which is a program and not only weights. It is not run. Load it where it is trusted, "
    "and save its state dict: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)."
)
#: How files begin: a zip (torch.save since 1.6), and a pickle of protocol 2 (before it).
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80\x02"
#: What broken files make the unpickler and the zip reader raise.
BROKEN: tuple[type[BaseException], ...] = (
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    MemoryError,
    OverflowError,
    ImportError,
    *_SAFETENSORS,
    struct.error,
)
#: What an architecture that is read off another model's tensors makes Python and torch raise.
_MISFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
#: Tensors that an error names before it says how many more there are.
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file of tensors by name: PyTorch's (.pth, .pt) or safetensors. `key` names it in messages."""

    key: str
    path: Path

    def sha256(self) -> str:
        """Return the SHA-256 of the file."""
        return file_sha256(self.path)

    def shapes(self) -> Shapes:
        """Return the tensors' shapes by name, without reading their values if that is possible."""
        return {name: tuple(tensor.shape) for name, tensor in self._read(mmap=True).items()}

    def load_into(
        self, model: nn.Module, *, dtype: torch.dtype, device: torch.device, name: str
    ) -> nn.Module:
        """Return `model`, made on the meta device, with this file's tensors: frozen, in eval mode.

        Raises EncoderError if they do not match the model's tensors one for one.
        """
        tensors = self._read(mmap=False)
        self.check_shapes({key: tuple(t.shape) for key, t in tensors.items()}, model, name)
        model.load_state_dict(tensors, strict=True, assign=True)
        return model.to(device, dtype).eval().requires_grad_(False)

    def check_shapes(self, found: Shapes, model: nn.Module, name: str) -> None:
        """Raise EncoderError unless the file's tensors are those of `model`, by name and shape."""
        expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        problems = [
            _few("lacks", expected.keys() - found.keys()),
            _few("has, and should not have,", found.keys() - expected.keys()),
            _few(
                "has in another shape",
                (
                    f"{key} ({list(found[key])}, not {list(expected[key])})"
                    for key in expected.keys() & found.keys()
                    if found[key] != expected[key]
                ),
            ),
        ]
        told = [problem for problem in problems if problem]
        if told:
            raise EncoderError(
                f"{self.key}: {self.path} is no checkpoint of {name}: of its tensors it "
                f"{'; it '.join(told)}. If it were loaded anyway, the rest would stay random and the "
                "latents would be nonsense. Give the file as it was published, and its variant."
            )

    @contextlib.contextmanager
    def architecture_of(self, name: str) -> Iterator[None]:
        """Read the architecture of model `name` off this file inside: its tensors may be anybody's.

        Raises EncoderError for whatever goes wrong.
        """
        try:
            yield
        except LatentCacheError:
            raise
        except _MISFIT as error:
            raise EncoderError(
                f"{self.key}: {self.path.name} is no checkpoint of {name}: no such model has tensors of "
                f"these names and shapes ({' '.join(str(error).split())[:200]}). Give the file as it was "
                "published, and check that encoder.kind is the model's."
            ) from error

    def check_unchanged(self, spec: LatentSpec) -> None:
        """Raise EncoderError if the file is not the one that the cache is made with.

        A worker may see another file at this path than the planner did.
        """
        found = self.sha256()
        if found != spec.weights_sha256:
            raise EncoderError(
                f"{self.key}: {self.path} has the SHA-256 {found}, and the cache is made with "
                f"{spec.weights_sha256}: latents of two models would be mixed. Put the same file "
                "on every machine."
            )

    def _read(self, *, mmap: bool) -> dict[str, torch.Tensor]:
        with self.path.open("rb") as file:
            head = file.read(512)
        if head[8:9] == b"{" and not head.startswith((_ZIP, _PICKLE)):
            return self._read_safetensors()
        if not head.startswith((_ZIP, _PICKLE)):
            raise self._not_a_checkpoint(head)
        try:
            loaded = torch.load(
                self.path,
                map_location="cpu",
                weights_only=True,
                mmap=mmap and head.startswith(_ZIP),
            )
        except BROKEN as error:
            raise self._unreadable(error) from None
        return self._tensors(loaded)

    def _read_safetensors(self) -> dict[str, torch.Tensor]:
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise ConfigError(
                f"{self.key}: {self.path} is a safetensors file, but the package is not installed. "
                "Run: pip install safetensors"
            ) from None
        try:
            return load_file(self.path)
        except BROKEN as error:
            raise self._unreadable(error) from None

    def _tensors(self, loaded: Any) -> dict[str, torch.Tensor]:
        """Return what was loaded if it is floating-point tensors by name and nothing else."""
        if not isinstance(loaded, Mapping):
            raise ConfigError(
                f"{self.key}: {self.path} holds a {type(loaded).__name__}, not tensors by name. "
                "Save the model's state_dict()."
            )
        others = [
            str(name)
            for name, value in loaded.items()
            if not (
                isinstance(name, str)
                and isinstance(value, torch.Tensor)
                and value.is_floating_point()
            )
        ]
        if others or not loaded:
            raise ConfigError(
                f"{self.key}: {self.path} holds {_few('', others) or 'nothing'} beside "
                "floating-point tensors by name. Training checkpoints keep the weights under one "
                "of their keys: save only that part, with torch.save."
            )
        return dict(loaded)

    def _not_a_checkpoint(self, head: bytes) -> ConfigError:
        start = head.lstrip().lower()
        if start.startswith((b"<!doctype", b"<html", b"<?xml")):
            what, fix = "a web page, saved under this name", "Download the raw file, not its page."
        elif start.startswith(b"version https://git-lfs"):
            what, fix = "a pointer of Git LFS, not the file itself", "Run: git lfs pull"
        else:
            what, fix = (
                "neither a PyTorch file nor safetensors",
                "Download the checkpoint again, whole.",
            )
        return ConfigError(f"{self.key}: {self.path} is {what}. {fix}")

    def _unreadable(self, error: BaseException) -> ConfigError:
        if says_torchscript(error):
            return ConfigError(f"{self.key}: {self.path} {TORCHSCRIPT}")
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        code = isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error).lower()
        advice = (
            "It holds more than tensors, such as a whole model or code. It is not loaded, because "
            "unpickling can run any code. Save only its state_dict()."
            if code
            else "The file is damaged or cut short: download it again."
        )
        return ConfigError(
            f"{self.key}: {self.path} cannot be read ({type(error).__name__}: {reason}). {advice}"
        )


def says_torchscript(error: BaseException) -> bool:
    """Tell whether torch has refused a file because it is TorchScript."""
    return "torchscript" in str(error).lower()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which is read again only when its size or time has changed."""
    facts = path.stat()
    return _cached_sha256(path.resolve(), facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _cached_sha256(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001 - part of the key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(path: str, key: str) -> Checkpoint:
    """Return the checkpoint at a local path. Raises ConfigError if there is no file."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise ConfigError(
            f"{key}: there is no file {path!r} on this machine. Give the path of the checkpoint, "
            "downloaded to every machine that encodes."
        )
    try:
        found.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{key}: {path!r} cannot be read: {error.strerror}.") from None
    return Checkpoint(key=key, path=found)


def _few(verb: str, names: Iterable[str]) -> str:
    """Return `verb a, b and 3 more`, or an empty string if there are no names."""
    ordered = sorted(names)
    if not ordered:
        return ""
    rest = len(ordered) - _NAMED
    more = f" and {rest} more" if rest > 0 else ""
    return f"{verb} {', '.join(ordered[:_NAMED])}{more}".strip()
