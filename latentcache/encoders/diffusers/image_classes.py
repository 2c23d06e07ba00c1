"""The image autoencoders of diffusers, mapped over frames: one record per class, read from their code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from latentcache.core.spec import FrameRule, IdSpec, Normaliser
from latentcache.encoders.diffusers import calls as calls
from latentcache.encoders.diffusers.facts import (
    DETERMINISTIC,
    UNTILED,
    ModelClass,
    ModelFacts,
    Settings,
    by_channel,
    halvings,
    scaled,
)
from latentcache.errors import ConfigError


def _facts(channels: int, spatial: int, normaliser: Normaliser, **others: Any) -> ModelFacts:
    """Return what is true of every image class: any number of frames, each on its own."""
    return ModelFacts(
        channels=channels,
        stride=(1, spatial, spatial),
        frame_rule=FrameRule(),
        exactness="prefix_exact",
        normaliser=normaliser,
        **others,
    )


def _kl(settings: Settings) -> ModelFacts:
    """Read the autoencoder of SD, SDXL, SD3 or FLUX.

    Most are scaled; SD3's and FLUX's are also shifted. A few, such as Playground 2.5's, are normalised
    by channel and then scaled.
    """
    channels, factor = int(settings("latent_channels")), float(settings("scaling_factor"))
    mean, std = settings("latents_mean"), settings("latents_std")
    if mean is not None and std is not None:
        normaliser = by_channel(_flat(mean), _flat(std), channels, factor)
    else:
        normaliser = scaled(factor, settings("shift_factor") or 0.0)
    return _facts(channels, halvings(settings("block_out_channels")), normaliser)


def _flux2(settings: Settings) -> ModelFacts:
    """Read FLUX.2's. Its trainers see every 2x2 latents as channels, normalised by BatchNorm's statistics.

    That form is stored, before the normalisation: a model of 32 channels and stride 8 gives 128
    channels of stride 16. Only the order of the values differs from what `vae.encode` gives.
    """
    if tuple(settings("patch_size")) != (2, 2):
        raise ConfigError(
            f"encoder.model: this AutoencoderKLFlux2 has patches of {settings('patch_size')}, but the "
            "FLUX.2 pipeline makes patches of 2x2 whatever the config says. Take a model of 2x2."
        )
    channels = 4 * int(settings("latent_channels"))
    variance = settings.tensor("bn.running_var").float()
    std = torch.sqrt(variance + settings("batch_norm_eps"))
    normaliser = by_channel(
        settings.tensor("bn.running_mean").float().tolist(), std.tolist(), channels
    )
    return _facts(channels, 2 * halvings(settings("block_out_channels")), normaliser)


def _dc(settings: Settings) -> ModelFacts:
    return _facts(
        int(settings("latent_channels")),
        halvings(settings("encoder_block_out_channels")),
        scaled(settings("scaling_factor")),
        stores=DETERMINISTIC,
    )


def _tiny(settings: Settings) -> ModelFacts:
    """Read a TAESD: its latents are its large model's, already normalised as for that model."""
    return _facts(
        int(settings("latent_channels")),
        halvings(settings("encoder_block_out_channels")),
        scaled(settings("scaling_factor"), settings("shift_factor")),
        stores=DETERMINISTIC,
        attributes=UNTILED,
    )


def _vq(settings: Settings) -> ModelFacts:
    """Read a VQModel: ids, or the latents that are quantised to them, which Kandinsky 2's trainers take.

    aMUSEd's takes [0, 1] (its pipeline's do_normalize=False) and the others take [-1, 1]. No key of
    config.json says so.
    """
    embed = settings("vq_embed_dim")
    return _facts(
        int(settings("latent_channels") if embed is None else embed),
        halvings(settings("block_out_channels")),
        scaled(settings("scaling_factor")),
        stores=("ids", "mean"),
        attributes={},
        ids=IdSpec(codebook_size=int(settings("num_vq_embeddings"))),
        pixel_range=None,
    )


def _flat(values: Sequence[Any]) -> list[float]:
    """Return a list of numbers, which some config.json files nest as [1, C, 1, 1]."""
    flat: list[float] = torch.tensor(values, dtype=torch.float64).flatten().tolist()
    return flat


def _image(
    name: str,
    since: str,
    facts: Callable[[Settings], ModelFacts],
    encode: calls.Encode,
    decode: calls.Decode,
) -> ModelClass:
    return ModelClass(
        name=name,
        since=since,
        facts=facts,
        encode=calls.by_frame(encode),
        decode=calls.by_latent_frame(decode),
    )


IMAGE_CLASSES: Mapping[str, ModelClass] = {
    model_class.name: model_class
    for model_class in (
        _image("AutoencoderKL", "0.1", _kl, calls.encode_moments, calls.decode_sample),
        _image("AutoencoderKLFlux2", "0.36", _flux2, calls.encode_flux2, calls.decode_flux2),
        _image("AutoencoderDC", "0.32", _dc, calls.encode_deterministic, calls.decode_sample),
        _image("AutoencoderTiny", "0.20", _tiny, calls.encode_deterministic, calls.decode_sample),
        _image("VQModel", "0.1", _vq, calls.encode_vq, calls.decode_vq),
    )
}
