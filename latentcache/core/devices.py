"""Which device computes: the one rule of the whole project."""

from __future__ import annotations

import re

import torch

from latentcache.errors import ConfigError

#: Devices that encoders run on, as they are written.
DEVICE = re.compile(r"cpu(?::0)?|cuda(?::(0|[1-9][0-9]*))?", re.ASCII)


def resolve_device(
    asked: torch.device | str | None = None, name: str = "device", *, others: bool = False
) -> torch.device:
    """Return the device that was asked for; `auto` or None: cuda if there is a GPU, else cpu.

    Every part of the project decides by this rule. It starts no CUDA, so processes may be forked after.

    asked: auto, cpu, cuda or cuda:N. name: how the user asked, such as `--device`. others: whether
    torch's other devices will do, too; encoders and decoders are tested on cpu and cuda only.

    Raises ConfigError if it is anything else, or a GPU that this machine does not have.
    """
    text = "auto" if asked is None else str(asked)
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return torch.device("cuda" if num_gpus else "cpu")
    match = DEVICE.fullmatch(text)
    if match is not None and (text.startswith("cpu") or int(match[1] or 0) < num_gpus):
        return torch.device(text)
    if match is None and others and (device := _other_device(text)) is not None:
        return device
    problem, fix = "is not a device to be used here", "Give auto, cpu, cuda or cuda:N."
    if match is not None:
        problem, fix = "is not there", "Give cpu or auto, or use a machine that has it."
    raise ConfigError(f"{name}={text!r} {problem}: {_gpus_in_words(num_gpus)}. {fix}")


def _other_device(text: str) -> torch.device | None:
    """Return a device of torch's that is neither the CPU nor a GPU of CUDA; None if it is not here."""
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):
        return None
    return device


def _gpus_in_words(num_gpus: int) -> str:
    if num_gpus:
        return f"this machine has {', '.join(f'cuda:{n}' for n in range(num_gpus))}"
    return f"torch {torch.__version__} sees no CUDA GPU on this machine"
