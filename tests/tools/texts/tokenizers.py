"""Tokenizers of the real classes, trained on a few captions. No file comes from elsewhere."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5TokenizerFast,
)

from tests.tools.texts.captions import KINDS, WORDS

_MERGES = 60
_TEXTS = [*WORDS, *KINDS[:3], *KINDS[4:]]
_SPARED = 4
_FIRST = ("a", "7", "天", "(")


@functools.cache
def byte_pairs() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the tokens and merges of a small byte-level BPE; any text can be spelt with it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(alphabet) + _MERGES
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    vocabulary = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return tuple(sorted(vocabulary, key=lambda t: vocabulary[t])), tuple(map(tuple, merges))


def t5(extra_ids: int = 100) -> Any:
    """Return a T5 tokenizer with every character of the captions in its vocabulary but some."""
    letters = sorted(
        {c for text in _TEXTS for c in text if c.isascii() and c.isprintable()} - {" "}
    )
    pieces = [*letters, *(f"▁{word}" for word in sorted(set(WORDS)))]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    scores += [(piece, -3.0 - i / 100) for i, piece in enumerate(pieces)]
    scores += [(f"<extra_id_{i}>", 0.0) for i in range(extra_ids - 1, -1, -1)]
    return T5TokenizerFast(vocab=scores, extra_ids=extra_ids, model_max_length=512)


def clip(pad_token: str = "<|endoftext|>") -> Any:
    """Return a CLIP tokenizer that spells; its end of text is the last id, as the real one's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{c}</w>" for c in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad_token, model_max_length=77)


def qwen(chat_template: str | None = None) -> Any:
    """Return a Qwen2 tokenizer with its special tokens."""
    tokens, merges = byte_pairs()
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=list(merges),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = chat_template
    return tokenizer


def byte_level(
    special: Sequence[str], *, bos: str | None, eos: str, pad: str, side: str = "right"
) -> Any:
    """Return a byte-level BPE tokenizer that begins a text with `bos`, as LLaMA 3's and Mistral's do."""
    tokens, merges = byte_pairs()
    vocabulary = {token: i for i, token in enumerate([*special, *tokens])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, padding_side=side
    )


def cut_to(
    tokenizer: Any, ids_of: Callable[[str], list[int]], template: str, cut: int, *, start: str
) -> Any:
    """Give a tokenizer long tokens that make a template's beginning just `cut` tokens long.

    ids_of: a text's ids in the template. start: where in the template the first of them begins.
    """
    first = template.index(start)
    while (excess := common(ids_of) - cut) != 0:
        assert excess > 0, "the template is shorter than its cut"
        # Less than is needed, as words split at a token's ends change, too; the rest one by one.
        saved = max(1, excess - _SPARED)
        end = first + 2
        while len(tokenizer(template[first:end], add_special_tokens=False)["input_ids"]) <= saved:
            end += 1
        tokenizer.add_tokens([AddedToken(template[first:end], normalized=False)])
        first = end
    return tokenizer


def common(ids_of: Callable[[str], list[int]]) -> int:
    """Return how many first ids texts in a template have in common."""
    columns = zip(*map(ids_of, _FIRST), strict=False)
    return next(i for i, ids in enumerate(columns) if len(set(ids)) > 1)
