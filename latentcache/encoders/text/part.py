"""One model of a family with its tokenizer: what it is cut into, and how it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from latentcache.encoders.pretrained.files import Checkpoint
from latentcache.encoders.pretrained.loading import (
    check_special_ids,
    check_vocabulary,
    check_weights,
    class_of,
    count_states,
    load_config,
    load_model,
    load_tokenizer,
    number_of,
    parameter_shapes,
)
from latentcache.encoders.text.overflow import watch_overflow
from latentcache.errors import ConfigError

#: Classes that give logits of a whole vocabulary for each token, too, unless told to keep one token's.
_WITH_LOGITS = frozenset(
    {
        "Gemma3ForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "Mistral3ForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
    }
)
#: How names of tensors begin that only logits depend on, which no text part reads.
_LOGITS_ONLY = ("lm_head.",)
Side = Literal["left", "right"]
#: A conversation, as chat templates take it.
Messages = Sequence[Mapping[str, Any]]
#: Tokens, more than a chat about one of `_PROBES` has.
_LONGER_THAN_CHATS = 1024
#: Texts whose tokens differ from the first on: what they have in common is the template's.
_PROBES = ("a", "7", "天", "(")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A text's token ids [1, L] and mask [1, L], int64, on the CPU.

    lost: how many tokens the length cut off.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    lost: int

    @property
    def num_own(self) -> int:
        """How many tokens are not padding."""
        return int(self.mask.sum())


class TextPart:
    """A text model and its tokenizer. Reads configs and the tokenizer at once, weights when loaded.

    Raises ConfigError if the tokenizer is another model's.

    classes: the model classes that the family runs, of which the checkpoint says one; or a class that is
    taken whatever it says. special: the special ids that its states depend on.
    side: where its reference pads. padded: whether its embedding is about as large as its vocabulary.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        name: str,
        tokenizer: str,
        *,
        classes: tuple[str, ...] | str,
        special: Collection[str] = (),
        side: Side | None = "right",
        padded: bool = True,
    ) -> None:
        self.name = name
        files = checkpoint.component(name)
        self._files = replace(files, unused=(*files.unused, *_LOGITS_ONLY))
        self._tokenizer_files = checkpoint.component(tokenizer)
        self.class_name = classes if isinstance(classes, str) else class_of(self._files, classes)
        self.tokenizer = load_tokenizer(self._tokenizer_files)
        self._config = load_config(self._files, "text")
        self._model: Any = None
        check_vocabulary(
            self._tokenizer_files, self.tokenizer, self.setting("vocab_size"), padded=padded
        )
        check_special_ids(self._tokenizer_files, self.tokenizer, self._files.config(), special)
        if side is not None and self.tokenizer.padding_side != side:
            raise ConfigError(
                f"{tokenizer}: the tokenizer in {self._tokenizer_files.folder} pads on the "
                f"{self.tokenizer.padding_side}, and the family's pads on the {side}. It is another "
                "model's tokenizer, or its tokenizer_config.json was changed. Name the folder of the "
                "model's own."
            )

    def setting(self, key: str) -> int:
        """Return a number of the text model's config. Raises ConfigError if it has none."""
        return number_of(self._files, self._config, key)

    def number(self, key: str) -> int | None:
        """Return a number of the text model's config, None if it has none."""
        value = getattr(self._config, key, None)
        return value if isinstance(value, int) else None

    def stored_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the tensors in the files by name. Raises EncoderError."""
        return self._files.shapes()

    def parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the model's parameters by name. Raises EncoderError."""
        return parameter_shapes(self._files, self.class_name)

    def count_states(self) -> int | None:
        """Return how many hidden states the model gives, None if only its weights can tell."""
        return count_states(self._files, self.class_name)

    @property
    def width(self) -> int:
        """Return the width of the states."""
        return self.setting("hidden_size")

    def recipe(self) -> dict[str, object]:
        """Return what the states depend on: classes, and the digests of all files.

        Raises EncoderError if the weights are not those of config.json.
        """
        check_weights(self._files, self.class_name)
        return {
            "class": self.class_name,
            "weights_sha256": self._files.weights_sha256(),
            "config_sha256": self._files.config_sha256(),
            "tokenizer_class": type(self.tokenizer).__name__,
            "tokenizer_sha256": self._tokenizer_files.files_sha256(),
        }

    def load(self, dtype: torch.dtype, device: torch.device) -> None:
        """Load the weights. Raises EncoderError."""
        self._model = load_model(self._files, self.class_name, dtype=dtype, device=device)
        watch_overflow(self._model)

    def tokens(self, text: str, *, length: int, padded: bool = True) -> Tokens:
        """Cut a text into tokens, at most `length`, with padding up to it where `padded`."""
        cut = self.tokenizer(
            text,
            padding="max_length" if padded else False,
            max_length=length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        whole = len(self.tokenizer(text, verbose=False)["input_ids"])
        return counted(cut["input_ids"], cut["attention_mask"], whole)

    def chat_tokens(self, messages: Messages, *, length: int, continued: bool) -> Tokens:
        """Cut a conversation into tokens by the tokenizer's chat template, padded to `length`.

        continued: whether the template ends with the beginning of an answer. Raises ConfigError if the
        tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"{self.name}: the tokenizer in {self._tokenizer_files.folder} has no chat template, which "
                "the family puts texts into. Download all of its files, such as chat_template.jinja."
            )
        render = functools.partial(
            self.tokenizer.apply_chat_template,
            [list(messages)],
            add_generation_prompt=continued,
            tokenize=True,
            return_dict=True,
        )
        cut = render(padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        whole = len(render(tokenizer_kwargs={"verbose": False})["input_ids"][0])
        return counted(cut["input_ids"], cut["attention_mask"], whole)

    def check_cut(self, template: str, cut: int) -> None:
        """Raise ConfigError unless the template's part before the text is `cut` tokens long."""
        self.check_common(
            [self.tokenizer(template.replace("{}", probe))["input_ids"] for probe in _PROBES], cut
        )

    def check_chat_cut(self, system: str, cut: int) -> None:
        """Raise ConfigError unless the conversation's part before the text is `cut` tokens long."""
        found = [
            self.chat_tokens(conversation(system, probe), length=4 * cut, continued=True)
            for probe in _PROBES
        ]
        self.check_common([tokens.ids[0].tolist() for tokens in found], cut)

    def check_chat_room(self, chat: Callable[[str], Messages], length: int) -> None:
        """Raise ConfigError unless a chat of `length` tokens reaches past what stands before the text."""
        found = [
            self.chat_tokens(chat(probe), length=_LONGER_THAN_CHATS, continued=False)
            for probe in _PROBES
        ]
        num = num_common([tokens.ids[0][tokens.mask[0].bool()].tolist() for tokens in found])
        check_room(length, num, "of the chat's template")

    def check_common(self, rows: Sequence[Sequence[int]], cut: int) -> None:
        """Raise ConfigError unless rows of ids have just `cut` first ids in common."""
        found = num_common(rows)
        if found != cut:
            raise ConfigError(
                f"{self.name}: with the tokenizer in {self._tokenizer_files.folder}, the template before "
                f"the text has {found} tokens, and the family cuts {cut}. A wrong cut leaves template in "
                "the states, or cuts the text. Name the folder of the model's own tokenizer."
            )

    def run(
        self,
        tokens: Tokens,
        *,
        mask: torch.Tensor | None = None,
        layers: bool = False,
        **inputs: torch.Tensor,
    ) -> Any:
        """Run the model and return its output.

        mask: [1, L], what it is told of padding. layers: whether to return all hidden states. inputs: what
        else the model takes, such as an image.
        """
        asked: dict[str, Any] = {"output_hidden_states": True} if layers else {}
        asked |= {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        if mask is not None:
            asked["attention_mask"] = mask.to(self._model.device)
        if self.class_name in _WITH_LOGITS:
            asked["logits_to_keep"] = 1
        return self._model(input_ids=tokens.ids.to(self._model.device), **asked)


def num_common(rows: Sequence[Sequence[int]]) -> int:
    """Return how many first ids rows have in common."""
    columns = zip(*rows, strict=False)
    return next((i for i, ids in enumerate(columns) if len(set(ids)) > 1), len(rows[0]))


def check_room(length: int, num: int, what: str) -> None:
    """Raise ConfigError unless `length` is more than the `num` tokens that stand before a text."""
    if length <= num:
        raise ConfigError(
            f"length: {length} leaves no room for the text: {num} tokens {what} stand before it. Set a "
            "larger length, or leave it out."
        )


def counted(ids: torch.Tensor, mask: torch.Tensor, whole: int) -> Tokens:
    """Return tokens with what they lost of `whole`."""
    return Tokens(ids=ids, mask=mask, lost=max(0, whole - int(mask.sum())))


def without_first(tokens: Tokens, cut: int) -> Tokens:
    """Return the tokens after the first `cut`, which are a template's."""
    return Tokens(ids=tokens.ids[:, cut:], mask=tokens.mask[:, cut:], lost=tokens.lost)


def conversation(system: str, text: str) -> list[dict[str, Any]]:
    """Return a system message and a user's, as chat templates take them."""
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def own_rows(states: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Return the rows [n, D] of states [1, L, D] that are not padding's."""
    return states[0][tokens.mask[0].bool().to(states.device)]


def t5_part(
    checkpoint: Checkpoint,
    *,
    suffix: str = "",
    classes: tuple[str, ...] = ("T5EncoderModel",),
    padded: bool = True,
) -> TextPart:
    """Return a part of T5's kind: it appends its end of text, and padding may be attended."""
    return TextPart(
        checkpoint,
        f"text_encoder{suffix}",
        f"tokenizer{suffix}",
        classes=classes,
        special=("eos", "pad"),
        padded=padded,
    )


def qwen_part(checkpoint: Checkpoint, *, tokenizer: str = "tokenizer") -> TextPart:
    """Return Qwen2.5-VL, of which it does not matter where padding stands: there is none, or it is kept."""
    return TextPart(
        checkpoint,
        "text_encoder",
        tokenizer,
        classes=("Qwen2_5_VLForConditionalGeneration",),
        special=("bos",),
        side=None,
    )


def template_facts(length: int, template: str, cut: int, *, mask: bool) -> dict[str, object]:
    """Return what a recipe says of a last layer's states, without the template's first `cut` tokens."""
    return {"length": length, "template": template, "cut": cut, "layer": -1, "mask": mask}
