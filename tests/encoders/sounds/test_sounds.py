"""Encoders of sound give what transformers gives for a clip's sound by itself, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers import audio_utils

from latentcache.encoders.sounds import SOUNDS, build_sound_encoder, describe_sound_encoder
from latentcache.encoders.sounds.ltx2 import FLOOR, N_FFT, log_mel
from latentcache.errors import ClipError, ConfigError, EncoderError
from tests.tools.texts.sounds import RATES, REFERENCES, SETTINGS, TINY, encodec, wav2vec2

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
MAX_S = 1.5


def settings_of(family: str, model: Path, dtype: str = "float32", **more: Any) -> dict[str, Any]:
    return {"family": family, "model": str(model), "dtype": dtype, **SETTINGS[family], **more}


def noise(seconds: float, rate: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Samples [n, channels]."""
    draw = np.random.default_rng(seed)
    return draw.uniform(-0.5, 0.5, (round(seconds * rate), channels)).astype(np.float32)


def test_every_encoder_has_a_reference() -> None:
    assert set(SOUNDS) == set(TINY) == set(REFERENCES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", SOUNDS)
def test_arrays_are_the_references_bit_for_bit(tmp_path: Path, family: str, dtype: str) -> None:
    if (family, dtype) == ("encodec", "bfloat16"):
        pytest.skip("EnCodec's convolutions pad in float32 only")
    settings = settings_of(family, TINY[family](tmp_path), dtype)
    encoder = build_sound_encoder(settings, MAX_S, CPU)
    described = describe_sound_encoder(settings, MAX_S)
    assert described.recipe == encoder.recipe()
    assert encoder.rate == RATES[family]
    for n, seconds in enumerate((0.04, 0.5, 1.0, 1.2345, MAX_S)):
        samples = noise(seconds, encoder.rate, n, encoder.channels)
        states = encoder.encode(torch.from_numpy(samples))["states"]
        expected = REFERENCES[family](tmp_path, samples, getattr(torch, dtype))
        assert states.dtype == expected.dtype
        assert torch.equal(states, expected)
        assert len(states) <= described.arrays["states"].shape[0]
    assert tuple(states.shape) == described.arrays["states"].shape


def test_a_layer_of_wav2vec2_can_be_chosen(tmp_path: Path) -> None:
    settings = settings_of("wav2vec2", wav2vec2(tmp_path), layer=-2)
    samples = noise(0.5, 16_000)
    found = build_sound_encoder(settings, MAX_S, CPU).encode(torch.from_numpy(samples))
    expected = REFERENCES["wav2vec2"](tmp_path, samples, torch.float32, layer=-2)
    assert torch.equal(found["states"], expected)


@pytest.mark.parametrize("lacks", [True, False])
def test_a_checkpoint_for_recognition_serves_as_wav2vec2(
    tmp_path: Path, lacks: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """The published ones lack the mask that training puts in place of states."""
    model = wav2vec2(tmp_path, hf.Wav2Vec2ForCTC)
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    if lacks:
        del tensors["wav2vec2.masked_spec_embed"]
    save_file(tensors, weights, metadata={"format": "pt"})
    samples = noise(0.5, 16_000)
    settings = settings_of("wav2vec2", model)
    capfd.readouterr()
    found = build_sound_encoder(settings, MAX_S, CPU).encode(torch.from_numpy(samples))
    assert capfd.readouterr() == ("", "")
    whole = hf.Wav2Vec2ForCTC.from_pretrained(model).eval()
    values = hf.AutoFeatureExtractor.from_pretrained(model)(
        samples[:, 0], sampling_rate=16_000, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = whole.wav2vec2(**values).last_hidden_state[0]
    assert torch.equal(found["states"], expected)


def test_weights_of_sound_that_lack_tensors_are_refused(tmp_path: Path) -> None:
    weights = wav2vec2(tmp_path) / "model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.layer_norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"1 missing keys, such as encoder\.layer_norm"):
        describe_sound_encoder(settings_of("wav2vec2", tmp_path), MAX_S)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    config = wav2vec2(tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 40}))
    with pytest.raises(EncoderError, match=r"9 mismatched keys, such as encoder\.layers\.0\.feed"):
        describe_sound_encoder(settings_of("wav2vec2", tmp_path), MAX_S)


@pytest.mark.parametrize("family", SOUNDS)
def test_sound_that_is_too_short_fails_its_clip(tmp_path: Path, family: str) -> None:
    encoder = build_sound_encoder(settings_of(family, TINY[family](tmp_path)), MAX_S, CPU)
    with pytest.raises(ClipError, match="too few"):
        encoder.encode(torch.zeros(0, 1))


def test_what_is_not_finite_fails_its_clip(tmp_path: Path) -> None:
    encoder = build_sound_encoder(settings_of("wav2vec2", wav2vec2(tmp_path)), MAX_S, CPU)
    with pytest.raises(ClipError, match="NaN"):
        encoder.encode(torch.full((16_000, 1), float("nan")))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("wav2vec2", {"layer": 9}, "hidden_states 0 to 3"),
        ("wav2vec2", {"model": "/no/such"}, "there is no folder"),
        ("encodec", {"bandwidth": 5.0}, "this model has 1.5, 3.0"),
        ("encodec", {"family": "wav2vec2", "bandwidth": None}, "bandwidth"),
        ("encodec", {"family": "encodek"}, "Did you mean 'encodec'"),
    ],
)
def test_wrong_settings_are_refused(
    tmp_path: Path, family: str, change: dict[str, Any], message: str
) -> None:
    settings = {**settings_of(family, TINY[family](tmp_path)), **change}
    with pytest.raises(ConfigError, match=message):
        describe_sound_encoder(settings, MAX_S)


def test_models_that_these_do_not_run_are_refused(tmp_path: Path) -> None:
    chunked = encodec(tmp_path / "chunks", chunk_length_s=1.0, overlap=0.01)
    with pytest.raises(ConfigError, match="overlapping chunks"):
        describe_sound_encoder(settings_of("encodec", chunked), MAX_S)
    with pytest.raises(ConfigError, match="holds a EncodecModel"):
        describe_sound_encoder(settings_of("wav2vec2", encodec(tmp_path / "other")), MAX_S)
    weights = wav2vec2(tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(EncoderError, match="cannot be read"):
        describe_sound_encoder(settings_of("wav2vec2", tmp_path / "cut"), MAX_S)


@pytest.mark.parametrize(
    ("family", "extractor", "message"),
    [
        ("encodec", {"sampling_rate": 16_000}, "input_values at 16000 Hz with 1 .* at 24000 Hz"),
        ("encodec", {"feature_size": 2}, "at 24000 Hz with 2 channels.* at 24000 Hz with 1"),
        ("wav2vec2", {"feature_size": 2}, "at 16000 Hz with 2 channels.* at 16000 Hz with 1"),
        ("wav2vec2", hf.WhisperFeatureExtractor, "gives input_features at 16000 Hz with 80"),
    ],
)
def test_another_models_feature_extractor_is_refused(
    tmp_path: Path, family: str, extractor: Any, message: str
) -> None:
    model = TINY[family](tmp_path)
    if isinstance(extractor, dict):
        path = model / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **extractor}))
    else:
        extractor().save_pretrained(model)
    with pytest.raises(ConfigError, match=rf"feature_extractor: .*{message}"):
        describe_sound_encoder(settings_of(family, model), MAX_S)


def test_the_feature_extractor_of_a_stereo_model_is_taken(tmp_path: Path) -> None:
    model = encodec(tmp_path, audio_channels=2)
    encoder = build_sound_encoder(settings_of("encodec", model), MAX_S, CPU)
    assert encoder.channels == 2
    states = encoder.encode(torch.from_numpy(noise(0.5, 24_000, channels=2)))["states"]
    assert states.shape[0] == 38


def change(weights: Path, target: Path) -> None:
    """Save weights as others."""
    tensors = {name: tensor * 1.5 for name, tensor in load_file(weights).items()}
    save_file(tensors, target, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "folder", "stem"),
    [("wav2vec2", "", "model"), ("ltx2", "audio_vae", "diffusion_pytorch_model")],
)
def test_a_variant_is_what_is_loaded(tmp_path: Path, family: str, folder: str, stem: str) -> None:
    plain = TINY[family](tmp_path) / folder / f"{stem}.safetensors"
    change(plain, plain.with_name(f"{stem}.fp16.safetensors"))
    first = build_sound_encoder(settings_of(family, tmp_path), MAX_S, CPU)
    second = build_sound_encoder(settings_of(family, tmp_path, variant="fp16"), MAX_S, CPU)
    recipe = first.recipe()
    plain.unlink()
    only = build_sound_encoder(settings_of(family, tmp_path, variant="fp16"), MAX_S, CPU)
    samples = torch.from_numpy(noise(0.5, first.rate, channels=first.channels))
    states = [encoder.encode(samples)["states"] for encoder in (first, second, only)]
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[1], states[2])
    assert recipe != second.recipe() == only.recipe()


@pytest.mark.parametrize(
    ("family", "folder", "stem"),
    [("wav2vec2", "", "model"), ("ltx2", "audio_vae", "diffusion_pytorch_model")],
)
def test_of_split_weights_and_whole_ones_the_recipe_names_those_that_are_loaded(
    tmp_path: Path, family: str, folder: str, stem: str
) -> None:
    whole = TINY[family](tmp_path) / folder / f"{stem}.safetensors"
    split = whole.with_name(f"{stem}-00001-of-00001.safetensors")
    change(whole, split)
    settings = settings_of(family, tmp_path)
    before = build_sound_encoder(settings, MAX_S, CPU)
    recipe = before.recipe()
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(split), split.name)}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    both = build_sound_encoder(settings, MAX_S, CPU)
    samples = torch.from_numpy(noise(0.5, both.rate, channels=both.channels))
    equal = torch.equal(both.encode(samples)["states"], before.encode(samples)["states"])
    assert equal == (both.recipe() == recipe)


def test_the_spectrogram_is_that_of_another_implementation() -> None:
    """transformers computes it in float64, and its quiet parts differ by the rounding of float32."""
    samples = noise(0.5, 16_000, channels=2)
    found = log_mel(torch.from_numpy(samples.T.copy()), rate=16_000, hop=160, bins=64)
    filters = audio_utils.mel_filter_bank(
        N_FFT // 2 + 1, 64, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney"
    )
    for channel, mel in enumerate(found):
        expected = audio_utils.spectrogram(
            samples[:, channel], audio_utils.window_function(N_FFT, "hann"), N_FFT, 160,
            power=1.0, mel_filters=filters, mel_floor=FLOOR, log_mel="log",
        )  # fmt: skip
        np.testing.assert_allclose(mel.numpy(), expected.T, atol=1e-3)


def test_silence_is_at_the_spectrograms_floor() -> None:
    found = log_mel(torch.zeros(2, 1600), rate=16_000, hop=160, bins=64)
    assert torch.equal(found, torch.full((2, 11, 64), FLOOR).log())


def test_another_autoencoder_is_no_audio_vae(tmp_path: Path) -> None:
    config = TINY["ltx2"](tmp_path) / "audio_vae/config.json"
    content = json.loads(config.read_text())
    for change, message in (
        ({"_class_name": "AutoencoderKL"}, "holds a AutoencoderKL"),
        ({"mel_bins": None}, "without mel_bins"),
        ({"causality_axis": "width"}, "causality_axis: height"),
    ):
        config.write_text(json.dumps({**content, **change}))
        with pytest.raises(ConfigError, match=message):
            describe_sound_encoder(settings_of("ltx2", tmp_path), MAX_S)
