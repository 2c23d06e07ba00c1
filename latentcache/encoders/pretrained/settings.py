"""What a configuration says of a model of transformers, whatever it encodes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from latentcache.config.base import Section
from latentcache.encoders.pretrained.files import Checkpoint


class PretrainedSettings(Section):
    """Where a model is, and what it computes in."""

    model: str | None = Field(
        default=None,
        min_length=1,
        description="A local folder with the components in folders of their own (text_encoder, tokenizer), "
        "as diffusers saves pipelines.",
    )
    folders: dict[str, str] = Field(
        default_factory=dict,
        description="Folders of components that do not lie in `model`, by component.",
    )
    variant: str | None = Field(
        default=None, description="Of the weight files' names: fp16 for model.fp16.safetensors."
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        description="What the encoder computes in, and what its arrays are."
    )

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if self.model is None and not self.folders:
            raise ValueError(
                "needs `model`, a folder as diffusers saves pipelines, or `folders` by component"
            )
        return self

    def checkpoint(self) -> Checkpoint:
        """Return the checkpoint on this machine; reads nothing."""
        return Checkpoint(
            model=Path(self.model).expanduser() if self.model is not None else None,
            folders={name: Path(folder).expanduser() for name, folder in self.folders.items()},
            variant=self.variant,
        )
