"""Figures on the way to TensorBoard or Weights & Biases: those of a run, and those of a loader."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from latentcache.errors import ConfigError

log = logging.getLogger(__name__)

#: Figures are written this often, and at the end.
INTERVAL_S = 5.0


class Sink(Protocol):
    """Where figures go."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write figures of one moment. step: clips done, or batches."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in a folder, for `tensorboard --logdir`."""

    def __init__(self, folder: str, name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(f"{folder}/{name}")

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write figures of one moment."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Wandb:
    """The process's own run of Weights & Biases if it has one, such as a trainer's; else one of a project.

    Figures of a trainer's run come with its next ones, under its own step. `WANDB_MODE=offline` keeps a
    run on this machine.
    """

    def __init__(self, project: str, name: str) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._is_own = wandb.run is None
        self._run = wandb.run or wandb.init(project=project, name=name, job_type="latentcache")

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write figures of one moment."""
        if self._is_own:
            self._run.log(dict(values), step=step)
        else:
            self._run.log(dict(values), commit=False)

    def close(self) -> None:
        """Send what is left."""
        if self._is_own:
            self._run.finish()


#: A setting -> what it needs to be installed, and the sink.
SINKS: dict[str, tuple[str, type[TensorBoard] | type[Wandb]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", Wandb),
}


def check_installed(name: str, said: str) -> None:
    """Raise ConfigError if the package of a sink is not installed. said: the setting, for users."""
    package, _ = SINKS[name]
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{said} is set, but the package {package} cannot be imported ({error}), so no figures "
            f"could be written. Install it (`pip install {package}`), or leave {said} out."
        ) from error


def open_sink(name: str, said: str, place: str, run: str) -> Sink:
    """Open a sink. place: a folder or project; run: a name in it. Raises ConfigError."""
    try:
        return SINKS[name][1](place, run)
    except Exception as error:
        raise ConfigError(
            f"{said} cannot be opened ({error}), so no figures could be written. Nothing was done yet. "
            f"Correct {said}, or leave it out."
        ) from error


class Sinks:
    """Sinks by the setting that asked for them. One that fails is said once, and fails nothing."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = dict(sinks)

    def __bool__(self) -> bool:
        return bool(self._sinks)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write figures of one moment to each."""
        self._each("add", values, step)

    def close(self) -> None:
        """Write what each still holds."""
        self._each("close")

    def _each(self, method: str, *arguments: Any) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:  # noqa: BLE001 - of other packages: none may stop a run or a trainer
                log.warning("%s: %s; nothing more is written there", name, error)
                del self._sinks[name]
