"""CLIP's text models: 77 tokens, the pooled vector, and the layer before the last."""

from __future__ import annotations

import torch

from latentcache.encoders.pretrained.files import Checkpoint
from latentcache.encoders.text.part import TextPart, Tokens
from latentcache.errors import ConfigError

#: The end of text in configs from before transformers 4.31. It is no id of the tokenizer: with it, the
#: vector is taken at the text's largest id, which is the end of text if that is the vocabulary's last.
_OLD_EOS = 2


class ClipPart:
    """A CLIP text model with its tokenizer. `length` is the number of its positions, 77."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        suffix: str = "",
        *,
        classes: tuple[str, ...] = ("CLIPTextModel",),
    ) -> None:
        self.part = TextPart(
            checkpoint, f"text_encoder{suffix}", f"tokenizer{suffix}", classes=classes
        )
        self.length = self.part.setting("max_position_embeddings")
        self.width = self.part.width
        self._check_end_of_text()

    @property
    def projected(self) -> int:
        """Return the width of the projected pooled vector."""
        return self.part.setting("projection_dim")

    def tokens(self, text: str) -> Tokens:
        """Cut a text into tokens, padded to `length`."""
        return self.part.tokens(text, length=self.length)

    def pooled(self, tokens: Tokens, *, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the pooled vector [D], after the last norm, not projected."""
        vector: torch.Tensor = self.part.run(tokens, mask=mask).pooler_output[0]
        return vector

    def penultimate(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states [77, D] of the layer before the last, and the model's own first output.

        The latter is the projected vector [P] of a CLIPTextModelWithProjection.
        """
        output = self.part.run(tokens, layers=True)
        return output.hidden_states[-2][0], output[0][0]

    def _check_end_of_text(self) -> None:
        """Raise ConfigError if the model would pool at another token than the tokenizer's end of text."""
        configured, found = self.part.setting("eos_token_id"), self.part.tokenizer.eos_token_id
        last = self.part.setting("vocab_size") - 1
        if found not in ((last,) if configured == _OLD_EOS else (configured,)):
            raise ConfigError(
                f"{self.part.name}: the tokenizer ends a text with the id {found}, and the model takes the "
                f"pooled vector at {last if configured == _OLD_EOS else configured}. It is another model's "
                "tokenizer. Name the folder of the model's own."
            )
