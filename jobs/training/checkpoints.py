"""Checkpoints of the trainer: a folder each, whole under its name or not there at all.

step-00000050/checkpoint.json   step, world size, settings and the loader's state
step-00000050/weights.pt        the tensors of the model and of the optimiser
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentcache.core.json_text import OTHER_SHAPE, parse_json
from latentcache.core.regular_files import read_regular
from latentcache.errors import CorruptionError, StorageError

#: A kill or a damaged disk costs one, and there is the one before.
NUM_KEPT = 2
FACTS, WEIGHTS = "checkpoint.json", "weights.pt"
NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything of a checkpoint but its tensors. step: those that were taken; loader: its state."""

    step: int
    world_size: int
    settings: Mapping[str, Any]
    loader: Mapping[str, Any]


def save(folder: Path, facts: Facts, weights: Mapping[str, Any]) -> Path:
    """Write a checkpoint, remove the older ones but NUM_KEPT, and return its path.

    Raises StorageError where the folder cannot be written.
    """
    path = folder / f"step-{facts.step:08d}"
    part = path.with_name(path.name + ".tmp")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / FACTS).write_text(json.dumps(dataclasses.asdict(facts)))
        torch.save(dict(weights), part / WEIGHTS)
        _sync(part / FACTS, part / WEIGHTS)
        part.replace(path)
        _remove_old(folder)
    except (OSError, RuntimeError) as error:
        raise StorageError(
            f"cannot write the checkpoint {path}: {error}. Those before it are whole. Make room, or "
            "move them to another folder and name it with --checkpoint-dir."
        ) from None
    return path


def _sync(*paths: Path) -> None:
    """Have the bytes on the disk before the name says so, also where the power fails."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _remove_old(folder: Path) -> None:
    """Remove what is not among the newest, and what writers that were killed have left.

    A folder loses its name first: while it is being removed, it is no checkpoint.
    """
    for path in complete(folder)[:-NUM_KEPT]:
        path.replace(path.with_name(path.name + ".tmp"))
    for path in folder.glob("step-*.tmp"):
        shutil.rmtree(path)


def complete(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the oldest first; none where there is no folder."""
    return sorted(path for path in folder.glob("step-*") if NAME.fullmatch(path.name))


def load(path: Path) -> tuple[Facts, dict[str, Any]]:
    """Read a checkpoint; its tensors are on the CPU. Raises CorruptionError where it is damaged."""
    try:
        facts = Facts(**parse_json(read_regular(path / FACTS)))
        return facts, torch.load(path / WEIGHTS, map_location="cpu", weights_only=True)
    except (OSError, *OTHER_SHAPE, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorruptionError(
            f"the checkpoint {path} is damaged: {first}. Remove the folder: training goes on from the "
            "one before, or from the start where there is none."
        ) from None
