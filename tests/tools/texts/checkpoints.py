"""Checkpoints as diffusers saves them: tiny models of the real classes with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from latentcache.encoders.text import hunyuan_video, hunyuan_video15, kandinsky5, qwen_image
from tests.tools.texts import tokenizers

QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_PARTS_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{{ part['text'] }}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
)
MISTRAL_CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
)
#: Components by name: models and tokenizers.
Parts = Mapping[str, Any]


def save(folder: Path, parts: Parts, **config: Any) -> Path:
    """Save components as a pipeline does: a folder each, and model_index.json."""
    index: dict[str, Any] = {"_class_name": "Pipeline", **config}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        known = hasattr(hf, type(part).__name__)
        library = "transformers" if known else "diffusers"
        index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def t5_model(tokenizer: Any, kind: str = "T5", layers: int = 2, **changes: Any) -> Any:
    config = getattr(hf, f"{kind}Config")(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=layers, num_heads=4,
        feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1, **changes,
    )  # fmt: skip
    return seeded(lambda: getattr(hf, f"{kind}EncoderModel")(config))


def clip_model(tokenizer: Any, *, projected: bool = False, width: int = 16, eos: int = 2) -> Any:
    config = hf.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, projection_dim=12,
        num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=77,
        eos_token_id=eos, bos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return seeded(lambda: getattr(hf, name)(config))


SMALL: Mapping[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip


def llama_model(tokenizer: Any) -> Any:
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    config = hf.LlamaConfig(vocab_size=len(tokenizer), **SMALL, **ids)
    return seeded(lambda: hf.LlamaModel(config))


def qwen_text(tokenizer: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    return {"vocab_size": len(tokenizer), **ids, "rope_parameters": rope, **SMALL}


def qwen_model(tokenizer: Any) -> Any:
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 32,
    }
    config = hf.Qwen2_5_VLConfig(text_config=qwen_text(tokenizer), vision_config=vision)
    return seeded(lambda: hf.Qwen2_5_VLForConditionalGeneration(config))


def qwen_text_model(tokenizer: Any) -> Any:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

    config = Qwen2_5_VLTextConfig(**qwen_text(tokenizer))
    return seeded(lambda: hf.Qwen2_5_VLTextModel(config))


def gemma_model(tokenizer: Any) -> Any:
    text = {"vocab_size": len(tokenizer), "head_dim": 8, "sliding_window": 16, **SMALL}
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = hf.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return seeded(lambda: hf.Gemma3ForConditionalGeneration(config))


def mistral_model(tokenizer: Any) -> Any:
    text = {"model_type": "mistral", "vocab_size": len(tokenizer), "head_dim": 8, **SMALL}
    text |= {"num_hidden_layers": 31, "hidden_size": 16, "intermediate_size": 16}
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "head_dim": 8,
    }  # fmt: skip
    config = hf.Mistral3Config(text_config=text, vision_config=vision)
    return seeded(lambda: hf.Mistral3ForConditionalGeneration(config))


def seeded(make: Callable[[], Any]) -> Any:
    """Return a model with the same random weights each time."""
    torch.manual_seed(0)
    return make().eval()


def wan() -> Parts:
    tokenizer = tokenizers.t5()
    return {"tokenizer": tokenizer, "text_encoder": t5_model(tokenizer, "UMT5")}


def t5() -> Parts:
    tokenizer = tokenizers.t5()
    return {"tokenizer": tokenizer, "text_encoder": t5_model(tokenizer)}


def hunyuan_video_parts() -> Parts:
    special = [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<pad>",
    ]
    llama = tokenizers.byte_level(special, bos=special[0], eos="<|eot_id|>", pad="<pad>")
    template = hunyuan_video.TEMPLATE
    tokenizers.cut_to(
        llama,
        lambda text: llama(template.format(text))["input_ids"],
        template, hunyuan_video.CUT, start="Describe",
    )  # fmt: skip
    clip = tokenizers.clip()
    return {
        "tokenizer": llama, "text_encoder": llama_model(llama),
        "tokenizer_2": clip, "text_encoder_2": clip_model(clip),
    }  # fmt: skip


def qwen_in(template: str, cut: int, start: str) -> Any:
    tokenizer = tokenizers.qwen()
    ids = lambda text: tokenizer(template.format(text))["input_ids"]  # noqa: E731
    return tokenizers.cut_to(tokenizer, ids, template, cut, start=start)


def qwen_image_parts() -> Parts:
    tokenizer = qwen_in(qwen_image.TEMPLATE, qwen_image.CUT, "Describe")
    return {"tokenizer": tokenizer, "text_encoder": qwen_model(tokenizer)}


def cosmos25_parts() -> Parts:
    tokenizer = tokenizers.qwen(QWEN_PARTS_CHAT)
    return {"tokenizer": tokenizer, "text_encoder": qwen_model(tokenizer)}


def kandinsky5_parts() -> Parts:
    tokenizer = qwen_in(kandinsky5.TEMPLATE, kandinsky5.CUT, "You are")
    clip = tokenizers.clip()
    return {
        "tokenizer": tokenizer, "text_encoder": qwen_model(tokenizer),
        "tokenizer_2": clip, "text_encoder_2": clip_model(clip),
    }  # fmt: skip


def hunyuan_video15_parts() -> Parts:
    tokenizer = tokenizers.qwen(QWEN_CHAT)

    def ids(text: str) -> list[int]:
        talk = [
            {"role": "system", "content": hunyuan_video15.SYSTEM},
            {"role": "user", "content": text},
        ]
        return list(tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"])

    tokenizers.cut_to(tokenizer, ids, hunyuan_video15.SYSTEM, hunyuan_video15.CUT, start="You are")
    byt5 = hf.ByT5Tokenizer()
    return {
        "tokenizer": tokenizer, "text_encoder": qwen_text_model(tokenizer),
        "tokenizer_2": byt5, "text_encoder_2": t5_model(byt5),
    }  # fmt: skip


def flux_parts() -> Parts:
    clip, t5_tokenizer = tokenizers.clip(), tokenizers.t5()
    return {
        "tokenizer": clip, "text_encoder": clip_model(clip),
        "tokenizer_2": t5_tokenizer, "text_encoder_2": t5_model(t5_tokenizer),
    }  # fmt: skip


def sdxl_parts() -> Parts:
    clip, second = tokenizers.clip(), tokenizers.clip(pad_token="!")
    return {
        "tokenizer": clip, "text_encoder": clip_model(clip),
        "tokenizer_2": second, "text_encoder_2": clip_model(second, projected=True, width=24),
    }  # fmt: skip


def sd3_parts() -> Parts:
    clip, second, t5_tokenizer = tokenizers.clip(), tokenizers.clip(pad_token="!"), tokenizers.t5()
    end = clip.eos_token_id
    return {
        "tokenizer": clip, "text_encoder": clip_model(clip, projected=True, width=8, eos=end),
        "tokenizer_2": second, "text_encoder_2": clip_model(second, projected=True, width=16),
        "tokenizer_3": t5_tokenizer, "text_encoder_3": t5_model(t5_tokenizer),
    }  # fmt: skip


def gemma_parts(*, by_modality: bool) -> Parts:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    gemma = tokenizers.byte_level(
        ["<pad>", "<eos>", "<bos>"], bos="<bos>", eos="<eos>", pad="<pad>"
    )
    model = gemma_model(gemma)
    connectors = seeded(
        lambda: LTX2TextConnectors(
            caption_channels=32, text_proj_in_factor=5,
            video_connector_num_attention_heads=4, video_connector_attention_head_dim=8,
            video_connector_num_layers=1, video_connector_num_learnable_registers=None,
            audio_connector_num_attention_heads=2 if by_modality else 4,
            audio_connector_attention_head_dim=8,
            audio_connector_num_layers=1, audio_connector_num_learnable_registers=None,
            per_modality_projections=by_modality, video_hidden_dim=32, audio_hidden_dim=16,
            proj_bias=by_modality,
        )
    )  # fmt: skip
    return {"tokenizer": gemma, "text_encoder": model, "connectors": connectors}


def flux2_parts() -> Parts:
    special = ["<unk>", "<s>", "</s>", "<pad>", "[IMG]"]
    tokenizer = tokenizers.byte_level(special, bos="<s>", eos="</s>", pad="<pad>", side="left")
    tokenizer.chat_template = MISTRAL_CHAT
    return {"tokenizer": tokenizer, "text_encoder": mistral_model(tokenizer)}


#: The components of each family's tiny checkpoint.
PARTS: Mapping[str, Callable[[], Parts]] = {
    "wan": wan,
    "cogvideox": t5,
    "ltx": t5,
    "mochi": t5,
    "cosmos": t5,
    "cosmos25": cosmos25_parts,
    "hunyuan_video": hunyuan_video_parts,
    "hunyuan_video15": hunyuan_video15_parts,
    "qwen_image": qwen_image_parts,
    "flux": flux_parts,
    "sd3": sd3_parts,
    "sdxl": sdxl_parts,
    "ltx2": lambda: gemma_parts(by_modality=False),
    "ltx23": lambda: gemma_parts(by_modality=True),
    "flux2": flux2_parts,
    "kandinsky5": kandinsky5_parts,
}
