"""Describes, loads and runs an autoencoder of diffusers by the record of its class.

The kinds `diffusers_video` and `diffusers_image` are this module with their own tables of classes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from latentcache.config.base import Section
from latentcache.core.machine import install_command
from latentcache.core.spec import LatentSpec, Normaliser, Stored
from latentcache.encoders import kernels
from latentcache.encoders.checks import check_encoded, check_ids, check_latents, check_pixels
from latentcache.encoders.diffusers.facts import ModelClass, ModelFacts, Settings
from latentcache.encoders.diffusers.streams import STREAMS
from latentcache.encoders.diffusers.weights import ModelFiles, locate
from latentcache.encoders.inference import exact_kernels
from latentcache.encoders.kernels import Kernels
from latentcache.encoders.streaming import check_stream, regroup
from latentcache.encoders.values import check_values, from_range, to_range
from latentcache.errors import ConfigError, EncoderError, did_you_mean


class ModelSection(Section):
    """What the encoders of diffusers have in common. Nothing that changes the latents has a default."""

    model: str = Field(
        min_length=1, description="A folder, or an id on the Hugging Face hub, of the model."
    )
    subfolder: str | None = Field(
        default=None, description="Folder in it that holds config.json; `vae` for a whole pipeline."
    )
    revision: str | None = Field(
        default=None, description="For hub ids: branch, tag or commit; omitted: the newest."
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        description="What the encoder computes in. float32 is exact: no TF32 on GPUs, unless `tf32` is set."
    )
    store: Stored = Field(
        description="moments: mean and log-variance; mean: only the mean, or the latents of a model "
        "without a posterior; sample: one sample, seeded by the clip's key; ids: the ids of a model that "
        "quantises."
    )
    memory_format: Literal["contiguous", "channels_last", "auto"] = Field(
        default="contiguous",
        description="How pixels and weights lie in memory. auto: channels_last for 16-bit dtypes, which is "
        "faster on CPUs; contiguous for float32. It changes last bits.",
    )
    compile: bool = Field(
        default=False,
        description="Whether torch.compile runs the encoder, once for each size and batch. It changes last "
        "bits.",
    )
    tf32: bool = Field(
        default=False,
        description="Whether float32 may be computed in TF32 on GPUs, which keeps 10 bits of 23.",
    )

    def kernels(self) -> Kernels:
        """Return what is chosen of kernels. Raises ConfigError."""
        return kernels.choose(
            self.memory_format, compiled=self.compile, tf32=self.tf32, dtype=self.dtype
        )


@dataclass(frozen=True, kw_only=True)
class Located:
    """A model's files, its class, and the facts about it."""

    files: ModelFiles
    model_class: ModelClass
    facts: ModelFacts
    pixel_range: tuple[float, float]


def locate_model(
    config: ModelSection,
    kind: str,
    classes: Mapping[str, ModelClass],
    pixel_range: tuple[float, float] | None = None,
) -> Located:
    """Return a model's files and facts; loads nothing but small buffers. Raises ConfigError.

    pixel_range: what the configuration says; for classes whose models differ in it.
    """
    files = locate(config.model, config.subfolder, config.revision)
    name = str(files.config.get("_class_name"))
    if name not in classes:
        raise ConfigError(
            f"encoder.model: {config.model!r} is of class {name}. The kind {kind} does not know that "
            f"class, nor what it does to frames.{did_you_mean(name, classes)} "
            f"Known classes: {', '.join(classes)}."
        )
    model_class = classes[name]
    _check_installed(model_class)
    facts = model_class.facts(_settings(files, name))
    config.kernels()
    if config.store not in facts.stores:
        raise ConfigError(
            f"encoder.store: this {name} has no {config.store} to store. "
            f"Set encoder.store to {' or '.join(facts.stores)}."
        )
    return Located(
        files=files,
        model_class=model_class,
        facts=facts,
        pixel_range=_pixel_range(name, facts, pixel_range),
    )


def describe(located: Located, config: ModelSection, kind: str, dtype: str) -> LatentSpec:
    """Return the spec from config.json and the hash of the weights, which are not loaded."""
    facts = located.facts
    ids = facts.ids if config.store == "ids" else None
    return LatentSpec(
        encoder=kind,
        model_class=located.model_class.name,
        channels=facts.channels if ids is None else 1,
        stride=facts.stride,
        frame_rule=facts.frame_rule,
        stored=config.store,
        dtype=dtype if ids is None else ids.dtype,
        compute_dtype=config.dtype,
        normaliser=facts.normaliser if ids is None else Normaliser(),
        pixel_range=located.pixel_range,
        pixel_layout="BCHW" if facts.stride[0] == 1 else "BCTHW",
        exactness=facts.exactness,
        weights_sha256=located.files.weights_sha256(),
        ids=ids,
        size_rules=facts.size_rules,
        packages=packages(),
    )


def identity(located: Located, config: ModelSection, kind: str) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; the model's location is not part of it."""
    return {
        "kind": kind,
        "model_class": located.model_class.name,
        "weights_sha256": located.files.weights_sha256(),
        "model_config_sha256": located.files.config_sha256(),
        "dtype": config.dtype,
        "attributes": dict(located.facts.attributes),
        "arguments": {name: dict(values) for name, values in located.model_class.arguments.items()},
        "pixel_range": list(located.pixel_range),
        "store": config.store,
        "packages": dict(packages()),
        **config.kernels().identity(),
    }


def build(
    located: Located, config: ModelSection, spec: LatentSpec, device: torch.device
) -> DiffusersEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError.

    The files are hashed again here: a worker may see other files than the planner did.
    """
    files, model_class = located.files, located.model_class
    if files.weights_sha256() != spec.weights_sha256:
        raise EncoderError(
            f"the weights in {files.folder} have the SHA-256 {files.weights_sha256()}, but the "
            f"cache is made with {spec.weights_sha256}: latents of two models would be mixed. Put "
            "the same weights on every machine; for a hub id set encoder.revision to a commit."
        )
    dtype = getattr(torch, config.dtype)
    vae = load_class(files.folder, model_class.name, dtype, is_safetensors=files.is_safetensors)
    for name, value in located.facts.attributes.items():
        if not hasattr(vae, name):
            raise _unknown(model_class.name, f"has no attribute {name}")
        setattr(vae, name, value)
    _check_arguments(vae, model_class)
    if model_class.prepare is not None:
        model_class.prepare(vae)
    chosen = config.kernels()
    # Groups of frames have the bits of the whole clip with the model's own kernels.
    streams = (model_class.name in STREAMS or spec.stride[0] == 1) and chosen == kernels.PLAIN
    encoder_class = StreamingDiffusersEncoder if streams else DiffusersEncoder
    return encoder_class(vae.to(device), located, spec, device, chosen)


def packages() -> Mapping[str, str]:
    """Return the versions that the latents depend on."""
    return {"diffusers": importlib.metadata.version("diffusers")}


def _check_installed(model_class: ModelClass) -> None:
    installed = packages()["diffusers"]
    if _release(installed) < _release(model_class.since):
        raise ConfigError(
            f"encoder.model: the installed diffusers {installed} has no {model_class.name}; "
            f"version {model_class.since} is the first that has it. "
            f"Run: pip install 'diffusers>={model_class.since}'"
        )


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _pixel_range(
    name: str, facts: ModelFacts, configured: tuple[float, float] | None
) -> tuple[float, float]:
    if facts.pixel_range is None:
        if configured is None:
            raise ConfigError(
                f"encoder.pixel_range: required for {name}, because its models differ in it and their "
                "config.json does not say so. Set [0, 1] for aMUSEd's, and [-1, 1] for those of "
                "Kandinsky 2 and latent diffusion."
            )
        return configured
    if configured not in (None, facts.pixel_range):
        raise ConfigError(
            f"encoder.pixel_range: {name} takes {list(facts.pixel_range)}. Remove encoder.pixel_range."
        )
    return facts.pixel_range


def _settings(files: ModelFiles, class_name: str) -> Settings:
    """Return the model's files as `Settings`; the class is imported only for a key that is missing."""

    def setting(key: str) -> Any:
        if key in files.config:
            return files.config[key]
        try:
            return _class_defaults(class_name)[key]
        except KeyError:
            raise _unknown(class_name, f"has no setting {key}") from None

    return Settings(setting=setting, tensor=files.tensor)


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


def load_class(
    folder: Path, class_name: str, dtype: torch.dtype, *, is_safetensors: bool = True
) -> Any:
    """Load a model for inference. Raises EncoderError, also if tensors would stay random."""
    try:
        vae, info = _diffusers_class(class_name).from_pretrained(
            str(folder),
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=is_safetensors,
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
    return vae.eval().requires_grad_(False)


class DiffusersEncoder:
    """An autoencoder of diffusers on its device, used as diffusers' own pipelines use it."""

    #: `encode` takes pixels on its device as well.
    takes_device_pixels = True

    def __init__(
        self,
        vae: Any,
        located: Located,
        spec: LatentSpec,
        device: torch.device,
        chosen: Kernels = kernels.PLAIN,
    ) -> None:
        self.spec = spec
        self.kernels = chosen
        self._vae = vae
        self._class = located.model_class
        # Mean and log-variance, whichever of them is stored.
        self._encoded_channels = spec.channels * (2 if "moments" in located.facts.stores else 1)
        self._device = device
        self._dtype: torch.dtype = getattr(torch, spec.compute_dtype)
        # A tensor: CUDA divides by a number by multiplying with its reciprocal, one ulp off the CPU.
        self._white = torch.tensor(255.0, device=device)
        if chosen.compile:
            kernels.compile_encoder(vae, spec.model_class)
        if chosen.memory_format != "contiguous":
            kernels.lay_out(vae, chosen.memory_format)

    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels to what the model itself gives, bit for bit.

        Moments [B, 2C, t, h, w]; [B, C, t, h, w] if it has no posterior; or ids [B, t, h, w].
        """
        return self.encode_masked(pixels_BTHWC, ())

    @torch.inference_mode()
    def encode_masked(self, pixels_BTHWC: torch.Tensor, zeros: Sequence[bool]) -> torch.Tensor:
        """Encode with some of the T frames 0.0 in the model's range, as its pipelines make conditions."""
        return self._encode(pixels_BTHWC, zeros, self.kernels)

    @torch.inference_mode()
    def encode_plain(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode with the kernels of the model's own call, whatever the recipe chooses: for comparing."""
        relaid = self.kernels.memory_format != "contiguous"
        if relaid:
            kernels.lay_out(self._vae, "contiguous")
        try:
            with kernels.uncompiled() if self.kernels.compile else contextlib.nullcontext():
                return self._encode(pixels_BTHWC, (), kernels.PLAIN)
        finally:
            if relaid:
                kernels.lay_out(self._vae, self.kernels.memory_format)

    def _encode(
        self, pixels_BTHWC: torch.Tensor, zeros: Sequence[bool], chosen: Kernels
    ) -> torch.Tensor:
        thw = check_pixels(self.spec, pixels_BTHWC)
        pixels = self._to_model_range(pixels_BTHWC, chosen)
        if any(zeros):
            pixels[:, :, torch.tensor(zeros)] = 0
        return self._encode_range(pixels, thw, chosen)

    @torch.inference_mode()
    def encode_values(self, values_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode values [B, T, H, W, 3] in [-1, 1] to what `encode` gives."""
        thw = check_values(self.spec, values_BTHWC)
        values = to_range(values_BTHWC, self.spec, self._device, self._dtype)
        values = kernels.laid_out(values, self.kernels.memory_format)
        return self._encode_range(values, thw, self.kernels)

    def _encode_range(
        self, pixels: torch.Tensor, thw: tuple[int, int, int], chosen: Kernels
    ) -> torch.Tensor:
        """Encode pixels [B, 3, T, H, W] in the model's range and dtype."""
        compiled = kernels.compiled(self.spec.model_class)
        with self._model(chosen) as vae, compiled if chosen.compile else contextlib.nullcontext():
            try:
                encoded = self._class.encode(vae, pixels, self.spec.stored)
            except NotImplementedError as error:  # torch's, for a dtype that a device lacks
                raise EncoderError(
                    f"{self.spec.model_class} cannot compute in {self.spec.compute_dtype} on "
                    f"{self._device}: {error}. Set encoder.dtype: float32, or use a GPU."
                ) from error
        channels = () if self.spec.ids is not None else (self._encoded_channels,)
        check_encoded(self.spec, encoded, (len(pixels), *channels, *thw))
        return encoded

    @torch.inference_mode()
    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode un-normalised latents, or ids, to uint8 pixels [B, T, H, W, 3] on the CPU."""
        values_BCTHW = self._decode(latents_BCthw)
        # Arithmetic of VideoProcessor: to [0, 1] in the model's dtype, to levels in float32.
        if self.spec.pixel_range == (-1.0, 1.0):
            values_BCTHW = values_BCTHW * 0.5 + 0.5
        levels = values_BCTHW.clamp(0, 1).float().mul_(255).round_()
        pixels: torch.Tensor = levels.to(torch.uint8).permute(0, 2, 3, 4, 1)
        return pixels.contiguous().cpu()

    @torch.inference_mode()
    def decode_values(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode un-normalised latents, or ids, to float32 [B, T, H, W, 3], clamped to [-1, 1]."""
        return from_range(self._decode(latents_BCthw), self.spec)

    def _decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Return the model's own output [B, 3, T, H, W]."""
        if self.spec.ids is not None:
            latents = check_ids(self.spec, latents_BCthw).to(self._device)
        else:
            check_latents(self.spec, latents_BCthw)
            latents = latents_BCthw.to(self._device, self._dtype)
        with self._model(self.kernels) as vae:
            return self._class.decode(vae, latents)

    def _to_model_range(
        self, pixels_BTHWC: torch.Tensor, chosen: Kernels = kernels.PLAIN
    ) -> torch.Tensor:
        """Return [B, 3, T, H, W] in the chosen memory format: x / 255, or 2 * (x / 255) - 1, in float32."""
        pixels = pixels_BTHWC.to(self._device)  # blocking, because callers reuse their buffers
        values = kernels.laid_out(pixels.permute(0, 4, 1, 2, 3), chosen.memory_format)
        values = values.to(torch.float32).div_(self._white)
        if self.spec.pixel_range == (-1.0, 1.0):
            values = values.mul_(2.0).sub_(1.0)
        return values.to(self._dtype)

    @contextlib.contextmanager
    def _model(self, chosen: Kernels) -> Iterator[Any]:
        """Lend the model, with deterministic kernels and true float32; an error leaves no state behind."""
        try:
            with exact_kernels(self._device, tf32=chosen.tf32):
                yield self._vae
        finally:
            if self._class.reset is not None:
                self._class.reset(self._vae)


class StreamingDiffusersEncoder(DiffusersEncoder):
    """One that takes a clip in groups of frames: those of `streams`, and classes that encode each frame."""

    def stream(self, groups: Iterable[torch.Tensor], frames: int) -> Iterator[torch.Tensor]:
        """Encode a clip in groups of frames; yields what `encode` gives, in pieces along time."""
        checked = check_stream(self.spec, groups, frames)
        how = STREAMS.get(self._class.name)
        if how is None:
            yield from map(self.encode, regroup(checked, frames, 1, 1))
            return
        regrouped = regroup(checked, frames, *how.sizes(frames))
        running = how.run(self._vae, map(self._to_model_range, regrouped))
        try:
            while True:
                with exact_kernels(self._device):  # not while the caller has its turn
                    piece = next(running, None)
                if piece is None:
                    return
                yield piece
        finally:
            running.close()
            if self._class.reset is not None:
                self._class.reset(self._vae)
