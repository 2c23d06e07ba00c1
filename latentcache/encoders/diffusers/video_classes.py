"""The video autoencoders of diffusers, one record per class, read from their code.

To add a class, add a record to `VIDEO_CLASSES` and a tiny model of it to the contract suite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from latentcache.core.spec import FrameRule, IdSpec, Normaliser
from latentcache.encoders.diffusers import calls as calls
from latentcache.encoders.diffusers.facts import (
    DETERMINISTIC,
    POSTERIOR,
    UNTILED,
    UNTILED_ALONE,
    ModelClass,
    ModelFacts,
    Settings,
    by_channel,
    by_channel_and_frame,
    grouped,
    halvings,
    require_stride,
    scaled,
)
from latentcache.encoders.diffusers.kvae import refuse_misaligned_splits
from latentcache.errors import ConfigError

#: Standard deviation of Cosmos 1.0's model input: sigma_data of its schedulers, which is not in the
#: autoencoder's files. Its pipelines and trainers multiply normalised latents by it.
_COSMOS_SIGMA_DATA = 0.5
#: Allegro's frames per tile, and by how much tiles overlap in T, H and W: constants of the class.
_ALLEGRO_FRAMES = 24
_ALLEGRO_OVERLAP = (8, 120, 80)
#: Frames that KVAE encodes at once, after the first one: a default of its `_encode`.
_KVAE_SEGMENT = 16
#: Frames that a non-causal VidTok encodes and decodes at once; its `forward` pads or cuts other numbers.
_VIDTOK_FRAMES = 16


def _wan(settings: Settings) -> ModelFacts:
    """Read Wan 2.1, or Wan 2.2 5B with patch_size 2, is_residual and 48 channels."""
    return _wan_like(settings, "AutoencoderKLWan", int(settings("patch_size") or 1))


def _qwen_image(settings: Settings) -> ModelFacts:
    return _wan_like(settings, "AutoencoderKLQwenImage", 1)


def _wan_like(settings: Settings, name: str, patch_size: int) -> ModelFacts:
    """Count what the layers do: the config's scale_factor_* only describes it.

    Normalised by channel, with the reciprocal rounded to float32 as in the pipelines.
    """
    stages = len(settings("dim_mult")) - 1
    temporal = 2 ** sum(settings("temperal_downsample")[:stages])
    require_stride(name, temporal, 4)
    spatial = 2**stages * patch_size
    channels = int(settings("z_dim"))
    return ModelFacts(
        channels=channels,
        stride=(temporal, spatial, spatial),
        frame_rule=grouped(4),
        exactness="prefix_exact",
        normaliser=by_channel(settings("latents_mean"), settings("latents_std"), channels),
    )


def _cogvideox(settings: Settings) -> ModelFacts:
    """Read a CogVideoX.

    Frames go in batches of 8, and T % 8 more go into the first one. GroupNorm sees one batch. With any T
    but 1, 8k and 8k+1 it would normalise over batches that training did not have. 8k and 8k+1 are grouped
    differently, so a prefix is exact only from 8k+1 to 8k+1.

    invert_scale_latents (1.5 image-to-video) is only about the condition image, whose latent is
    divided by the factor. The same pipeline's own latents are video latents times the factor (see
    prepare_latents and decode_latents of diffusers' CogVideoXImageToVideoPipeline).
    """
    spatial = halvings(settings("block_out_channels"))
    return ModelFacts(
        channels=int(settings("latent_channels")),
        stride=(int(settings("temporal_compression_ratio")), spatial, spatial),
        frame_rule=FrameRule(multiple=8, remainders=(0, 1)),
        exactness="exact",
        normaliser=scaled(settings("scaling_factor")),
        attributes={
            **UNTILED,
            "num_sample_frames_batch_size": 8,
            "num_latent_frames_batch_size": 2,
        },
    )


def _hunyuan(settings: Settings) -> ModelFacts:
    """Read a HunyuanVideo, which encodes the whole clip at once.

    By default the class would send T > 16 through tiles of 17 frames, even with tiling off. GroupNorm
    sees the whole clip, so prefixes are not exact.
    """
    return ModelFacts(
        channels=int(settings("latent_channels")),
        stride=_ratios(settings),
        frame_rule=grouped(_ratios(settings)[0]),
        exactness="exact",
        normaliser=scaled(settings("scaling_factor")),
        attributes={**UNTILED, "use_framewise_encoding": False, "use_framewise_decoding": False},
    )


def _hunyuan15(settings: Settings) -> ModelFacts:
    """Read a HunyuanVideo 1.5; it takes one clip at a time, because its attention mask fits no batch."""
    return ModelFacts(
        channels=int(settings("latent_channels")),
        stride=_ratios(settings),
        frame_rule=grouped(_ratios(settings)[0]),
        exactness="prefix_exact",
        normaliser=scaled(settings("scaling_factor")),
        attributes=UNTILED_ALONE,
    )


def _ltx(settings: Settings) -> ModelFacts:
    """Read an LTX-Video or LTX-2.

    Its encoder obeys use_framewise_decoding, which is set to False for that reason. The layers'
    reductions are counted: the class's own ratios count a layer twice that reduces only space or only time.
    """
    blocks, kinds = settings("spatio_temporal_scaling"), settings("downsample_type")
    if isinstance(blocks, bool):
        blocks = (blocks,) * len(kinds)
    reducing = [kind for kind, scales in zip(kinds, blocks, strict=False) if scales]
    temporal = settings("patch_size_t") * 2 ** sum(kind != "spatial" for kind in reducing)
    spatial = settings("patch_size") * 2 ** sum(kind != "temporal" for kind in reducing)
    channels = int(settings("latent_channels"))
    return ModelFacts(
        channels=channels,
        stride=(temporal, spatial, spatial),
        frame_rule=grouped(temporal),
        exactness="prefix_exact" if settings("encoder_causal") else "exact",
        normaliser=by_channel(
            settings.tensor("latents_mean").tolist(),
            settings.tensor("latents_std").tolist(),
            channels,
            float(settings("scaling_factor")),
        ),
        attributes={**UNTILED, "use_framewise_encoding": False, "use_framewise_decoding": False},
    )


def _mochi(settings: Settings) -> ModelFacts:
    temporal = math.prod(settings("temporal_expansions"))
    spatial = math.prod(settings("spatial_expansions"))
    channels = int(settings("latent_channels"))
    return ModelFacts(
        channels=channels,
        stride=(temporal, spatial, spatial),
        frame_rule=grouped(temporal),
        exactness="prefix_exact",
        normaliser=by_channel(
            settings("latents_mean"),
            settings("latents_std"),
            channels,
            float(settings("scaling_factor")),
        ),
        attributes={
            **UNTILED,
            "use_framewise_encoding": False,
            "use_framewise_decoding": False,
            "drop_last_temporal_frames": True,
        },
    )


def _allegro(settings: Settings) -> ModelFacts:
    """Read an Allegro, which encodes only in its own tiles; its trainers see those latents.

    If tiles do not end with the clip, the class leaves zeros. It takes one clip at a time.
    """
    spatial, size = halvings(settings("block_out_channels")), int(settings("sample_size"))
    frames, rows, columns = (
        kernel - overlap
        for kernel, overlap in zip((_ALLEGRO_FRAMES, size, size), _ALLEGRO_OVERLAP, strict=True)
    )
    if min(rows, columns) <= 0:
        raise ConfigError(
            f"encoder.model: this AutoencoderKLAllegro has tiles of {size} pixels (sample_size), "
            f"which are too small for its overlaps of {_ALLEGRO_OVERLAP[1:]}. Take a model with "
            "larger tiles: the published one has 320."
        )
    return ModelFacts(
        channels=int(settings("latent_channels")),
        stride=(int(settings("temporal_compression_ratio")), spatial, spatial),
        frame_rule=_tiles(_ALLEGRO_FRAMES, frames),
        size_rules=(_tiles(size, rows), _tiles(size, columns)),
        exactness="exact",
        normaliser=scaled(settings("scaling_factor")),
        attributes={
            "use_tiling": True,
            "use_slicing": True,
            "kernel": (_ALLEGRO_FRAMES, size, size),
            "stride": (frames, rows, columns),
        },
    )


def _tiles(size: int, stride: int) -> FrameRule:
    """Return the lengths that tiles cover: size + stride * k."""
    return FrameRule(multiple=stride, remainders=(size % stride,), minimum=size)


def _magvit(settings: Settings) -> ModelFacts:
    """Read EasyAnimate's: the first frame by itself, then groups of 4."""
    blocks = settings("down_block_types")
    temporal = 2 ** sum("Temporal" in block for block in blocks[:-1])
    require_stride("AutoencoderKLMagvit", temporal, 4)
    spatial = halvings(blocks)
    return ModelFacts(
        channels=int(settings("latent_channels")),
        stride=(temporal, spatial, spatial),
        frame_rule=grouped(4),
        exactness="prefix_exact",
        normaliser=scaled(settings("scaling_factor")),
        attributes={
            **UNTILED,
            "num_sample_frames_batch_size": 4,
            "num_latent_frames_batch_size": 1,
        },
    )


def _cosmos(settings: Settings) -> ModelFacts:
    """Read a continuous Cosmos tokenizer: no posterior; statistics for a limited number of frames."""
    channels, stride = int(settings("latent_channels")), _ratios(settings)
    mean, std = settings("latents_mean"), settings("latents_std")
    normaliser, longest = scaled(_COSMOS_SIGMA_DATA), None
    if mean is not None:
        normaliser = by_channel_and_frame(mean, std, channels, _COSMOS_SIGMA_DATA)
        longest = 1 + stride[0] * (len(mean) // channels - 1)
    return ModelFacts(
        channels=channels,
        stride=stride,
        frame_rule=grouped(stride[0], maximum=longest),
        exactness="prefix_exact",
        normaliser=normaliser,
        stores=DETERMINISTIC,
    )


def _kvae(settings: Settings) -> ModelFacts:
    """Read a KVAE: segments of 17, 16, 16, ... frames, each with its own GroupNorm statistics.

    diffusers replaces the encoder's log-variance by zeros, which would be unit noise in a sample.
    So there is no posterior to store.
    """
    temporal = int(settings("temporal_compress_times"))
    if _KVAE_SEGMENT % temporal:
        raise ConfigError(
            f"encoder.model: this AutoencoderKLKVAEVideo reduces time by {temporal}, which does not "
            f"divide its segments of {_KVAE_SEGMENT} frames. Take a model of stride 2, 4 or 8."
        )
    spatial = halvings(settings("ch_mult"))
    return ModelFacts(
        channels=int(settings("z_channels")),
        stride=(temporal, spatial, spatial),
        frame_rule=grouped(temporal),
        exactness="exact",
        attributes=UNTILED_ALONE,
        stores=DETERMINISTIC,
    )


def _svd(settings: Settings) -> ModelFacts:
    """Read Stable Video Diffusion's: an encoder of images, and a decoder that mixes frames."""
    spatial = halvings(settings("block_out_channels"))
    return ModelFacts(
        channels=int(settings("latent_channels")),
        stride=(1, spatial, spatial),
        frame_rule=FrameRule(),
        exactness="prefix_exact",
        normaliser=scaled(settings("scaling_factor")),
        attributes={},
    )


def _vidtok(settings: Settings) -> ModelFacts:
    """Read a VidTok: KL (not normalised), or FSQ with 8 levels per channel, the first channel lowest.

    A non-causal one has 16k frames: its `forward` would pad or cut other numbers.
    """
    levels = range(len(settings("ch_mult")) - 1)
    spatial_ds, tempo_ds = settings("spatial_ds"), settings("tempo_ds")
    spatial = 2 ** len(levels if spatial_ds is None else spatial_ds)
    temporal = 2 ** (2 if tempo_ds is None else len(tempo_ds))
    is_causal, is_fsq = settings("is_causal"), settings("regularizer") == "fsq"
    return ModelFacts(
        channels=int(settings("z_channels")),
        stride=(temporal, spatial, spatial),
        frame_rule=grouped(temporal) if is_causal else grouped(_VIDTOK_FRAMES, first_alone=False),
        exactness="prefix_exact" if is_causal else "exact",
        normaliser=Normaliser(),
        attributes={
            **UNTILED,
            "num_sample_frames_batch_size": _VIDTOK_FRAMES,
            "num_latent_frames_batch_size": _VIDTOK_FRAMES // temporal,
        },
        stores=("ids",) if is_fsq else POSTERIOR,
        ids=IdSpec(codebook_size=int(settings("codebook_size"))) if is_fsq else None,
    )


def _ratios(settings: Settings) -> tuple[int, int, int]:
    """Return the stride if the layers are made from these keys."""
    spatial = int(settings("spatial_compression_ratio"))
    return (int(settings("temporal_compression_ratio")), spatial, spatial)


def _video(
    name: str, since: str, facts: Callable[[Settings], ModelFacts], reset: str | None = None
) -> ModelClass:
    """Return a class that gives a posterior; `reset` names its method that clears its state."""
    return ModelClass(
        name=name,
        since=since,
        facts=facts,
        encode=calls.encode_moments,
        decode=calls.decode_sample,
        reset=None if reset is None else lambda vae: getattr(vae, reset)(),
    )


VIDEO_CLASSES: Mapping[str, ModelClass] = {
    model_class.name: model_class
    for model_class in (
        _video("AutoencoderKLWan", "0.33", _wan, reset="clear_cache"),
        _video("AutoencoderKLQwenImage", "0.35", _qwen_image, reset="clear_cache"),
        _video("AutoencoderKLCogVideoX", "0.30", _cogvideox),
        _video("AutoencoderKLHunyuanVideo", "0.32", _hunyuan),
        _video("AutoencoderKLHunyuanVideo15", "0.36", _hunyuan15),
        *(
            ModelClass(
                name=name,
                since=since,
                facts=_ltx,
                encode=calls.encode_moments,
                decode=calls.decode_ltx,
            )
            for name, since in (
                ("AutoencoderKLLTXVideo", "0.32"),
                ("AutoencoderKLLTX2Video", "0.37"),
            )
        ),
        _video("AutoencoderKLMochi", "0.32", _mochi),
        ModelClass(
            name="AutoencoderKLAllegro",
            since="0.32",
            facts=_allegro,
            encode=calls.encode_moments,
            decode=calls.decode_allegro,
        ),
        _video("AutoencoderKLMagvit", "0.33", _magvit, reset="_clear_conv_cache"),
        ModelClass(
            name="AutoencoderKLCosmos",
            since="0.34",
            facts=_cosmos,
            encode=calls.encode_mode,
            decode=calls.decode_sample,
        ),
        ModelClass(
            name="AutoencoderKLKVAEVideo",
            since="0.38",
            facts=_kvae,
            encode=calls.encode_mode,
            decode=calls.decode_sample,
            arguments={"_encode": {"seg_len": _KVAE_SEGMENT}},
            prepare=refuse_misaligned_splits,
        ),
        ModelClass(
            name="AutoencoderKLTemporalDecoder",
            since="0.24",
            facts=_svd,
            encode=calls.by_frame(calls.encode_moments),
            decode=calls.decode_svd,
        ),
        ModelClass(
            name="AutoencoderVidTok",
            since="0.38",
            facts=_vidtok,
            encode=calls.encode_vidtok,
            decode=calls.decode_vidtok,
            reset=calls.reset_vidtok,
        ),
    )
}
