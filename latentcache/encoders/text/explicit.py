"""Any text model of transformers, with everything that a family would know said in the settings."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from latentcache.config.base import Positive
from latentcache.encoders.text.cleaning import Cleaning
from latentcache.encoders.text.family import Family
from latentcache.encoders.text.part import TextPart, Tokens, own_rows, without_first
from latentcache.encoders.text.protocol import EncodedText, Padding, TextArray
from latentcache.encoders.text.settings import TextSettings
from latentcache.errors import ClipError, ConfigError, LatentCacheError

Special = Literal["bos", "eos", "pad"]
_SPECIAL: tuple[Special, ...] = ("bos", "eos", "pad")
_PLACE = "{}"
#: How names of tables of positions end, of which a longer text has no more.
_POSITIONS = (
    "position_embeddings.weight",
    "position_embedding.weight",
    "embed_positions.weight",
    "wpe.weight",
)
#: Rows that such tables have beside those of `max_position_embeddings`: of BART's kind, two.
_SPARE_POSITIONS = (0, 2)
#: Tokens of the longest text that is tried when the model is loaded.
_MOST_TRIED = 8192


class Settings(TextSettings):
    """Nothing but `template`, `cut` and `pooled` has a default: it would be a guess."""

    family: Literal["transformers"]
    model_class: str = Field(description="Class of transformers, such as BertModel.")
    length: Positive = Field(description="Tokens, without those that are cut.")
    cleaning: Cleaning = Field(
        description="none; strip: white space at the ends; ftfy: repair, unescape HTML, collapse spaces."
    )
    pad_input: bool = Field(description="Whether the model runs on `length` tokens, padded.")
    mask_input: bool = Field(description="Whether the model gets the mask of the padding.")
    layer: int | Literal["last_hidden_state"] = Field(
        description="Which states: last_hidden_state, or an index of hidden_states, such as -2."
    )
    padding: Padding = Field(
        description="What stands past a text's states, and what the trained model does with it: zeros "
        "(attended zeros), attended (padding's own states) or mask."
    )
    template: str = Field(default=_PLACE, description="Text with one {}, where the caption goes.")
    cut: int = Field(
        default=0, ge=0, description="How many first tokens are dropped: the template's."
    )
    pooled: Literal["pooler_output", "text_embeds"] | None = Field(
        default=None, description="A vector of the model's output that is stored, too."
    )
    special: tuple[Special, ...] = Field(
        default=_SPECIAL, description="Special ids that tokenizer and config must agree on."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.template.count(_PLACE) != 1:
            raise ValueError("template: needs one {}, where the caption goes")
        if self.padding == "attended" and not self.pad_input:
            raise ValueError(
                "padding: attended keeps the states of padding, and pad_input: false has none"
            )
        return self


class Encoder(Family[Settings]):
    """States [n, D] or [length, D], and `pooled` [P] if it is asked for."""

    source = "the settings"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.cleaning = settings.cleaning
        unused = () if settings.pooled is not None else ("pooler.",)
        checkpoint = replace(settings.checkpoint(), unused={"text_encoder": unused})
        self.text = TextPart(
            checkpoint,
            "text_encoder",
            "tokenizer",
            classes=settings.model_class,
            special=settings.special,
            side=None,
            padded=False,
        )
        self._check_fits_model()
        if settings.cut:
            self.text.check_cut(settings.template, settings.cut)
            self._check_side()
        self.parts = (self.text,)
        side = self.text.tokenizer.padding_side
        shape = (settings.length, self.text.width)
        self.arrays = {"states": TextArray(shape, padding=settings.padding, side=side)}
        if settings.pooled is not None:
            is_projected = settings.pooled == "text_embeds"
            width = self.text.setting("projection_dim") if is_projected else self.text.width
            self.arrays["pooled"] = TextArray((width,), padding=None)
        told = {"family", "dtype", "cleaning", "model", "folders", "variant"}
        self.facts = settings.model_dump(mode="json", exclude=told)

    def states(self, text: str) -> EncodedText:
        """Encode as the settings say."""
        asked = self.settings
        whole = self.text.tokens(
            asked.template.replace(_PLACE, text),
            length=asked.length + asked.cut,
            padded=asked.pad_input,
        )
        output = self.text.run(
            whole,
            mask=whole.mask if asked.mask_input else None,
            layers=asked.layer != "last_hidden_state",
        )
        tokens = without_first(whole, asked.cut)
        arrays = {"states": self._kept(output, tokens)}
        if asked.pooled is not None:
            arrays["pooled"] = self._given(output, asked.pooled, "pooled")[0]
        return EncodedText(arrays, tokens.num_own, tokens.lost)

    def check_reads_input(self) -> None:
        """Also raise ConfigError if the model cannot run as the settings say, up to their length."""
        num = min(self.settings.length + self.settings.cut, _MOST_TRIED)
        try:
            # What is wrong with this text only, or too much for the memory, need not be so with captions.
            with contextlib.suppress(ClipError, torch.OutOfMemoryError):
                self.encode("a " * num)
            super().check_reads_input()
        except (LatentCacheError, torch.OutOfMemoryError):
            raise
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise ConfigError(
                f"length or model_class: {self.text.class_name} cannot encode a text of {num} tokens: "
                f"{type(error).__name__}: {reason}. Set a length that its positions reach, and a class "
                "that takes nothing but token ids and a mask, such as an encoder's."
            ) from error

    def _check_fits_model(self) -> None:
        """Raise ConfigError for settings that the model's config or its tokenizer rules out."""
        asked, name = self.settings, self.text.class_name
        if isinstance(asked.layer, int):
            self._check_planned_layer(asked.layer)
        if asked.pad_input and self.text.tokenizer.pad_token is None:
            raise ConfigError(
                "pad_input: true: the tokenizer has no padding token. Set pad_input: false, or give the "
                "tokenizer the one that the trained model knows."
            )
        num, most = asked.length + asked.cut, self._num_positions()
        if most is not None and num > most:
            raise ConfigError(
                f"length: {asked.length}{f' and cut: {asked.cut}' if asked.cut else ''}: {name} has "
                f"positions for {most} tokens here, so longer texts would fail. Set a length of at most "
                f"{most - asked.cut}."
            )

    def _check_planned_layer(self, layer: int) -> None:
        """Raise ConfigError if there are no such states, as far as the config says."""
        layers = self.text.number("num_hidden_layers")
        if layers is None or -layers - 1 <= layer <= layers:
            return
        # Some models give more states than these, such as those that shorten texts.
        num = self.text.count_states()
        if num is not None:
            self._check_layer(layer, num)

    def _check_layer(self, layer: int, num_states: int) -> None:
        """Raise ConfigError unless `layer` is an index of so many states."""
        if not -num_states <= layer < num_states:
            raise ConfigError(
                f"layer: {layer}: {self.text.class_name} gives {num_states} hidden_states here, which have "
                f"the indices {-num_states} to {num_states - 1}"
            )

    def _num_positions(self) -> int | None:
        """Return how many tokens the model's table of positions reaches, None where it has none.

        Files may hold a table that the model does not use, such as DeBERTa's.
        """
        most = self.text.number("max_position_embeddings")
        if most is None or not _has_positions(self.text.stored_shapes(), most):
            return None
        return most if _has_positions(self.text.parameter_shapes(), most) else None

    def _check_side(self) -> None:
        if self.settings.pad_input and self.text.tokenizer.padding_side == "left":
            raise ConfigError(
                "cut: the tokenizer pads on the left, so the first tokens are padding's and not the "
                "template's. Set pad_input: false."
            )

    def _kept(self, output: Any, tokens: Tokens) -> torch.Tensor:
        asked = self.settings
        if asked.layer == "last_hidden_state":
            states = self._given(output, asked.layer, "layer")
        else:
            layers = self._given(output, "hidden_states", "layer")
            self._check_layer(asked.layer, len(layers))
            states = layers[asked.layer]
        states = states[:, asked.cut :]
        return states[0] if asked.padding == "attended" else own_rows(states, tokens)

    def _given(self, output: Any, name: str, setting: str) -> Any:
        """Return a part of the model's output. Raises ConfigError if it has none of that name."""
        found = getattr(output, name, None)
        if found is not None:
            return found
        raise ConfigError(
            f"{setting}: {self.text.class_name} gives no {name}, but {', '.join(output.keys())}. Set "
            f"another {setting}, or a model_class that gives it."
        )


def _has_positions(shapes: Mapping[str, tuple[int, ...]], most: int) -> bool:
    """Whether there is a table of `most` positions among tensors."""
    rows = {shape[0] for name, shape in shapes.items() if shape and name.endswith(_POSITIONS)}
    return bool(rows & {most + spare for spare in _SPARE_POSITIONS})
