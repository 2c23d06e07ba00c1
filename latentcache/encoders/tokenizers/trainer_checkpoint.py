"""Reads the tensors of a trainer's own checkpoint without running any code that it names.

`checkpoint` is for files of nothing but tensors. Trainers also pickle whole objects beside the weights
(hyper-parameters, callbacks). Each of their classes is replaced by one that only holds what was
pickled. So an old file loads without the packages that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from latentcache.encoders.checkpoint import (
    BROKEN,
    TORCHSCRIPT,
    Checkpoint,
    says_torchscript,
)
from latentcache.errors import EncoderError

#: Keys under which trainers keep the state dict; a file without any of them is one itself.
_STATE_KEYS = ("state_dict", "model_state_dict")


class _Inert(dict[Any, Any]):
    """Stands in for a class that a checkpoint names: it keeps its state as items and does nothing else."""

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
class TrainerCheckpoint:
    """The state dict of a checkpoint, and the trainer's hyper-parameters.

    found: the keys that a state dict could be under and is; the tensors are those of the first.
    """

    file: Checkpoint
    tensors: Mapping[str, torch.Tensor]
    settings: Mapping[str, Any]
    found: Sequence[str] = ()

    def select(self, *prefixes: str) -> TrainerCheckpoint:
        """Return the file with only the tensors whose names begin with one of the prefixes."""
        kept = {name: t for name, t in self.tensors.items() if name.startswith(prefixes)}
        return replace(self, tensors=kept)

    def shape(self, name: str, axes: int) -> torch.Size:
        """Return the shape, of `axes` axes, of a tensor that tells the architecture.

        Raises EncoderError where it is not there, or has another number of axes.
        """
        if name not in self.tensors:
            raise EncoderError(
                f"{self.file.key}: {self.file.path.name} holds no tensor {name!r}, so it is not of "
                f"this kind. It has {len(self.tensors)} tensors, such as "
                f"{', '.join(sorted(self.tensors)[:3]) or 'none'}. Check encoder.kind and the file."
            )
        shape = self.tensors[name].shape
        if len(shape) != axes or not all(shape):
            raise EncoderError(
                f"{self.file.key}: {self.file.path.name} has the tensor {name!r} of shape {list(shape)}, "
                f"and this kind's has {axes} axes. Check encoder.kind and the file."
            )
        return shape

    def count(self, pattern: str) -> int:
        """Count how many of `pattern`, with {} as 0, 1, 2 ..., begin the name of a tensor."""
        number = 0
        while any(name.startswith(pattern.format(number)) for name in self.tensors):
            number += 1
        return number


def read(
    file: Checkpoint, *, only_shapes: bool = False, keys: Sequence[str] = ()
) -> TrainerCheckpoint:
    """Read a checkpoint; `only_shapes` leaves the values on disk. Raises EncoderError.

    keys: under which its trainer keeps state dicts, before those of most trainers.
    """
    where = "meta" if only_shapes else "cpu"
    try:
        with torch.serialization.safe_globals(_stand_ins(file.path)):
            contents = torch.load(file.path, map_location=where, weights_only=True)
        found = _found(contents, (*keys, *_STATE_KEYS))
        state = _state_of(contents, found)
    except BROKEN as error:
        if says_torchscript(error):
            raise EncoderError(f"{file.key}: {file.path} {TORCHSCRIPT}") from None
        # What torch refused, and not its advice to read the file in a way that runs code.
        reasons = [part for part in str(error).split("\n\n") if "weights_only" not in part]
        raise EncoderError(
            f"{file.key}: {file.path} cannot be read as plain weights ({type(error).__name__}: "
            f"{' '.join(' '.join(reasons).split())[:300]}). If you trust it, load it where it was "
            "made and save its state dict again: torch.save({'state_dict': ...}, path)."
        ) from None
    tensors = {
        name: value
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    settings = _settings(contents)
    return TrainerCheckpoint(file=file, tensors=tensors, settings=settings, found=found)


def _found(contents: Any, keys: Sequence[str]) -> list[str]:
    return [key for key in keys if key in contents] if isinstance(contents, Mapping) else []


def _state_of(contents: Any, found: Sequence[str]) -> Mapping[Any, Any]:
    """Return the state dict among what was loaded. Raises TypeError where there is none."""
    state = contents[found[0]] if found else contents
    if not isinstance(state, Mapping):
        raise TypeError(f"it holds a {type(state).__name__}, not tensors by name")
    return state


def _stand_ins(path: Path) -> list[Any]:
    """Return (class, name) for every class in the file that torch does not allow by itself."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    return [(_Inert, name) for name in names]


def _settings(contents: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return Lightning's hyper-parameters; if a model was built from one namespace, those inside it."""
    settings = contents.get("hyper_parameters", {})
    if not isinstance(settings, Mapping):
        return {}
    inner = settings.get("args")
    return {**settings, **inner} if isinstance(inner, Mapping) else dict(settings)


def part(loaded: TrainerCheckpoint, prefix: str) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with a prefix, without it, as `load_into` takes them."""
    kept = loaded.select(prefix).tensors
    return {name.removeprefix(prefix): tensor.float().contiguous() for name, tensor in kept.items()}


def load_into(module: torch.nn.Module, loaded: TrainerCheckpoint) -> None:
    """Put the tensors into a module made on the meta device, all of them and no others, in float32.

    Leaves it frozen and in eval mode. Raises EncoderError.
    """
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in loaded.tensors.items()
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    loaded.file.check_shapes(shapes, module, type(module).__name__)
    module.load_state_dict(tensors, strict=True, assign=True)
    module.eval().requires_grad_(False)
