"""Finds a diffusers model in a folder or on the hub, hashes its weights, and reads single tensors."""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from latentcache.core.json_text import OTHER_SHAPE, fault_of, parse_json
from latentcache.core.regular_files import read_regular
from latentcache.encoders.checkpoint import TORCHSCRIPT, file_sha256, says_torchscript
from latentcache.errors import ConfigError, EncoderError
from latentcache.storage.urls import redact

CONFIG = "config.json"
#: Names of weight files, whole files first; an index names the files that the weights are split over.
_WHOLE = "diffusion_pytorch_model.safetensors"
_CANDIDATES = (
    _WHOLE,
    f"{_WHOLE}.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
)
_INDEX_SUFFIX = ".index.json"


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model on the local disk: its folder, its config.json and its weight files, sorted."""

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]

    @property
    def is_safetensors(self) -> bool:
        """Whether the weights are safetensors, not a PyTorch pickle."""
        return all(path.suffix == ".safetensors" for path in self.weights)

    def weights_sha256(self) -> str:
        """Return the SHA-256 of the file, or of the list of the digests of several files."""
        digests = [file_sha256(path) for path in self.weights]
        return digests[0] if len(digests) == 1 else _sha256("\n".join(digests).encode())

    def config_sha256(self) -> str:
        """Return the SHA-256 of what config.json says about the model, without where it came from."""
        content = {key: value for key, value in self.config.items() if not key.startswith("_")}
        return _sha256(json.dumps(content, sort_keys=True).encode())

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor of the weights, and nothing else. Raises ConfigError."""
        for path in self.weights:
            found = _read_tensor(path, name)
            if found is not None:
                return found
        raise ConfigError(
            f"encoder.model: the weights in {self.folder} hold no {name}, which normalises the "
            "latents. Download the whole model, or save it with save_pretrained."
        )


def _read_tensor(path: Path, name: str) -> torch.Tensor | None:
    """Return a tensor of a file, or None. Raises EncoderError if the file is damaged."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118 - no dict
        tensors: dict[str, torch.Tensor] = torch.load(
            path, map_location="cpu", mmap=True, weights_only=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        if says_torchscript(error):
            raise EncoderError(f"encoder.model: {path} {TORCHSCRIPT}") from None
        raise EncoderError(
            f"the weights in {path} cannot be read: {type(error).__name__}: {error} "
            "Download the model again."
        ) from error
    return tensors.get(name)


def locate(model: str, subfolder: str | None, revision: str | None) -> ModelFiles:
    """Return the files of a local folder or of a hub id, which is downloaded if needed.

    Raises ConfigError, whose message says what to do.
    """
    root = Path(model).expanduser()
    if root.is_dir():
        if revision is not None:
            raise ConfigError(
                f"encoder.revision is for models on the hub, and encoder.model {model!r} is a "
                "local folder: remove encoder.revision."
            )
        return _read_folder(root / (subfolder or ""), subfolder)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ConfigError(
            f"encoder.model: there is no folder {model!r}. Give a folder that holds {CONFIG}, or "
            "an id on the Hugging Face hub such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
        )
    return _read_folder(_download(model, subfolder, revision), subfolder)


def _read_folder(folder: Path, subfolder: str | None) -> ModelFiles:
    try:
        config = parse_json(read_regular(folder / CONFIG))
    except FileNotFoundError:
        raise _no_config(str(folder), subfolder) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"encoder.model: {folder / CONFIG} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(
            f"encoder.model: {folder / CONFIG} is not a JSON object. Download the model again."
        )
    # An index comes before a whole file, as in diffusers.
    present = [name for name in _CANDIDATES if (folder / name).is_file()]
    present.sort(key=lambda name: (not name.startswith(_WHOLE), not name.endswith(_INDEX_SUFFIX)))
    if not present:
        raise ConfigError(
            f"encoder.model: {folder} holds no {_WHOLE}, so there are no weights to load. Download "
            "the whole model, or save it with save_pretrained."
        )
    weights = [folder / name for name in _shards_of(folder / present[0])]
    for path in weights:
        if not path.is_file():
            raise ConfigError(
                f"encoder.model: {folder / present[0]} names {path.name}, which is not there: the "
                "download is incomplete. Download the model again."
            )
    return ModelFiles(folder=folder, config=config, weights=tuple(weights))


def _shards_of(path: Path) -> list[str]:
    """Return the names of the weight files: those that an index lists, else the file itself."""
    if not path.name.endswith(_INDEX_SUFFIX):
        return [path.name]
    try:
        names = set(parse_json(read_regular(path))["weight_map"].values())
        if elsewhere := [name for name in names if Path(name).name != name or name == ".."]:
            raise ValueError(f"it names {elsewhere[0]!r}, which is in another folder")
        return sorted(names)
    except (OSError, *OTHER_SHAPE) as error:
        raise ConfigError(
            f"encoder.model: {path} is not an index of weights: {fault_of(error)}"
        ) from None


def _download(model: str, subfolder: str | None, revision: str | None) -> Path:
    """Fetch config.json and the weights into the hub's local cache; return their folder."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    fetch = functools.partial(hf_hub_download, model, subfolder=subfolder, revision=revision)
    try:
        folder = Path(fetch(CONFIG)).parent
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise _unreachable(model, CONFIG, error) from None
        raise _no_config(model, subfolder) from None
    except (OSError, ValueError) as error:
        raise _unreachable(model, CONFIG, error) from None
    failure: Exception | None = None
    for name in _CANDIDATES:
        try:
            fetched = Path(fetch(name))
            for shard in _shards_of(fetched):
                if shard != name:
                    fetch(shard)
        except (EntryNotFoundError, OSError, ValueError) as error:
            failure = (
                failure or error
            )  # keep the first one: why the safetensors could not be fetched
        else:
            return folder
    raise _unreachable(model, _WHOLE, failure)


def _no_config(where: str, subfolder: str | None) -> ConfigError:
    fix = (
        f"Correct encoder.subfolder, which is {subfolder!r}."
        if subfolder
        else "For a whole pipeline set encoder.subfolder: vae."
    )
    return ConfigError(
        f"encoder.model: {where} holds no {CONFIG}, so it is not a diffusers model. {fix}"
    )


def _unreachable(model: str, name: str, error: Exception | None) -> ConfigError:
    reason = (redact(str(error)).strip().splitlines() or [""])[0]
    return ConfigError(
        f"encoder.model: {name} of {model!r} is not in the local Hugging Face cache and could not be "
        f"fetched from the hub ({type(error).__name__}: {reason}). It is read as a hub id, because there "
        "is no such folder. Check the id and the network; log in with `hf auth login` if the "
        "model is gated; or download it and set encoder.model to the folder."
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
