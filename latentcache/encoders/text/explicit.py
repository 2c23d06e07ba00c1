"""Any text model of transformers, with everything that a family would know said in the settings."""

from __future__ import annotations

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
from latentcache.errors import ConfigError

Special = Literal["bos", "eos", "pad"]
_SPECIAL: tuple[Special, ...] = ("bos", "eos", "pad")
_PLACE = "{}"


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
            arrays["pooled"] = output[asked.pooled][0]
        return EncodedText(arrays, tokens.num_own, tokens.lost)

    def _check_side(self) -> None:
        if self.settings.pad_input and self.text.tokenizer.padding_side == "left":
            raise ConfigError(
                "cut: the tokenizer pads on the left, so the first tokens are padding's and not the "
                "template's. Set pad_input: false."
            )

    def _kept(self, output: Any, tokens: Tokens) -> torch.Tensor:
        asked = self.settings
        named = asked.layer == "last_hidden_state"
        states = output.last_hidden_state if named else output.hidden_states[asked.layer]
        states = states[:, asked.cut :]
        return states[0] if asked.padding == "attended" else own_rows(states, tokens)
