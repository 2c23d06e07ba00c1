"""The folders of a checkpoint: `text_encoder/`, `tokenizer/` and so on, found and hashed, not loaded."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from latentcache.core.json_text import parse_json
from latentcache.core.regular_files import read_regular
from latentcache.encoders.checkpoint import file_sha256
from latentcache.errors import ConfigError, EncoderError

_Read = TypeVar("_Read")
_CONFIG = "config.json"
_INDEX = "model_index.json"
_WEIGHTS = ".safetensors"
#: How names of weight files begin: of transformers, and of diffusers.
_DIFFUSERS = "diffusion_pytorch_model"
_STEMS = ("model", _DIFFUSERS)
#: Files that say nothing of how text is cut into tokens, or pixels are scaled, where a folder has all.
_NOT_A_TOKENIZERS = frozenset({_CONFIG, _INDEX, "generation_config.json"})
#: What files of tokenizers and of image processors end in.
_SMALL = frozenset({".json", ".jinja", ".model", ".spm", ".tiktoken", ".txt"})


@dataclass(frozen=True, kw_only=True)
class Component:
    """One folder of a checkpoint. `class_name` is what model_index.json says it holds, if it does.

    unused: how names of tensors begin on which nothing depends that is asked of the model. The weights may
    lack them.
    """

    name: str
    folder: Path
    class_name: str | None
    variant: str | None = None
    unused: tuple[str, ...] = ()

    def config(self) -> Mapping[str, Any]:
        """Return config.json. Raises ConfigError."""
        return _json(self.folder / _CONFIG, self.name)

    def weights(self) -> tuple[Path, ...]:
        """Return the weight files, sorted. Raises ConfigError unless they are whole and safetensors."""
        middle = f".{self.variant}" if self.variant else ""
        found = tuple(self._weights_named(middle))
        absent = [path.name for path in found if not path.is_file()]
        if absent or not found:
            raise ConfigError(
                f"{self.name}: {self.folder} lacks {', '.join(absent) or 'weights'}, so there is nothing "
                "to load. Download the whole model. If its weights are .bin files, load and save them "
                "once with transformers, which writes safetensors."
            )
        return found

    def _weights_named(self, middle: str) -> list[Path]:
        """Return the files that transformers and diffusers would load, whether or not they exist."""
        for stem in _STEMS:
            whole = self.folder / f"{stem}{middle}{_WEIGHTS}"
            index = self.folder / f"{stem}{_WEIGHTS}.index{middle}.json"
            # Of both, diffusers loads the files of the index, and transformers the whole one.
            if index.is_file() and (stem == _DIFFUSERS or not whole.is_file()):
                names = set(_json(index, self.name).get("weight_map", {}).values())
                return [self.folder / str(name) for name in sorted(names)]
            if whole.is_file():
                return [whole]
        return [self.folder / f"{_STEMS[0]}{middle}{_WEIGHTS}"]

    def weights_sha256(self) -> str:
        """Return the SHA-256 of the weight file, or of the list of the digests of several files."""
        digests = [file_sha256(path) for path in self.weights()]
        return digests[0] if len(digests) == 1 else _sha256("\n".join(digests))

    def config_sha256(self) -> str:
        """Return the SHA-256 of what config.json says about the model, without where it came from."""
        content = {key: value for key, value in self.config().items() if not key.startswith("_")}
        return _sha256(json.dumps(content, sort_keys=True))

    def files_sha256(self) -> str:
        """Return the SHA-256 of the names and digests of a tokenizer's or a processor's files.

        Raises ConfigError if there are none.
        """
        files = [path for path in sorted(self.folder.iterdir()) if _is_small(path)]
        if not files:
            raise ConfigError(
                f"{self.name}: {self.folder} holds no tokenizer or processor files. Download the whole "
                "model."
            )
        return _sha256("\n".join(f"{path.name} {file_sha256(path)}" for path in files))

    def tensors_named(self, ends: tuple[str, ...]) -> dict[str, Any]:
        """Read the tensors whose names end in one of `ends`, and nothing else. Raises EncoderError."""
        return self._read(lambda file, name: file.get_tensor(name), ends)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors by name, from the files' headers. Raises EncoderError."""
        return self._read(lambda file, name: tuple(file.get_slice(name).get_shape()))

    def _read(
        self, read: Callable[[Any, str], _Read], ends: tuple[str, ...] = ("",)
    ) -> dict[str, _Read]:
        """Return what `read` takes from an open weight file of each tensor whose name ends in `ends`."""
        from safetensors import SafetensorError, safe_open  # it comes with transformers

        found: dict[str, _Read] = {}
        for path in self.weights():
            try:
                with safe_open(str(path), framework="pt") as file:
                    names = [key for key in file.keys() if key.endswith(ends)]  # noqa: SIM118 - no dict
                    found |= {name: read(file, name) for name in names}
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                raise EncoderError(
                    f"{self.name}: {path} cannot be read: {type(error).__name__}: {error} Download the "
                    "model again."
                ) from error
        return found


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder as diffusers saves pipelines; `folders` names components that lie elsewhere.

    unused: the `unused` of components, by name.
    """

    model: Path | None
    folders: Mapping[str, Path]
    variant: str | None = None
    unused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @functools.cached_property
    def index(self) -> Mapping[str, Any]:
        """Return model_index.json, or nothing where there is none."""
        if self.model is None or not (self.model / _INDEX).is_file():
            return {}
        return _json(self.model / _INDEX, "model")

    def component(self, name: str) -> Component:
        """Return one component. Raises ConfigError if its folder is not there."""
        folder = self.folders.get(name)
        named = self.index.get(name)
        if folder is None:
            if self.model is None:
                raise ConfigError(
                    f"folders.{name}: required where `model` is not set. Name the folder that holds it, or "
                    "set `model` to a folder that has one of that name, as diffusers saves pipelines."
                )
            folder = self.model / name
        if not folder.is_dir():
            raise ConfigError(
                f"{name}: there is no folder {str(folder)!r} on this machine. Download the model to every "
                f"machine that encodes, or name the folder that holds it in folders.{name}."
            )
        # It is of the folder in `model`, not of another one.
        is_named = name not in self.folders and isinstance(named, list) and len(named) == 2
        class_name = str(named[1]) if named and is_named else None
        return Component(
            name=name,
            folder=folder,
            class_name=class_name,
            variant=self.variant,
            unused=self.unused.get(name, ()),
        )


def _json(path: Path, name: str) -> Mapping[str, Any]:
    try:
        content = parse_json(read_regular(path))
    except FileNotFoundError:
        raise ConfigError(
            f"{name}: {path.parent} holds no {path.name}. Download the whole model."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: {path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{name}: {path} is not a JSON object. Download the model again.")
    return content


def _is_small(path: Path) -> bool:
    is_index = path.name.endswith(".index.json") or ".index." in path.name
    return path.suffix in _SMALL and path.name not in _NOT_A_TOKENIZERS and not is_index


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
