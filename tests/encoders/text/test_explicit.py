"""The family `transformers`: any text model, by explicit settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from latentcache.encoders.text import build_text_encoder, describe_text_encoder, hunyuan_video
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


def test_a_bert_without_padding_is_the_models_own(tmp_path: Path) -> None:
    """One folder with model and tokenizer, as models are published that no pipeline holds."""
    tokenizer = tokenizers.byte_level(["<s>", "</s>", "<pad>"], bos="<s>", eos="</s>", pad="<pad>")
    config = hf.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    bert = checkpoints.seeded(lambda: hf.BertModel(config))
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours = build_text_encoder(
        {
            "family": "transformers", "dtype": "float32", "model_class": "BertModel", "length": 64,
            "folders": {"text_encoder": str(tmp_path), "tokenizer": str(tmp_path)},
            "cleaning": "strip", "pad_input": False, "mask_input": True, "layer": -1, "padding": "mask",
        },
        CPU,
    )  # fmt: skip
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
