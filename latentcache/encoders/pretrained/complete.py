"""Whether a model that transformers loaded has all of its weights, and has them from its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentcache.encoders.left_out import left_out
from latentcache.encoders.pretrained.files import Component
from latentcache.errors import EncoderError


def check_complete(component: Component, model: Any, info: Mapping[str, Any]) -> None:
    """Raise EncoderError if tensors of a model would stay random, or its config leaves out parts of it.

    info: what transformers says of the loading.
    """
    missing = [name for name in info["missing_keys"] if not name.startswith(component.unused)]
    _check_none_random(component, model, "missing", missing)
    mismatched = [name for name, *_ in info["mismatched_keys"]]
    _check_none_random(component, model, "mismatched", mismatched)
    # The names of a whole model's tensors begin with it, and those of its base's do not.
    prefix = f"{model.base_model_prefix}."
    if names := left_out(model, info["unexpected_keys"], prefix):
        raise EncoderError(
            f"{component.name}: the config.json in {component.folder} makes a {type(model).__name__} that "
            f"is smaller than its weights: it leaves out {len(names)} of their tensors, such as "
            f"{names[0]}. The states would be another model's. The files are of different models: download "
            "the model again."
        )


def _check_none_random(component: Component, model: Any, what: str, names: list[str]) -> None:
    if names:
        raise EncoderError(
            f"{component.name}: as a {type(model).__name__}, the weights in {component.folder} have "
            f"{len(names)} {what} keys, such as {min(names)}. They would stay random, and the states "
            "would be nonsense. The files are of different models: download the model again."
        )
