"""What is wrong with a checkpoint is found when it is loaded, and what is wrong with a text when it is."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from latentcache.encoders.text import build_text_encoder, describe_text_encoder
from latentcache.errors import ClipError, ConfigError, EncoderError
from tests.tools.texts import checkpoints, tokenizers

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture
def wan(made: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made("wan"), tmp_path / "wan"))


def settings(model: Path, family: str = "wan", **changes: Any) -> dict[str, Any]:
    return {"family": family, "model": str(model), "dtype": "float32", **changes}


def build(model: Path, family: str = "wan", **changes: Any) -> Any:
    return build_text_encoder(settings(model, family, **changes), CPU)


def weights(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = model / "text_encoder/model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def configure(
    model: Path, name: str = "text_encoder", file: str = "config.json", **changes: Any
) -> None:
    path = model / name / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def replace_tokenizer(model: Path, tokenizer: Any, name: str = "tokenizer") -> Path:
    shutil.rmtree(model / name)
    tokenizer.save_pretrained(model / name)
    return model


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(wan: Path) -> None:
    replace_tokenizer(wan, tokenizers.t5(extra_ids=400))
    with pytest.raises(ConfigError, match=r"has 520 tokens, and the model's embedding has 220"):
        describe_text_encoder(settings(wan))


def test_a_tokenizer_with_far_fewer_tokens_than_the_embedding_is_refused(tmp_path: Path) -> None:
    """T5's has an eighth of umT5's, and the same special ids."""
    parts = dict(checkpoints.wan())
    parts["text_encoder"] = checkpoints.t5_model(range(8 * len(parts["tokenizer"])), "UMT5")
    model = checkpoints.save(tmp_path, parts)
    with pytest.raises(ConfigError, match="another model's tokenizer"):
        describe_text_encoder(settings(model))


@pytest.mark.parametrize("name", ["eos", "pad"])
def test_special_ids_that_disagree_with_the_config_are_refused(wan: Path, name: str) -> None:
    configure(wan, **{f"{name}_token_id": 7})
    with pytest.raises(ConfigError, match=rf"has the {name} id \d, and the model's config says 7"):
        describe_text_encoder(settings(wan))


def test_a_tokenizer_that_pads_on_the_other_side_is_refused(wan: Path) -> None:
    configure(wan, "tokenizer", "tokenizer_config.json", padding_side="left")
    with pytest.raises(ConfigError, match="pads on the left, and the family's pads on the right"):
        describe_text_encoder(settings(wan))


def test_clip_that_pools_at_another_token_is_refused(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(made("flux"), tmp_path / "flux"))
    configure(model, eos_token_id=5)
    with pytest.raises(ConfigError, match=r"ends a text with the id 513.* at 5"):
        describe_text_encoder(settings(model, "flux"))


@pytest.mark.parametrize("family", ["hunyuan_video", "hunyuan_video15", "kandinsky5", "qwen_image"])
def test_a_template_of_another_length_is_refused(
    made: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    """The tokenizer has one token more, and the template has it; special ids are the same."""
    model = Path(shutil.copytree(made(family), tmp_path / family))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model / "tokenizer")
    tokenizer.add_tokens(["user"])
    replace_tokenizer(model, tokenizer)
    configure(model, **_vocabulary(model))
    with pytest.raises(
        ConfigError, match=r"the template before the text has \d+ tokens, and the family"
    ):
        describe_text_encoder(settings(model, family))


@pytest.mark.parametrize("family", ["flux2", "hunyuan_video15"])
def test_a_tokenizer_without_its_chat_template_is_refused(
    made: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    model = Path(shutil.copytree(made(family), tmp_path / family))
    (model / "tokenizer/chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="has no chat template"):
        describe_text_encoder(settings(model, family))


def test_a_chat_that_does_not_begin_with_the_beginning_of_text_is_refused(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(made("flux2"), tmp_path / "flux2"))
    path = model / "tokenizer/chat_template.jinja"
    path.write_text(path.read_text().replace("{{ bos_token }}", ""))
    with pytest.raises(ConfigError, match="does not begin with the beginning of text '<s>'"):
        describe_text_encoder(settings(model, "flux2"))


@pytest.mark.parametrize("family", ["cosmos25", "flux2"])
def test_a_length_that_the_chats_template_fills_is_refused(
    made: Callable[[str], Path], family: str
) -> None:
    with pytest.raises(
        ConfigError, match=r"length: 9 leaves no room .* of the chat's template"
    ) as e:
        describe_text_encoder(settings(made(family), family, length=9))
    taken = int(str(e.value).split(": ")[2].split()[0])
    assert build(made(family), family, length=taken + 1).encode("a fox").tokens == taken + 1


@pytest.mark.parametrize(
    ("family", "key"), [("wan", "length"), ("flux", "length"), ("hunyuan_video15", "glyph_length")]
)
def test_a_length_that_cuts_off_what_tells_texts_apart_is_no_damage(
    made: Callable[[str], Path], family: str, key: str
) -> None:
    """T5 ends each text with the same token, which is the one that is left."""
    with pytest.raises(ConfigError, match=f"^{key}: 1 leaves no room .* Set a larger {key}"):
        build(made(family), family, **{key: 1})


def test_a_model_with_too_few_layers_is_refused(tmp_path: Path) -> None:
    parts = dict(checkpoints.flux2_parts())
    parts["text_encoder"].config.text_config.num_hidden_layers = 29
    with pytest.raises(ConfigError, match=r"has 29 layers, and .* takes those after layers"):
        describe_text_encoder(settings(checkpoints.save(tmp_path, parts), "flux2"))


def _vocabulary(model: Path) -> dict[str, Any]:
    """Return config.json's part about the vocabulary, made large enough."""
    config = json.loads((model / "text_encoder/config.json").read_text())
    if "text_config" in config:
        return {"text_config": {**config["text_config"], "vocab_size": 400}, "vocab_size": 400}
    return {"vocab_size": 400}


def test_an_embedding_of_zeros_is_refused(wan: Path) -> None:
    weights(wan, lambda tensors: tensors["shared.weight"].zero_())
    with pytest.raises(EncoderError, match="embedding is all zeros"):
        build(wan)


def test_an_embedding_that_transformers_makes_up_is_refused(
    wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers 5.0 did: it took the embedding from another tensor, or left it zero."""
    load = transformers.UMT5EncoderModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def broken(cls: Any, *args: Any, **kwargs: Any) -> Any:
        model, info = load(cls, *args, **kwargs)
        torch.nn.init.normal_(model.get_input_embeddings().weight)
        return model, info

    monkeypatch.setattr(transformers.UMT5EncoderModel, "from_pretrained", classmethod(broken))
    with pytest.raises(EncoderError, match="embedding is not the one in the file"):
        build(wan)


def test_weights_that_lack_tensors_are_refused(wan: Path) -> None:
    def lose(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["encoder.final_layer_norm.weight"]

    weights(wan, lose)
    with pytest.raises(EncoderError, match=r"1 missing keys, such as encoder\.final_layer_norm"):
        build(wan)


def test_a_model_that_does_not_read_its_text_is_refused(wan: Path) -> None:
    weights(wan, lambda tensors: tensors["encoder.final_layer_norm.weight"].zero_())
    with pytest.raises(EncoderError, match="two different texts give the same states"):
        build(wan)


def test_states_that_are_not_finite_fail_their_text(wan: Path) -> None:
    encoder = build(wan)
    word = encoder.t5.tokenizer("dogs")["input_ids"][0]
    encoder.t5._model.shared.weight[word] = torch.nan
    with pytest.raises(ClipError, match="states of the text has NaN or infinity") as caught:
        encoder.encode("two dogs")
    assert caught.value.reason == "non_finite"
    assert encoder.encode("two boats").arrays["states"].isfinite().all()


def test_an_overflow_that_t5_clamps_in_float16_fails_its_text(wan: Path) -> None:
    encoder = build(wan, dtype="float16")
    assert encoder.encode("two dogs").arrays["states"].dtype == torch.float16
    encoder.t5._model.encoder.block[0].layer[0].SelfAttention.o.weight.mul_(1e5).clamp_(-6e4, 6e4)
    with pytest.raises(ClipError, match="overflows in float16") as caught:
        encoder.encode("two dogs")
    assert caught.value.reason == "non_finite"


def test_another_class_of_model_is_refused(made: Callable[[str], Path]) -> None:
    with pytest.raises(
        ConfigError, match="holds a UMT5EncoderModel, and this family runs T5Encoder"
    ):
        describe_text_encoder(settings(made("wan"), "cogvideox"))


def test_what_a_config_leaves_out_is_what_its_class_says(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    """Published configs of Gemma 3 do not say how large their vocabulary is."""
    model = Path(shutil.copytree(made("flux"), tmp_path / "flux"))
    before = describe_text_encoder(settings(model, "flux")).arrays
    path = model / "text_encoder/config.json"
    config = json.loads(path.read_text())
    assert config.pop("max_position_embeddings") == 77
    path.write_text(json.dumps(config))
    assert describe_text_encoder(settings(model, "flux")).arrays == before


def test_a_whole_t5_serves_as_its_encoder(wan: Path) -> None:
    expected = build(wan).encode("two dogs").arrays["states"]
    index = json.loads((wan / "model_index.json").read_text())
    del index["text_encoder"]
    (wan / "model_index.json").write_text(json.dumps(index))
    configure(wan, architectures=["UMT5ForConditionalGeneration"])
    weights(wan, lambda tensors: tensors.update({"lm_head.weight": torch.ones(220, 32)}))
    assert torch.equal(build(wan).encode("two dogs").arrays["states"], expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: shutil.rmtree(model / "tokenizer"), "tokenizer: there is no folder"),
        (lambda model: (model / "text_encoder/config.json").unlink(), "holds no config.json"),
        (lambda model: (model / "text_encoder/config.json").write_text("{"), "cannot be read"),
        (lambda model: (model / "text_encoder/config.json").write_text("[]"), "not a JSON object"),
        (lambda model: (model / "text_encoder/model.safetensors").unlink(), "writes safetensors"),
        (lambda model: (model / "model_index.json").write_text("no"), "cannot be read"),
    ],
)
def test_a_checkpoint_with_parts_missing_is_told(
    wan: Path, damage: Callable[[Path], Any], message: str
) -> None:
    damage(wan)
    with pytest.raises(ConfigError, match=message):
        describe_text_encoder(settings(wan))


def test_mochis_empty_caption_does_not_depend_on_how_its_folder_is_named(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    """Without model_index.json nothing says what the empty caption is."""
    model = Path(shutil.copytree(made("mochi_zeros"), tmp_path / "mochi"))
    folders = {name: str(model / name) for name in ("text_encoder", "tokenizer")}
    apart = {"family": "mochi", "folders": folders, "dtype": "float32"}
    with pytest.raises(
        ConfigError, match="force_zeros_for_empty_prompt: required where `model` has"
    ):
        describe_text_encoder(apart)
    expected = build(model, "mochi").encode("")
    said = build_text_encoder({**apart, "force_zeros_for_empty_prompt": True}, CPU)
    assert said.encode("").tokens == expected.tokens == 0
    assert said.recipe() == build(model, "mochi").recipe()
    (model / "model_index.json").unlink()
    with pytest.raises(ConfigError, match="force_zeros_for_empty_prompt: required"):
        describe_text_encoder(settings(model, "mochi"))


@pytest.mark.parametrize("size", [0, 7, 2000])
def test_weights_that_are_cut_short_are_told(wan: Path, size: int) -> None:
    path = wan / "text_encoder/model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(EncoderError, match=r"text_encoder.* cannot be (loaded|read)"):
        build(wan)


def test_a_damaged_tokenizer_is_told(wan: Path) -> None:
    (wan / "tokenizer/tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(EncoderError, match=r"tokenizer.* cannot be loaded"):
        describe_text_encoder(settings(wan))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"family": "wann"}, "Did you mean 'wan'"),
        ({}, "unknown family None"),
        ({"family": "wan", "dtype": "float32"}, "needs `model`"),
        ({"family": "wan", "model": "x"}, "dtype"),
        ({"family": "wan", "model": "x", "dtype": "float32", "lenght": 5}, "length"),
        ({"family": "ltx", "model": "x", "dtype": "float32"}, "pipeline"),
        (
            {"family": "wan", "folders": {"tokenizer": "x"}, "dtype": "float32"},
            "folders.text_encoder",
        ),
    ],
)
def test_settings_that_are_wrong_are_told(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe_text_encoder(raw)


def test_without_transformers_the_extra_is_named(
    wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="'transformers', which is not installed"):
        describe_text_encoder(settings(wan))


def test_an_older_transformers_is_refused(wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.57.1")
    with pytest.raises(ConfigError, match=r"4\.57\.1 is installed"):
        describe_text_encoder(settings(wan))


def test_loading_and_encoding_print_nothing(
    wan: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither bars nor warnings of long texts: a run prints lines of its own."""
    encoder = build(wan)
    capfd.readouterr()
    encoder = build(wan)
    encoder.encode("dogs " * 3000)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_without_ftfy_the_extra_is_named(wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ConfigError, match="'ftfy', which is not installed"):
        describe_text_encoder(settings(wan))


def test_a_checkpoint_may_lack_the_head_of_logits_that_states_do_not_use(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(made("qwen_image"), tmp_path / "qwen"))
    expected = build(model, "qwen_image").encode("a red fox").arrays["states"]
    weights(model, lambda tensors: tensors.pop("lm_head.weight"))
    describe_text_encoder(settings(model, "qwen_image"))
    found = build(model, "qwen_image").encode("a red fox").arrays["states"]
    assert torch.equal(found, expected)
