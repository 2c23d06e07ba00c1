"""Tiny encoders of sound with random weights, and what transformers makes of samples with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

from tests.tools.texts.checkpoints import seeded

BANDWIDTH = 3.0


def wav2vec2(folder: Path) -> Path:
    """A model that gives 50 states per second, as the published ones do."""
    config = hf.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, vocab_size=32,
    )  # fmt: skip
    seeded(lambda: hf.Wav2Vec2Model(config)).save_pretrained(folder)
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
        values = model.encoder(torch.rand(1, 1, 24_000) - 0.5)[0].T
    for n, layer in enumerate(model.quantizer.layers):
        codes = values[torch.randint(len(values), (len(layer.codebook.embed),))]
        layer.codebook.embed.copy_(codes if n == 0 else (codes - values.mean(0)) / 2)
    model.save_pretrained(folder)
    hf.EncodecFeatureExtractor(feature_size=1, sampling_rate=24_000).save_pretrained(folder)
    return folder


def wav2vec2_reference(
    model: Path, samples: np.ndarray, dtype: torch.dtype, layer: int | None = None
) -> torch.Tensor:
    """States [steps, width] of samples [n]."""
    extractor = hf.AutoFeatureExtractor.from_pretrained(model)
    encoder = hf.Wav2Vec2Model.from_pretrained(model, dtype=dtype).eval()
    values = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_values.to(dtype)
    with torch.inference_mode():
        found = encoder(values, output_hidden_states=True)
    states: torch.Tensor = found.last_hidden_state if layer is None else found.hidden_states[layer]
    return states[0]


def encodec_reference(model: Path, samples: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Ids [steps, codebooks] of samples [n]."""
    extractor = hf.AutoFeatureExtractor.from_pretrained(model)
    encoder = hf.EncodecModel.from_pretrained(model, dtype=dtype).eval()
    inputs = extractor(samples, sampling_rate=24_000, return_tensors="pt")
    with torch.inference_mode():
        found = encoder.encode(
            inputs["input_values"].to(dtype), inputs["padding_mask"], bandwidth=BANDWIDTH
        )
    codes: torch.Tensor = found.audio_codes[0, 0].T
    return codes


TINY: dict[str, Callable[[Path], Path]] = {"wav2vec2": wav2vec2, "encodec": encodec}
REFERENCES: dict[str, Callable[..., torch.Tensor]] = {
    "wav2vec2": wav2vec2_reference,
    "encodec": encodec_reference,
}
SETTINGS: dict[str, dict[str, Any]] = {"wav2vec2": {}, "encodec": {"bandwidth": BANDWIDTH}}
RATES = {"wav2vec2": 16_000, "encodec": 24_000}
