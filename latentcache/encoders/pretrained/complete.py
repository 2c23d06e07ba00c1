"""Whether a model that transformers loaded has all of its weights, and has them from its files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from latentcache.encoders.pretrained.files import Component
from latentcache.errors import EncoderError

_LISTS = (torch.nn.ModuleList, torch.nn.Sequential)


def check_complete(component: Component, model: Any, info: Mapping[str, Any]) -> None:
    """Raise EncoderError if tensors of a model would stay random, or its config leaves out parts of it.

    info: what transformers says of the loading.
    """
    missing = [name for name in info["missing_keys"] if not name.startswith(component.unused)]
    _check_none_random(component, model, "missing", missing)
    mismatched = [name for name, *_ in info["mismatched_keys"]]
    _check_none_random(component, model, "mismatched", mismatched)
    if names := left_out(model, info["unexpected_keys"]):
        raise EncoderError(
            f"{component.name}: the config.json in {component.folder} makes a {type(model).__name__} that "
            f"is smaller than its weights: it leaves out {len(names)} of their tensors, such as "
            f"{names[0]}. The states would be another model's. The files are of different models: download "
            "the model again."
        )


def left_out(model: Any, names: Iterable[str]) -> list[str]:
    """Return those of the names of tensors that are of parts of a model, which yet did not take them.

    They are of blocks past the end of its lists, or are further weights of layers that it has, such as a
    bias. What is of other parts, such as a head or a decoder, may be left out.
    """
    prefix = f"{model.base_model_prefix}."  # a whole model's names have it, and those of its base have not
    modules = {name.removeprefix(prefix): module for name, module in model.named_modules()}
    lengths = {name: len(module) for name, module in modules.items() if isinstance(module, _LISTS)}
    layers = {
        name for name, module in modules.items() if any(True for _ in module.parameters(False))
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


def _check_none_random(component: Component, model: Any, what: str, names: list[str]) -> None:
    if names:
        raise EncoderError(
            f"{component.name}: as a {type(model).__name__}, the weights in {component.folder} have "
            f"{len(names)} {what} keys, such as {min(names)}. They would stay random, and the states "
            "would be nonsense. The files are of different models: download the model again."
        )
