"""The one place that imports diffusers: its version, its classes, their defaults, and models of them."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latentcache.core.machine import install_command
from latentcache.encoders.diffusers.facts import ModelClass, ModelFacts, Settings
from latentcache.encoders.diffusers.weights import ModelFiles
from latentcache.encoders.left_out import left_out
from latentcache.errors import ConfigError, EncoderError

#: Sizes, strides and channels of models are far below it.
MAX_NUMBER = 1 << 20


def packages() -> Mapping[str, str]:
    """Return the versions that the latents depend on."""
    return {"diffusers": importlib.metadata.version("diffusers")}


def check_installed(model_class: ModelClass) -> None:
    """Raise ConfigError if the installed diffusers is older than a class."""
    installed = packages()["diffusers"]
    if _release(installed) < _release(model_class.since):
        raise ConfigError(
            f"encoder.model: the installed diffusers {installed} has no {model_class.name}; "
            f"version {model_class.since} is the first that has it. "
            f"Run: pip install 'diffusers>={model_class.since}'"
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def settings(files: ModelFiles, class_name: str) -> Settings:
    """Return the model's files as `Settings`; the class is imported only for a key that is missing."""

    def setting(key: str) -> Any:
        if key in files.config:
            return _checked(files.config[key])
        try:
            return _class_defaults(class_name)[key]
        except KeyError:
            raise _unknown(class_name, f"has no setting {key}") from None

    return Settings(setting=setting, tensor=files.tensor)


def _checked(value: Any) -> Any:
    """Return a value of a config. Raises ValueError for numbers with which no power could be worked out."""
    if isinstance(value, list):
        return [_checked(one) for one in value]
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError(f"a number beyond {MAX_NUMBER}")
    return value


def load_model(
    files: ModelFiles, model_class: ModelClass, facts: ModelFacts, dtype: torch.dtype
) -> Any:
    """Load a model whose attributes and arguments are those of its recipe. Raises EncoderError."""
    vae = load_class(files.folder, model_class.name, dtype, is_safetensors=files.is_safetensors)
    for name, value in facts.attributes.items():
        if not hasattr(vae, name):
            raise _unknown(model_class.name, f"has no attribute {name}")
        setattr(vae, name, value)
    _check_arguments(vae, model_class)
    if model_class.prepare is not None:
        model_class.prepare(vae)
    return vae


def load_class(
    folder: Path,
    class_name: str,
    dtype: torch.dtype,
    *,
    is_safetensors: bool = True,
    variant: str | None = None,
) -> Any:
    """Load a model for inference.

    Raises EncoderError, also if tensors would stay random, or the config leaves out parts of the weights.

    variant: of the weight files' names, such as fp16.
    """
    try:
        vae, info = _diffusers_class(class_name).from_pretrained(
            str(folder),
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=is_safetensors,
            variant=variant,
            low_cpu_mem_usage=False,  # True needs accelerate
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"{class_name} in {folder} cannot be loaded: {type(error).__name__}: {reason} "
            "Check that config.json and the weights are of the same model, and download it again."
        ) from error
    if info["missing_keys"]:
        raise EncoderError(
            f"{class_name} in {folder}: the weights lack {len(info['missing_keys'])} tensors "
            f"that config.json asks for, such as {info['missing_keys'][0]}. They would stay "
            "random, and the latents would be nonsense. The files are of different models: "
            "download the model again."
        )
    if names := left_out(vae, info["unexpected_keys"]):
        raise EncoderError(
            f"{class_name} in {folder}: config.json makes a model that is smaller than its weights: it "
            f"leaves out {len(names)} of their tensors, such as {names[0]}. The latents would be another "
            "model's. The files are of different models: download the model again."
        )
    return vae.eval().requires_grad_(False)


@functools.cache
def _class_defaults(class_name: str) -> Mapping[str, Any]:
    return _defaults(_diffusers_class(class_name).__init__)


def _defaults(function: Any) -> Mapping[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _check_arguments(vae: Any, model_class: ModelClass) -> None:
    for method, expected in model_class.arguments.items():
        actual = _defaults(getattr(vae, method))
        for name, value in expected.items():
            if actual.get(name) != value:
                raise _unknown(
                    model_class.name, f"has {actual.get(name)} for {name} of {method}, not {value}"
                )


def _unknown(name: str, what: str) -> EncoderError:
    return EncoderError(
        f"{name} of diffusers {packages()['diffusers']} {what}, so its chunking is not known to be "
        f"what the recipe says. Run: {install_command('diffusers')}"
    )


def _diffusers_class(class_name: str) -> Any:
    import diffusers

    try:
        return getattr(diffusers, class_name)
    except AttributeError:
        raise ConfigError(
            f"diffusers {diffusers.__version__} has no {class_name}. "
            "Run: pip install --upgrade diffusers"
        ) from None
