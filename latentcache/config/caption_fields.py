"""Fields of texts, by themselves or with images. The rest of their settings is their encoder's own."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from latentcache.config.base import Positive, Section

Dtype = Literal["bfloat16", "float16", "float32"]


class CaptionField(Section):
    """What fields of texts share: which texts. Other keys are settings of the encoder."""

    model_config = ConfigDict(extra="allow", frozen=True)

    column: str | list[str] = Field(
        default="caption",
        description="The column of the texts: caption, or one of corpus.keep. A list of columns, or a "
        "column of lists, gives each clip several texts, of which a batch has one.",
    )
    max_choices: Positive | None = Field(
        default=None,
        description="Texts per clip at most; omitted: as many as a clip has when the field is planned.",
    )
    missing: Literal["fail", "empty"] = Field(
        default="fail",
        description="A clip without text: it fails in this field (no_caption), or counts as the empty "
        "text.",
    )
    dtype: Dtype = Field(default="bfloat16", description="The encoder computes in this dtype.")
    store: Dtype | None = Field(
        default=None, description="The dtype of what is stored; omitted: `dtype`."
    )

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if self.column == [] or (
            isinstance(self.column, list) and len(self.text_columns) < len(self.column)
        ):
            raise ValueError("column: give one column, or a list of different ones")
        return self

    @property
    def text_columns(self) -> list[str]:
        """The columns of the texts."""
        return [self.column] if isinstance(self.column, str) else list(dict.fromkeys(self.column))


class TextField(CaptionField):
    """States of a text encoder for each clip's caption. Other keys are settings of the encoder."""

    kind: Literal["text"]
    family: str = Field(
        description="The model family whose reference encodes, such as wan; or a plug-in's dotted module."
    )
    nulls: dict[str, str] = Field(
        default_factory=dict,
        description="Texts that stand for a dropped caption, by name, such as negative prompts. `null`, "
        "the empty text, is always there.",
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if "null" in self.nulls or "zeros" in self.nulls:
            raise ValueError(
                "nulls: `null` is the empty text, and `zeros` are zeros; use other names"
            )
        return self

    @property
    def columns(self) -> list[str]:
        """The columns that are read of each clip."""
        return self.text_columns

    def encoder(self) -> dict[str, Any]:
        """Return the settings of the encoder: family, dtype, and all keys that are not the field's own."""
        return {"family": self.family, "dtype": self.dtype, **(self.model_extra or {})}


class JointField(CaptionField):
    """States of each clip's caption, encoded with images. Other keys are settings of the encoder."""

    kind: Literal["joint"]
    family: str = Field(
        description="The model family whose reference encodes, such as hunyuan_video_i2v."
    )
    images: Literal["first"] | list[str] = Field(
        description="first: the clip's first frame. Or columns of corpus.keep, in their order, with the "
        "path of an image or video per source: the frame that is nearest in time to the clip's first one."
    )
    folder: str | None = Field(
        default=None,
        description="Where relative paths in columns of `images` start; omitted: at the corpus's table.",
    )
    same_shape: bool = Field(
        default=True,
        description="Whether a file of another aspect ratio than the clip's source fails (other_shape), "
        "since its crop would show other parts.",
    )

    @model_validator(mode="after")
    def _has_images(self) -> Self:
        if len(set(self.image_columns)) < len(self.image_columns) or self.images == []:
            raise ValueError("images: write first, or a list of different columns")
        return self

    @property
    def image_columns(self) -> list[str]:
        """The columns of the images' paths; none if they are the clip's own."""
        return [] if self.images == "first" else list(self.images)

    @property
    def num_images(self) -> int:
        """How many images each text is encoded with."""
        return len(self.image_columns) or 1

    @property
    def columns(self) -> list[str]:
        """The columns that are read of each clip: of the images' paths, then of the texts."""
        return [*self.image_columns, *self.text_columns]

    def encoder(self) -> dict[str, Any]:
        """Return the settings of the encoder; see `TextField.encoder`."""
        return {"family": self.family, "dtype": self.dtype, **(self.model_extra or {})}
