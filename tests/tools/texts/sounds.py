"""Tiny encoders of sound with random weights, and what transformers makes of samples with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from diffusers import AutoencoderKLLTX2Audio
from diffusers.pipelines.ltx2 import LTX2Pipeline

from latentcache.encoders.sounds.ltx2 import log_mel
from tests.tools.texts.checkpoints import seeded

BANDWIDTH = 3.0


def wav2vec2(folder: Path, kind: Any = hf.Wav2Vec2Model) -> Path:
    """A model that gives 50 states per second, as the published ones do."""
    config = hf.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, vocab_size=32,
    )  # fmt: skip
    seeded(lambda: kind(config)).save_pretrained(folder)
    hf.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def encodec(folder: Path, **changes: Any) -> Path:
    """A model that gives 75 ids per second and codebook, as that of 24 kHz does."""
    config = hf.EncodecConfig(
        hidden_size=16,
        num_filters=4,
        num_lstm_layers=1,
        codebook_size=64,
        codebook_dim=16,
        **changes,
    )
    model = seeded(lambda: hf.EncodecModel(config))
    with (
        torch.inference_mode()
    ):  # codes are zeros until they are trained: make them like what is encoded
        values = model.encoder(torch.rand(1, config.audio_channels, 24_000) - 0.5)[0].T
    for n, layer in enumerate(model.quantizer.layers):
        codes = values[torch.randint(len(values), (len(layer.codebook.embed),))]
        layer.codebook.embed.copy_(codes if n == 0 else (codes - values.mean(0)) / 2)
    model.save_pretrained(folder)
    extractor = hf.EncodecFeatureExtractor(
        feature_size=config.audio_channels, sampling_rate=config.sampling_rate
    )
    extractor.save_pretrained(folder)
    return folder


def wav2vec2_reference(
    model: Path, samples: np.ndarray, dtype: torch.dtype, layer: int | None = None
) -> torch.Tensor:
    """States [steps, width] of samples [n, 1]."""
    extractor = hf.AutoFeatureExtractor.from_pretrained(model)
    encoder = hf.Wav2Vec2Model.from_pretrained(model, dtype=dtype).eval()
    values = extractor(samples[:, 0], sampling_rate=16_000, return_tensors="pt").input_values.to(
        dtype
    )
    with torch.inference_mode():
        found = encoder(values, output_hidden_states=True)
    states: torch.Tensor = found.last_hidden_state if layer is None else found.hidden_states[layer]
    return states[0]


def encodec_reference(model: Path, samples: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Ids [steps, codebooks] of samples [n, 1]."""
    extractor = hf.AutoFeatureExtractor.from_pretrained(model)
    encoder = hf.EncodecModel.from_pretrained(model, dtype=dtype).eval()
    inputs = extractor(samples[:, 0], sampling_rate=24_000, return_tensors="pt")
    with torch.inference_mode():
        found = encoder.encode(
            inputs["input_values"].to(dtype), inputs["padding_mask"], bandwidth=BANDWIDTH
        )
    codes: torch.Tensor = found.audio_codes[0, 0].T
    return codes


def ltx2(folder: Path) -> Path:
    """A model that gives 25 latents per second, as LTX-2's does, of 2 channels of 4 bins."""
    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Audio(
        base_channels=8,
        ch_mult=(1, 2, 4),
        num_res_blocks=1,
        latent_channels=2,
        mel_bins=16,
        resolution=16,
    )
    with torch.no_grad():
        vae.latents_mean.uniform_(-1, 1)
        vae.latents_std.uniform_(0.5, 2)
    vae.save_pretrained(folder / "audio_vae")
    return folder


def ltx2_reference(model: Path, samples: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """What LTX2Pipeline makes of latents that it is given: [steps, channels * bins]."""
    vae = AutoencoderKLLTX2Audio.from_pretrained(model / "audio_vae", torch_dtype=dtype).eval()
    mel = log_mel(torch.from_numpy(samples.T.copy()), rate=16_000, hop=160, bins=16)
    with torch.inference_mode():
        latents = vae.encode(mel[None].to(dtype)).latent_dist.mode()
    packed = LTX2Pipeline._pack_audio_latents(latents)
    made: torch.Tensor = LTX2Pipeline._normalize_audio_latents(
        packed, vae.latents_mean, vae.latents_std
    )
    return made[0]


TINY: dict[str, Callable[[Path], Path]] = {"wav2vec2": wav2vec2, "encodec": encodec, "ltx2": ltx2}
REFERENCES: dict[str, Callable[..., torch.Tensor]] = {
    "wav2vec2": wav2vec2_reference,
    "encodec": encodec_reference,
    "ltx2": ltx2_reference,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "wav2vec2": {}, "encodec": {"bandwidth": BANDWIDTH}, "ltx2": {},
}  # fmt: skip
RATES = {"wav2vec2": 16_000, "encodec": 24_000, "ltx2": 16_000}
