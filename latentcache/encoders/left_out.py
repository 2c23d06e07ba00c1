"""Weights that a model was made without, since its config says less than they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import torch

_LISTS = (torch.nn.ModuleList, torch.nn.Sequential)


def left_out(model: torch.nn.Module, names: Iterable[str], prefix: str = "") -> list[str]:
    """Return those of the names of tensors that are of parts of a model, which yet did not take them.

    They are of blocks past the end of its lists, or are further weights of layers that it has, such as a
    bias. What is of other parts, such as a head or a decoder, may be left out.

    prefix: what names may begin with or not, those of the model as well as those of the tensors.
    """
    modules = {name.removeprefix(prefix): module for name, module in model.named_modules()}
    lengths = {name: len(module) for name, module in modules.items() if isinstance(module, _LISTS)}
    layers = {
        name
        for name, module in modules.items()
        if any(True for _ in module.parameters(recurse=False))
    }
    return sorted(
        name
        for name in names
        if _is_past_the_end(name.removeprefix(prefix), lengths)
        or _is_of_a_layer(name.removeprefix(prefix), layers)
    )


def _is_past_the_end(name: str, lengths: Mapping[str, int]) -> bool:
    parts = name.split(".")
    return any(
        part.isdecimal() and int(part) >= lengths.get(".".join(parts[:i]), int(part) + 1)
        for i, part in enumerate(parts)
    )


def _is_of_a_layer(name: str, layers: Collection[str]) -> bool:
    """Whether it is a weight, and not a buffer that older versions kept."""
    owner, _, last = name.rpartition(".")
    return owner in layers and last.startswith(("weight", "bias"))
