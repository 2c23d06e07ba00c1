"""A model has all of its weights, and its config leaves none of them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from latentcache.encoders.pretrained import loading
from latentcache.encoders.pretrained.files import Component
from latentcache.encoders.pretrained.loading import check_weights, load_model
from latentcache.errors import EncoderError
from tests.tools.texts import checkpoints, sounds, tokenizers, towers

pytestmark = pytest.mark.slow


def load(folder: Path, class_name: str) -> Any:
    component = Component(name="encoder", folder=folder, class_name=None)
    return load_model(component, class_name, dtype=torch.float32, device=torch.device("cpu"))


def read_headers(folder: Path, class_name: str) -> None:
    check_weights(Component(name="encoder", folder=folder, class_name=None), class_name)


def saved(make: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda folder: checkpoints.seeded(lambda: make(tokenizers.qwen())).save_pretrained(
        folder
    )


def llama(tokenizer: Any) -> Any:
    config = hf.LlamaConfig(vocab_size=len(tokenizer), **checkpoints.SMALL, attention_bias=True)
    return hf.LlamaForCausalLM(config)


def clip(tokenizer: Any) -> Any:
    """A text model of more layers than the vision model has."""
    text = {"vocab_size": len(tokenizer), **towers.VISION, "num_hidden_layers": 5}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=towers.VISION))


def siglip(tokenizer: Any) -> Any:
    text = {"vocab_size": len(tokenizer), **towers.VISION, "num_hidden_layers": 5}
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=towers.VISION))


def t5(tokenizer: Any) -> Any:
    """A decoder of more blocks than the encoder has."""
    config = checkpoints.t5_model(tokenizer).config
    config.num_decoder_layers = 4
    return hf.T5ForConditionalGeneration(config)


MODELS: dict[str, Callable[[Path], Any]] = {
    "llama": saved(llama),
    "gemma": saved(checkpoints.gemma_model),
    "qwen": saved(checkpoints.qwen_model),
    "clip": saved(clip),
    "siglip": saved(siglip),
    "t5": saved(t5),
    "encodec": sounds.encodec,
    "wav2vec2": lambda folder: sounds.wav2vec2(folder, hf.Wav2Vec2ForCTC),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "class_name", "path", "smaller", "left_out"),
    [
        ("llama", "LlamaModel", "num_hidden_layers", 3, r"13 .* model\.layers\.3\."),
        ("llama", "LlamaForCausalLM", "num_hidden_layers", 2, r"26 .* model\.layers\.2\."),
        ("llama", "LlamaModel", "attention_bias", False, r"16 .* model\.layers\.0\.self_attn"),
        ("t5", "T5EncoderModel", "num_layers", 1, r"9 .* encoder\.block\.1\."),
        ("clip", "CLIPTextModel", "text_config.num_hidden_layers", 4, r"16 .*layers\.4\."),
        ("clip", "CLIPVisionModel", "vision_config.num_hidden_layers", 2, r"16 .*layers\.2\."),
        ("siglip", "SiglipVisionModel", "vision_config.num_hidden_layers", 2, r"16 .*layers\.2\."),
        (
            "gemma", "Gemma3ForConditionalGeneration", "text_config.num_hidden_layers", 3,
            r"13 .* model\.language_model\.layers\.3\.",
        ),
        (
            "qwen", "Qwen2_5_VLForConditionalGeneration", "text_config.num_hidden_layers", 3,
            r"12 .* model\.language_model\.layers\.3\.",
        ),
        ("wav2vec2", "Wav2Vec2Model", "num_hidden_layers", 2, r"16 .*encoder\.layers\.2\."),
    ],
)  # fmt: skip
def test_a_config_that_leaves_out_layers_of_the_weights_is_refused(
    tmp_path: Path, model: str, class_name: str, path: str, smaller: Any, left_out: str
) -> None:
    MODELS[model](tmp_path)
    assert type(load(tmp_path, class_name)).__name__ == class_name
    read_headers(tmp_path, class_name)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    *sections, key = path.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    inner[key] = smaller
    inner.pop("layer_types", None)
    file.write_text(json.dumps(config))
    for check in (load, read_headers):
        with pytest.raises(EncoderError, match=rf"leaves out {left_out}"):
            check(tmp_path, class_name)


@pytest.mark.parametrize(
    ("model", "class_name"),
    [
        ("t5", "T5EncoderModel"),
        ("clip", "CLIPTextModel"),
        ("clip", "CLIPVisionModel"),
        ("siglip", "SiglipVisionModel"),
        ("llama", "LlamaModel"),
        ("encodec", "EncodecModel"),
        ("wav2vec2", "Wav2Vec2Model"),
    ],
)
def test_heads_decoders_and_old_buffers_may_be_left_out(
    tmp_path: Path, model: str, class_name: str
) -> None:
    MODELS[model](tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    owners = {name.rpartition(".")[0] for name in tensors}
    buffers = {f"{owner}.position_ids": torch.arange(4) for owner in owners}
    buffers |= {f"{owner}.rotary_emb.inv_freq": torch.ones(4) for owner in owners}
    save_file({**tensors, **buffers, "other.weight": torch.ones(4)}, weights, {"format": "pt"})
    assert type(load(tmp_path, class_name)).__name__ == class_name
    read_headers(tmp_path, class_name)


@pytest.mark.parametrize("family", checkpoints.PARTS)
def test_headers_of_each_familys_models_are_taken(tmp_path: Path, family: str) -> None:
    for name, part in checkpoints.PARTS[family]().items():
        if isinstance(part, hf.PreTrainedModel):
            part.save_pretrained(tmp_path / name)
            read_headers(tmp_path / name, type(part).__name__)


@pytest.mark.parametrize("change", ["lacks", "other_shape"])
def test_headers_say_what_would_stay_random(tmp_path: Path, change: str) -> None:
    MODELS["t5"](tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    tensor = tensors.pop(name)
    if change == "other_shape":
        tensors[name] = tensor[:-1].clone()
    save_file(tensors, weights, {"format": "pt"})
    what = {"lacks": "missing", "other_shape": "mismatched"}[change]
    for check in (load, read_headers):
        with pytest.raises(EncoderError, match=rf"have 1 {what} keys, such as {name}\. They would"):
            check(tmp_path, "T5EncoderModel")


@pytest.mark.parametrize(
    ("model", "class_name", "section"),
    [("llama", "LlamaModel", None), ("gemma", "Gemma3ForConditionalGeneration", "text_config")],
)
def test_headers_of_quantized_weights_are_left_to_loading(
    tmp_path: Path, model: str, class_name: str, section: str | None
) -> None:
    """Here as bitsandbytes stores 4 bits: two values per byte, and JSON in a tensor."""
    MODELS[model](tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    (config[section] if section else config)["quantization_config"] = {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
    }  # fmt: skip
    file.write_text(json.dumps(config))
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        num = tensors[name].numel()
        tensors[name] = torch.zeros(num // 2, 1, dtype=torch.uint8)
        tensors[f"{name}.absmax"] = torch.ones(num // 64)
        state = torch.tensor(list(b'{"quant_type": "nf4"}'), dtype=torch.uint8)
        tensors[f"{name}.quant_state.bitsandbytes__nf4"] = state
    save_file(tensors, weights, {"format": "pt"})
    read_headers(tmp_path, class_name)


def test_a_refusal_by_headers_fills_no_tensors(tmp_path: Path) -> None:
    """Filling those that are missing would take a large model's memory, and minutes."""
    MODELS["llama"](tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    save_file({f"other.{name}": tensors[name] for name in tensors}, weights, {"format": "pt"})
    before = torch.get_rng_state()
    with pytest.raises(EncoderError, match=r"as a LlamaModel, .* have 54 missing keys"):
        read_headers(tmp_path, "LlamaModel")
    assert torch.equal(torch.get_rng_state(), before)


def test_headers_are_compared_where_transformers_fills_tensors_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_FILL", "no_such_method")
    MODELS["llama"](tmp_path)
    read_headers(tmp_path, "LlamaModel")
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("model.norm.weight")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(EncoderError, match=r"1 missing keys, such as norm\.weight"):
        read_headers(tmp_path, "LlamaModel")
