"""Published vocabularies, which packages on PyPI hold: CLIP's of 49,408 tokens, and a SentencePiece model.

The packages would bring others, such as torchvision, with which transformers prepares images in another
way; so they are not installed. Their wheels are unpacked:

    pip download --no-deps open-clip-torch mistral-common
    unzip -j open_clip_torch-*.whl open_clip/bpe_simple_vocab_16e6.txt.gz -d FOLDER
    unzip -j mistral_common-*.whl mistral_common/data/tokenizer.model.v1 -d FOLDER
    export LATENTCACHE_TEST_VOCABULARIES=FOLDER
"""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, CLIPTokenizer

from latentcache.encoders.text import hunyuan_video
from tests.tools.texts import tokenizers
from tests.tools.texts.checkpoints import Parts, clip_model, llama_model

FOLDER = Path(os.environ.get("LATENTCACHE_TEST_VOCABULARIES", "vocabularies"))
CLIP_FILE, LLAMA_FILE = "bpe_simple_vocab_16e6.txt.gz", "tokenizer.model.v1"
CLIP_SIZE, LLAMA_SIZE = 49_408, 32_000
needs_vocabularies = pytest.mark.skipif(
    not (FOLDER / CLIP_FILE).is_file() or not (FOLDER / LLAMA_FILE).is_file(),
    reason=f"no published vocabularies in {FOLDER}; see tests/tools/texts/vocabularies.py",
)


def clip(pad_token: str = "<|endoftext|>") -> Any:
    """Return CLIP's own tokenizer, built as its release builds it."""
    lines = gzip.decompress((FOLDER / CLIP_FILE).read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : CLIP_SIZE - 512 - 2 + 1]]
    codes = {ord(c) for c in pre_tokenizers.ByteLevel.alphabet()}
    # Bytes that are printed as themselves come first.
    letters = [chr(code) for code in sorted(codes, key=lambda code: (code >= 256, code))]
    tokens = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    assert len(vocabulary) == CLIP_SIZE
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=77)


def llama(folder: Path) -> Any:
    """Return LLaMA's tokenizer on a published SentencePiece model, with HunyuanVideo's marks."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(FOLDER / LLAMA_FILE, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", '
        '"unk_token": "<unk>", "pad_token": "<unk>", "padding_side": "right", "add_bos_token": true}'
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == LLAMA_SIZE
    template = hunyuan_video.TEMPLATE
    marks = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizers.cut_to(
        tokenizer,
        lambda text: tokenizer(template.format(text))["input_ids"],
        template,
        hunyuan_video.CUT,
        start="Describe",
    )


def hunyuan_video_parts(folder: Path) -> Parts:
    """Components of HunyuanVideo with both published vocabularies."""
    tokenizer, second = llama(folder), clip()
    return {
        "tokenizer": tokenizer, "text_encoder": llama_model(tokenizer),
        "tokenizer_2": second, "text_encoder_2": clip_model(second),
    }  # fmt: skip


def sdxl_parts() -> Parts:
    """Components of SDXL with CLIP's vocabulary, twice."""
    first, second = clip(), clip(pad_token="!")
    return {
        "tokenizer": first, "text_encoder": clip_model(first),
        "tokenizer_2": second, "text_encoder_2": clip_model(second, projected=True, width=24),
    }  # fmt: skip
