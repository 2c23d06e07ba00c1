"""Video autoencoders of diffusers: one adapter, driven by the records of `video_classes`."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from latentcache.config import Section
from latentcache.encoders.checks import check_encoded, check_latents, check_pixels
from latentcache.encoders.video_classes import VIDEO_CLASSES, Settings, VideoClass
from latentcache.encoders.weights import ModelFiles, locate
from latentcache.errors import ConfigError, EncoderError, did_you_mean
from latentcache.records import LatentSpec


class Config(Section):
    """The encoder `diffusers_video`. What changes the latents has no default."""

    kind: Literal["diffusers_video"]
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
        description="What the encoder computes in. float32 is exact: no TF32 on GPUs."
    )
    store: Literal["moments", "mean", "sample"] = Field(
        description="moments: mean and log-variance; mean; or one sample, seeded by the clip's key."
    )


def describe(config: Config, *, dtype: str) -> LatentSpec:
    """Return the spec from config.json and the hash of the weights, which are not loaded."""
    files, video_class = _locate(config)
    settings = _settings(files, video_class.name)
    return LatentSpec(
        encoder=config.kind,
        model_class=video_class.name,
        channels=video_class.channels(settings),
        stride=video_class.stride(settings),
        frame_rule=video_class.frame_rule,
        stored=config.store,
        dtype=dtype,
        compute_dtype=config.dtype,
        normaliser=video_class.normaliser(settings),
        pixel_range=video_class.pixel_range,
        exactness=video_class.exactness,
        weights_sha256=files.weights_sha256(),
        packages=_packages(),
    )


def identity(config: Config) -> Mapping[str, Any]:
    """Return the encoder's part of the recipe; where the model lies is no part of it."""
    files, video_class = _locate(config)
    return {
        "kind": config.kind,
        "model_class": video_class.name,
        "weights_sha256": files.weights_sha256(),
        "model_config_sha256": files.config_sha256(),
        "dtype": config.dtype,
        "attributes": dict(video_class.attributes),
        "store": config.store,
        "packages": dict(_packages()),
    }


def build(config: Config, *, spec: LatentSpec, device: torch.device) -> DiffusersVideoEncoder:
    """Load the weights onto `device`. Raises ConfigError and EncoderError.

    The files are hashed again here: a worker may see other files than the planner did.
    """
    files, video_class = _locate(config)
    if files.weights_sha256() != spec.weights_sha256:
        raise EncoderError(
            f"the weights in {files.folder} have the SHA-256 {files.weights_sha256()}, and the "
            f"cache is made with {spec.weights_sha256}: latents of two models would be mixed. Put "
            "the same weights on every machine; for a hub id set encoder.revision to a commit."
        )
    vae = _load(files, video_class.name, getattr(torch, config.dtype))
    for name, value in video_class.attributes.items():
        if not hasattr(vae, name):
            raise EncoderError(
                f"{video_class.name} of diffusers {_packages()['diffusers']} has no attribute "
                f"{name}, so its chunking is not known to be what the recipe says. "
                "Run: pip install 'latentcache[diffusers]'"
            )
        setattr(vae, name, value)
    return DiffusersVideoEncoder(vae.to(device), video_class, spec, device)


def _locate(config: Config) -> tuple[ModelFiles, VideoClass]:
    files = locate(config.model, config.subfolder, config.revision)
    name = str(files.config.get("_class_name"))
    if name not in VIDEO_CLASSES:
        raise ConfigError(
            f"encoder.model: {config.model!r} is of class {name}, which kind diffusers_video does "
            f"not know, nor what it does to frames.{did_you_mean(name, VIDEO_CLASSES)} "
            f"Known classes: {', '.join(VIDEO_CLASSES)}."
        )
    return files, VIDEO_CLASSES[name]


def _settings(files: ModelFiles, class_name: str) -> Settings:
    """Return a lookup in config.json; the class is imported only for a key that the file lacks."""

    def setting(key: str) -> Any:
        return files.config[key] if key in files.config else _class_defaults(class_name)[key]

    return setting


@functools.cache
def _class_defaults(class_name: str) -> Mapping[str, Any]:
    parameters = inspect.signature(_model_class(class_name).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _model_class(class_name: str) -> Any:
    import diffusers

    try:
        return getattr(diffusers, class_name)
    except AttributeError:
        raise ConfigError(
            f"diffusers {diffusers.__version__} has no {class_name}. "
            "Run: pip install --upgrade 'latentcache[diffusers]'"
        ) from None


def _packages() -> Mapping[str, str]:
    return {"diffusers": importlib.metadata.version("diffusers")}


def _load(files: ModelFiles, class_name: str, dtype: torch.dtype) -> Any:
    """Load a model for inference. Raises EncoderError, also where tensors would stay random."""
    try:
        vae, info = _model_class(class_name).from_pretrained(
            str(files.folder),
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=files.is_safetensors,
            low_cpu_mem_usage=False,  # True needs accelerate
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"{class_name} in {files.folder} cannot be loaded: {type(error).__name__}: {reason} "
            "Check that config.json and the weights are of the same model, and download it again."
        ) from error
    if info["missing_keys"]:
        raise EncoderError(
            f"{class_name} in {files.folder}: the weights lack {len(info['missing_keys'])} tensors "
            f"that config.json asks for, such as {info['missing_keys'][0]}; they would stay "
            "random, and the latents be nonsense. The files are of different models: "
            "download the model again."
        )
    return vae.eval().requires_grad_(False)


class DiffusersVideoEncoder:
    """A diffusers video autoencoder on its device, fed and read as diffusers' own pipelines do."""

    def __init__(
        self, vae: Any, video_class: VideoClass, spec: LatentSpec, device: torch.device
    ) -> None:
        self.spec = spec
        self._vae = vae
        self._class = video_class
        self._device = device
        self._dtype: torch.dtype = getattr(torch, spec.compute_dtype)
        # A tensor: CUDA divides by a number by multiplying with its reciprocal, an ulp off the CPU.
        self._white = torch.tensor(255.0, device=device)

    @torch.inference_mode()
    def encode(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels to moments [B, 2C, t, h, w], the diffusers model's bit for bit."""
        thw = check_pixels(self.spec, pixels_BTHWC)
        pixels = self._to_model_range(pixels_BTHWC)
        with self._model() as vae:
            posterior = vae.encode(pixels).latent_dist
        moments: torch.Tensor = torch.cat([posterior.mean, posterior.logvar], dim=1)
        check_encoded(self.spec, moments, (len(pixels), 2 * self.spec.channels, *thw))
        return moments

    @torch.inference_mode()
    def decode(self, latents_BCthw: torch.Tensor) -> torch.Tensor:
        """Decode un-normalised latents to uint8 pixels [B, T, H, W, 3] on the CPU."""
        check_latents(self.spec, latents_BCthw)
        latents = latents_BCthw.to(self._device, self._dtype)
        with self._model() as vae:
            values_BCTHW = vae.decode(latents).sample
        # VideoProcessor's arithmetic: to [0, 1] in the model's dtype, to levels in float32.
        levels = (values_BCTHW * 0.5 + 0.5).clamp(0, 1).float().mul_(255).round_()
        pixels: torch.Tensor = levels.to(torch.uint8).permute(0, 2, 3, 4, 1)
        return pixels.contiguous().cpu()

    def _to_model_range(self, pixels_BTHWC: torch.Tensor) -> torch.Tensor:
        """Return contiguous [B, 3, T, H, W] in [-1, 1]: 2 * (x / 255) - 1 in float32."""
        pixels = pixels_BTHWC.to(self._device)  # blocking: callers reuse their buffers
        values = pixels.permute(0, 4, 1, 2, 3).contiguous().to(torch.float32)
        return values.div_(self._white).mul_(2.0).sub_(1.0).to(self._dtype)

    @contextlib.contextmanager
    def _model(self) -> Iterator[Any]:
        """Lend the model: deterministic kernels, true float32, no state left behind by an error."""
        cuda = self._device.type == "cuda"
        flags = (
            torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            )
            if cuda
            else contextlib.nullcontext()
        )
        try:
            with flags:
                yield self._vae
        finally:
            if self._class.reset is not None:
                getattr(self._vae, self._class.reset)()
