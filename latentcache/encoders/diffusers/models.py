"""Finds, describes and builds an autoencoder of diffusers by the record of its class.

The kinds `diffusers_video` and `diffusers_image` are this module with their own tables of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field

from latentcache.config.base import Section
from latentcache.core.json_text import OTHER_SHAPE, fault_of
from latentcache.core.spec import LatentSpec, Normaliser, Stored
from latentcache.encoders import kernels
from latentcache.encoders.diffusers.encoder import DiffusersEncoder, StreamingDiffusersEncoder
from latentcache.encoders.diffusers.facts import ModelClass, ModelFacts
from latentcache.encoders.diffusers.loading import check_installed, load_model, packages, settings
from latentcache.encoders.diffusers.streams import STREAMS
from latentcache.encoders.diffusers.weights import CONFIG, ModelFiles, locate
from latentcache.encoders.kernels import Kernels
from latentcache.errors import ConfigError, EncoderError, LatentCacheError, did_you_mean


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
    check_installed(model_class)
    facts = _facts(files, model_class)
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


def _facts(files: ModelFiles, model_class: ModelClass) -> ModelFacts:
    """Return what its config.json says of a model. Raises ConfigError where that makes no sense."""
    try:
        return model_class.facts(settings(files, model_class.name))
    except LatentCacheError:
        raise
    except OTHER_SHAPE as error:
        raise ConfigError(
            f"encoder.model: {files.folder / CONFIG} has a value that no {model_class.name} has: "
            f"{fault_of(error)}. Download the model again."
        ) from None


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
    vae = load_model(files, model_class, located.facts, dtype)
    chosen = config.kernels()
    # Groups of frames have the bits of the whole clip with the model's own kernels.
    streams = (model_class.name in STREAMS or spec.stride[0] == 1) and chosen == kernels.PLAIN
    encoder_class = StreamingDiffusersEncoder if streams else DiffusersEncoder
    return encoder_class(vae.to(device), model_class, located.facts, spec, device, chosen)


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
