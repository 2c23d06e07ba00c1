"""The cases of the encoders' contract suite: each family has its own `encoder_cases_<family>.py`.

Such a file holds a tuple `CASES`; it is found by its name, and no other file need change.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import tests.contracts

Raw = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A published model, which is a row of the table in docs/encoders.md.

    raw: as that of a case, but writes no more than `describe` reads, with the sizes as published:
    names and shapes of tensors, and no weights. chunking, tested, decodes: where not as the case has it.
    """

    name: str
    raw: Raw
    chunking: str = ""
    tested: str = ""
    decodes: str = ""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An encoder: how to configure it in a folder, and legal and illegal numbers of frames.

    kind: that of the section that `raw` returns. raw: writes what the encoder needs into a folder
    and returns the config's `encoder` section.
    frames: legal ones, ascending, at least two. illegal_frames: with the nearest legal ones, as the
    message says them; empty where any number is legal. grids: clips' sizes in latents, (h, w); of an
    encoder with a `fixed_size` they are not used.
    rounding: convolutions block their sums by the shape of the whole input, so that a clip in a
    batch is the clip alone, and a prefix the same prefix of more, up to a few units in the last
    place (latents are about 1 here); 0 where each clip and group is computed on its own. Of ids it
    is the share that may differ: those near a tie.
    batch_rounding: the same of a clip in a batch; as `rounding` unless it says otherwise.
    decodes: whether it can; else what the message of its EncoderError says, as a pattern.
    undecoded: frames at a clip's end that `decode` does not give back.
    is_network: whether it is made of torch modules, one of whose calls can be made to fail.
    models: the published ones that the case stands for. chunking: in what pieces a clip goes through
    them. tested: what their latents are compared with, and with which weights.
    """

    name: str
    kind: str
    raw: Raw
    frames: tuple[int, ...]
    illegal_frames: Mapping[int, str] = field(default_factory=dict)
    grids: tuple[tuple[int, int], ...] = ((2, 3), (1, 2), (3, 2))
    rounding: float = 1e-5
    batch_rounding: float | None = None
    decodes: bool | str = True
    undecoded: int = 0
    is_network: bool = True
    models: tuple[Model, ...] = ()
    chunking: str = ""
    tested: str = ""


def hollow(path: Path, shapes: Mapping[str, Sequence[int]], **others: Any) -> str:
    """Write a PyTorch file of tensors of full shapes and next to no bytes: one zero, repeated."""
    state = {name: torch.zeros(()).expand(tuple(shape)) for name, shape in shapes.items()}
    torch.save({"state_dict": state, **others} if others else state, path)
    return str(path)


def all_cases() -> list[Case]:
    """Return the cases of every family, by file and then in order."""
    names = sorted(module.name for module in pkgutil.iter_modules(tests.contracts.__path__))
    families = [name for name in names if name.startswith("encoder_cases_")]
    return [
        case
        for family in families
        for case in importlib.import_module(f"tests.contracts.{family}").CASES
    ]
