"""Read the tensors of a `.ckpt` or `.pth` file without running any code that it names.

Trainers pickle whole objects beside the weights (hyper-parameters, callbacks). Each of their classes is replaced
by one that only holds what was pickled, so that an old file loads without the packages that wrote it.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentcache.encoders.weights import ModelFiles
from latentcache.errors import ConfigError, EncoderError

#: Where trainers keep the state dict; a file without any of them is one itself.
_STATE_KEYS = ("state_dict", "model_state_dict")


class _Inert(dict[Any, Any]):
    """Stands in for a class that a checkpoint names: keeps its state as items, and does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        if isinstance(state, Mapping):
            self.update(state)

    def __hash__(self) -> int:  # type: ignore[override] # members of enumerations are keys
        return id(self)


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    """What a checkpoint holds: the state dict and the trainer's hyper-parameters, one level flat."""

    path: Path
    tensors: Mapping[str, torch.Tensor]
    settings: Mapping[str, Any]

    def select(self, *prefixes: str) -> TorchFile:
        """Return the file with the tensors whose names begin so, and no others."""
        kept = {name: t for name, t in self.tensors.items() if name.startswith(prefixes)}
        return TorchFile(path=self.path, tensors=kept, settings=self.settings)

    def shape(self, name: str) -> torch.Size:
        """Return the shape of a tensor that tells the architecture. Raises EncoderError."""
        if name not in self.tensors:
            raise EncoderError(
                f"encoder.checkpoint: {self.path.name} holds no tensor {name!r}, so it is not of "
                f"this kind. It has {len(self.tensors)} tensors, such as "
                f"{', '.join(sorted(self.tensors)[:3]) or 'none'}. Check encoder.kind and the file."
            )
        return self.tensors[name].shape

    def count(self, pattern: str) -> int:
        """Return how many of `pattern` with {} as 0, 1, 2 ... begin the name of a tensor."""
        number = 0
        while any(name.startswith(pattern.format(number)) for name in self.tensors):
            number += 1
        return number


def find(checkpoint: str) -> Path:
    """Return the path of a checkpoint on this machine. Raises ConfigError."""
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"encoder.checkpoint: there is no file {checkpoint!r}. Download the weights, and give "
            "the path that they have on every machine of the run."
        )
    return path


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file; computed once for each state of it."""
    return ModelFiles(folder=path.parent, config={}, weights=(path,)).weights_sha256()


def check_unchanged(path: Path, expected: str | None) -> None:
    """Raise EncoderError where the file is not the one that the cache was planned with."""
    if sha256(path) != expected:
        raise EncoderError(
            f"the weights in {path} have the SHA-256 {sha256(path)}, and the cache is made with "
            f"{expected}: ids of two models would be mixed. Put the same file on every machine."
        )


def read(path: Path, *, only_shapes: bool = False) -> TorchFile:
    """Read a checkpoint; `only_shapes` leaves the values on disk. Raises EncoderError."""
    try:
        with torch.serialization.safe_globals(_stand_ins(path)):
            contents = torch.load(
                path, map_location="meta" if only_shapes else "cpu", weights_only=True
            )
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise EncoderError(
            f"encoder.checkpoint: {path} cannot be read as weights alone: "
            f"{' '.join(str(error).split())[:300]} If you trust it, load it where it was made and "
            "save its state dict again: torch.save({'state_dict': ...}, path)."
        ) from error
    state = next((contents[key] for key in _STATE_KEYS if key in contents), contents)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    return TorchFile(path=path, tensors=tensors, settings=_settings(contents))


def _stand_ins(path: Path) -> list[Any]:
    """Return (class, name) for every class in the file that torch does not allow by itself."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    return [(_Inert, name) for name in names]


def _settings(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return Lightning's hyper-parameters; those of a model built from one namespace are inside it."""
    settings = contents.get("hyper_parameters", {})
    if not isinstance(settings, Mapping):
        return {}
    inner = settings.get("args")
    return {**settings, **inner} if isinstance(inner, Mapping) else dict(settings)


def load_into(module: torch.nn.Module, file: TorchFile) -> torch.nn.Module:
    """Put the tensors into a module made on the meta device: every one, and no others, in float32.

    Returns it in eval mode. Raises EncoderError.
    """
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in file.tensors.items()
    }
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise EncoderError(
            f"encoder.checkpoint: {file.path} does not fit {type(module).__name__}: "
            f"{' '.join(str(error).split())[:400]} It is of another architecture or version."
        ) from error
    return module.eval().requires_grad_(False)
