"""The family `transformers`: any text model, by explicit settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from latentcache.encoders.text import (
    build_text_encoder,
    describe_text_encoder,
    explicit,
    hunyuan_video,
    part,
)
from latentcache.errors import ConfigError, EncoderError
from tests.tools.texts import checkpoints, tokenizers
from tests.tools.texts.captions import KINDS

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
#: Settings of two families, said explicitly.
AS_WAN = {
    "model_class": "UMT5EncoderModel", "length": 512, "cleaning": "ftfy", "pad_input": True,
    "mask_input": True, "layer": "last_hidden_state", "padding": "zeros",
}  # fmt: skip
AS_COGVIDEOX = {
    "model_class": "T5EncoderModel", "length": 226, "cleaning": "none", "pad_input": True,
    "mask_input": False, "layer": "last_hidden_state", "padding": "attended",
}  # fmt: skip
AS_HUNYUAN = {
    "model_class": "LlamaModel", "length": 256, "cleaning": "none", "pad_input": True,
    "mask_input": True, "layer": -3, "padding": "mask", "template": hunyuan_video.TEMPLATE,
    "cut": hunyuan_video.CUT, "special": ["bos"],
}  # fmt: skip
AS_HUNYUANS_CLIP = {
    "model_class": "CLIPTextModel", "length": 77, "cleaning": "none", "pad_input": True,
    "mask_input": False, "layer": -2, "padding": "attended", "pooled": "pooler_output", "special": [],
}  # fmt: skip


def build(folder: Path, suffix: str = "", **settings: Any) -> Any:
    folders = {name: str(folder / f"{name}{suffix}") for name in ("text_encoder", "tokenizer")}
    raw = {"family": "transformers", "dtype": "float32", "folders": folders, **settings}
    return build_text_encoder(raw, CPU)


@pytest.mark.parametrize(
    ("family", "settings"),
    [("wan", AS_WAN), ("cogvideox", AS_COGVIDEOX), ("hunyuan_video", AS_HUNYUAN)],
)
def test_a_family_said_explicitly_is_that_family(
    made: Callable[[str], Path], family: str, settings: dict[str, Any]
) -> None:
    model = made(family)
    ours = build(model, **settings)
    theirs = build_text_encoder({"family": family, "model": str(model), "dtype": "float32"}, CPU)
    assert ours.arrays["states"] == theirs.arrays["states"]
    for text in KINDS[:6]:
        found, expected = ours.encode(text), theirs.encode(text)
        assert torch.equal(found.arrays["states"], expected.arrays["states"])
        assert (found.tokens, found.lost_tokens) == (expected.tokens, expected.lost_tokens)


def test_a_template_may_hold_braces(made: Callable[[str], Path]) -> None:
    """Such as JSON, of which nothing but the place of the text is filled in."""
    model = made("wan")
    ours = build(model, **{**AS_WAN, "template": '{"role": "user"} {}'})
    plain = build(model, **AS_WAN)
    found, expected = ours.encode("a {red} fox"), plain.encode('{"role": "user"} a {red} fox')
    assert torch.equal(found.arrays["states"], expected.arrays["states"])


def test_a_pooled_vector_is_the_models(made: Callable[[str], Path]) -> None:
    model = made("hunyuan_video")
    ours = build(model, "_2", **AS_HUNYUANS_CLIP)
    theirs = build_text_encoder(
        {"family": "hunyuan_video", "model": str(model), "dtype": "float32"}, CPU
    )
    found, expected = (one.encode("a red fox").arrays["pooled"] for one in (ours, theirs))
    assert torch.equal(found, expected)


#: What DeBERTa-v3's config says of positions.
DEBERTA = {
    "relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0,
}  # fmt: skip


def save_bert(
    folder: Path, kind: str = "Bert", positions: int = 512, **settings: Any
) -> tuple[Any, Any]:
    """Save a model and its tokenizer into one folder, as models are published that no pipeline holds."""
    tokenizer = tokenizers.byte_level(["<s>", "</s>", "<pad>"], bos="<s>", eos="</s>", pad="<pad>")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in explicit._SPECIAL}
    config = getattr(hf, f"{kind}Config")(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=positions, **ids, **settings,
    )  # fmt: skip
    model = checkpoints.seeded(lambda: getattr(hf, f"{kind}Model")(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def of_bert(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "family": "transformers", "dtype": "float32", "model_class": "BertModel", "length": 64,
        "folders": {"text_encoder": str(folder), "tokenizer": str(folder)},
        "cleaning": "strip", "pad_input": False, "mask_input": True, "layer": -1, "padding": "mask",
        **changes,
    }  # fmt: skip


def test_a_bert_without_padding_is_the_models_own(tmp_path: Path) -> None:
    bert, tokenizer = save_bert(tmp_path)
    ours = build_text_encoder(of_bert(tmp_path), CPU)
    with torch.inference_mode():
        expected = bert(**tokenizer("two dogs", return_tensors="pt")).last_hidden_state[0]
    assert torch.equal(ours.encode("  two dogs ").arrays["states"], expected)


def roberta(folder: Path) -> dict[str, Any]:
    """Save a model of masked words, whose checkpoint has no pooler; return settings."""
    special = ["<s>", "</s>", "<pad>"]
    tokenizer = tokenizers.byte_level(special, bos="<s>", eos="</s>", pad="<pad>")
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    config = hf.RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=80, **ids,
    )  # fmt: skip
    model = checkpoints.seeded(lambda: hf.RobertaForMaskedLM(config))
    checkpoints.save(folder, {"text_encoder": model, "tokenizer": tokenizer})
    return {
        "model_class": "RobertaModel", "length": 64, "cleaning": "none", "pad_input": False,
        "mask_input": True, "layer": "last_hidden_state", "padding": "mask",
    }  # fmt: skip


def test_a_checkpoint_may_lack_the_pooler_that_states_do_not_use(tmp_path: Path) -> None:
    settings = roberta(tmp_path)
    encoded = build(tmp_path, **settings).encode("a red fox")
    whole = hf.RobertaForMaskedLM.from_pretrained(tmp_path / "text_encoder").eval()
    ids = hf.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")("a red fox").input_ids
    with torch.inference_mode():
        expected = whole.roberta(torch.tensor([ids])).last_hidden_state[0]
    assert torch.equal(encoded.arrays["states"], expected)


def test_a_checkpoint_without_the_pooler_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    settings = {**roberta(tmp_path), "pooled": "pooler_output"}
    with pytest.raises(EncoderError, match=r"2 missing keys, such as pooler\.dense\.bias"):
        build(tmp_path, **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 3}, "layer: 3: BertModel gives 3 hidden_states here, .* the indices -3 to 2"),
        ({"layer": -4}, "layer: -4: .* the indices -3 to 2"),
        ({"length": 65}, "positions for 64 tokens here, .* length of at most 64"),
        ({"length": 64, "template": "a {}", "cut": 1}, "length: 64 and cut: 1: .* at most 63"),
    ],
)
def test_settings_that_the_model_cannot_follow_are_refused_before_its_weights_are_loaded(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_bert(tmp_path, positions=64)
    with pytest.raises(ConfigError, match=message):
        describe_text_encoder(of_bert(tmp_path, **changes))


def test_padding_without_a_padding_token_is_refused(tmp_path: Path) -> None:
    _, tokenizer = save_bert(tmp_path)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="pad_input: true: the tokenizer has no padding token"):
        describe_text_encoder(of_bert(tmp_path, pad_input=True))
    assert build_text_encoder(of_bert(tmp_path), CPU).encode("two dogs").tokens > 0


def test_all_layers_and_positions_can_be_used(tmp_path: Path) -> None:
    save_bert(tmp_path, positions=64)
    for layer in (-3, 2):
        ours = build_text_encoder(of_bert(tmp_path, layer=layer), CPU)
        assert ours.encode("dogs " * 99).arrays["states"].shape == (64, 32)


def test_all_states_of_a_model_that_shortens_texts_can_be_used(tmp_path: Path) -> None:
    """CANINE also gives those of layers before and after its `num_hidden_layers`."""
    model, tokenizer = save_bert(tmp_path, "Canine", num_hash_buckets=64)
    raw = of_bert(tmp_path, model_class="CanineModel", pad_input=True)
    inputs = tokenizer("dogs " * 99, max_length=64, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = model.eval()(
            inputs.input_ids, inputs.attention_mask, output_hidden_states=True
        ).hidden_states
    assert len(states) == 7
    for layer in (6, -7):
        describe_text_encoder({**raw, "layer": layer})
        found = build_text_encoder({**raw, "layer": layer}, CPU).encode("dogs " * 99)
        assert torch.equal(found.arrays["states"], states[layer][0])
    with pytest.raises(ConfigError, match=r"layer: 7: CanineModel gives 7 .* indices -7 to 6"):
        build_text_encoder({**raw, "layer": 7}, CPU)


def test_a_layer_whose_states_cannot_be_counted_is_refused_when_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bert(tmp_path)
    raw = of_bert(tmp_path, layer=3)
    monkeypatch.setattr(part, "count_states", lambda *_: None)
    describe_text_encoder(raw)
    with pytest.raises(ConfigError, match="layer: 3: BertModel gives 3 hidden_states"):
        build_text_encoder(raw, CPU)


def test_a_length_that_positions_do_not_reach_is_refused_when_the_model_is_loaded(
    tmp_path: Path,
) -> None:
    """RoBERTa counts positions from the one after padding's id, so its table is longer than its texts."""
    _, tokenizer = save_bert(tmp_path, "Roberta", positions=64)
    most = 64 - tokenizer.pad_token_id - 1
    raw = of_bert(tmp_path, model_class="RobertaModel", length=most + 1)
    with pytest.raises(ConfigError, match=rf"a text of {most + 1} tokens: \w+: .* Set a length"):
        build_text_encoder(raw, CPU)
    assert build_text_encoder({**raw, "length": most}, CPU).encode("dogs " * 99).tokens == most


def test_a_table_of_positions_that_the_model_does_not_use_limits_no_length(tmp_path: Path) -> None:
    """DeBERTa-v3's positions are relative, and its published file holds a table nonetheless."""
    model, tokenizer = save_bert(tmp_path, "DebertaV2", positions=64, **DEBERTA)
    weights = tmp_path / "model.safetensors"
    tensors = {f"deberta.{name}": tensor for name, tensor in load_file(weights).items()}
    table = {"deberta.embeddings.position_embeddings.weight": torch.ones(64, 32)}
    save_file({**tensors, **table}, weights, {"format": "pt"})
    raw = of_bert(tmp_path, model_class="DebertaV2Model", length=128)
    describe_text_encoder(raw)
    found = build_text_encoder(raw, CPU).encode("dogs " * 200).arrays["states"]
    ids = tokenizer("dogs " * 200, max_length=128, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model.eval()(ids.input_ids, ids.attention_mask).last_hidden_state[0]
    assert found.shape == (128, 32)
    assert torch.equal(found, expected)


def test_a_length_that_memory_does_not_reach_is_left_to_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may all be shorter."""
    save_bert(tmp_path)
    encode = explicit.Encoder.states

    def small(self: explicit.Encoder, text: str) -> Any:
        if len(text) > 100:
            raise torch.OutOfMemoryError
        return encode(self, text)

    monkeypatch.setattr(explicit.Encoder, "states", small)
    assert build_text_encoder(of_bert(tmp_path, length=500), CPU).encode("two dogs").tokens > 0


def test_a_vector_that_the_model_does_not_give_is_refused_when_it_is_loaded(
    made: Callable[[str], Path],
) -> None:
    with pytest.raises(ConfigError, match="LlamaModel gives no pooler_output, but last_hidden_st"):
        build(made("hunyuan_video"), **{**AS_HUNYUAN, "pooled": "pooler_output"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "no place"}, "needs one {}"),
        ({"padding": "attended", "pad_input": False}, "attended keeps the states of padding"),
        ({"template": "a dog {}", "cut": 9}, "and the family cuts 9"),
        ({"model_class": "NoSuchModel"}, "has no NoSuchModel"),
        ({"pooled": "text_embeds"}, "no number projection_dim"),
    ],
)
def test_settings_that_do_not_fit_are_told(
    made: Callable[[str], Path], changes: dict[str, Any], message: str
) -> None:
    model = made("wan")
    with pytest.raises(ConfigError, match=message):
        build(model, **{**AS_WAN, **changes})


def test_a_cut_of_left_padded_input_is_refused(tmp_path: Path) -> None:
    parts = checkpoints.flux2_parts()
    model = checkpoints.save(tmp_path, parts)
    cut = tokenizers.common(lambda text: parts["tokenizer"](f"see {text}")["input_ids"])
    settings = {
        "family": "transformers", "model": str(model), "dtype": "float32", "length": 64, "cut": cut,
        "model_class": "Mistral3ForConditionalGeneration", "template": "see {}", "cleaning": "none",
        "pad_input": True, "mask_input": True, "layer": -1, "padding": "mask",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="pads on the left, so the first tokens are padding's"):
        describe_text_encoder(settings)
