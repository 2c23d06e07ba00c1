"""The section `fields`: one model per kind of field; those of texts are in `caption_fields`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from latentcache.config.base import Positive, Section
from latentcache.config.caption_fields import Dtype, JointField, TextField
from latentcache.config.files import read_yaml, validate
from latentcache.config.sections import Config
from latentcache.core.fields import check_name
from latentcache.errors import ConfigError, did_you_mean


def in_encoder(raw: Any, what: str, family: str) -> Any:
    """Refuse settings of an encoder that stand beside the field's own, as those of texts do."""
    beside = [key for key in ("family", "model") if isinstance(raw, Mapping) and key in raw]
    if beside:
        raise ValueError(
            f"{' and '.join(beside)}: settings of {what} stand in `encoder`, such as encoder: {{family: "
            f"{family}, model: FOLDER}}"
        )
    return raw


class FramesField(Section):
    """What fields of frames share: which file they are of."""

    column: str | None = Field(
        default=None,
        description="A column of corpus.keep with the path of another video or image per source, such as "
        "a depth map, a mask or a reference: its frames that are nearest in time to the clip's, resized "
        "and cropped alike. Omitted: the clip's own source.",
    )
    folder: str | None = Field(
        default=None,
        description="Where relative paths in `column` start; omitted: at the corpus's table.",
    )
    same_shape: bool = Field(
        default=True,
        description="Whether a file in `column` of another aspect ratio than the clip's source fails "
        "(other_shape), since the crop would show other parts.",
    )

    @property
    def columns(self) -> list[str]:
        """The columns that are read of each clip."""
        return [] if self.column is None else [self.column]


class RawField(FramesField):
    """Pixels of each clip, as the encoder of the latents gets them."""

    kind: Literal["raw"]
    of: Literal["first", "last", "clip"] = Field(
        default="first",
        description="Which frame of the clip: uint8 [1, H, W, 3]; or all: [T, H, W, 3].",
    )


class VisualField(FramesField):
    """The latents' own encoder, or an image tower, on frames that are derived from the clip's."""

    kind: Literal["visual"]
    of: Literal[
        "first", "last", "first_last", "clip", "first_then_zeros", "first_last_then_zeros"
    ] = Field(
        default="clip",
        description="The frames: the clip's first or last one by itself; both, for image towers; all, of "
        "another file; or the whole clip with all other frames zero in the encoder's range. "
        "(masked and vace, with `masks`, are described below.)",
    )
    encoder: Literal["latents"] | dict[str, Any] = Field(
        default="latents",
        description="`latents`: the cache's own encoder, of which the mean is stored. Or an image tower's "
        "settings: `family`, `model` and so on; see text-encoders.md.",
    )
    store: Dtype | None = Field(
        default=None,
        description="The dtype of what is stored; omitted: the latents', or what the tower computes in.",
    )
    scale: float | None = Field(
        default=None,
        gt=0,
        le=8,
        description="Another size of the same crop: the clip's height and width times this, such as 0.5. "
        "Omitted: the clip's own size.",
    )
    mask: Literal["none", "wan"] = Field(
        default="none",
        description="What batches get before the latents' channels: nothing; or Wan's mask of 4 channels, "
        "1 at the frames that are given.",
    )

    @model_validator(mode="before")
    @classmethod
    def _tower_apart(cls, raw: Any) -> Any:
        return in_encoder(raw, "an image tower", "wan_clip")

    @model_validator(mode="after")
    def _masked(self) -> Self:
        if self.mask == "wan" and not self.of.endswith("then_zeros"):
            raise ValueError("mask: it says which frames are zeros, and this field has no zeros")
        if self.encoder == "latents" and self.of == "first_last":
            raise ValueError("of: first_last is for image towers; name one in `encoder`")
        if self.of == "clip" and self.column is None and self.scale is None:
            raise ValueError(
                "of: clip: these are the latents themselves. Name another file's column in `column`, "
                "another size in `scale`, or say which frames: first, last, first_last, "
                "first_then_zeros or first_last_then_zeros"
            )
        if self.scale is not None:
            self._check_scale()
        if self.encoder != "latents" and (self.of.endswith("then_zeros") or self.of == "clip"):
            raise ValueError(
                "of: image towers take frames by themselves: first, last or first_last"
            )
        if self.encoder != "latents" and "frames" in self.encoder:
            raise ValueError("encoder.frames: `of` says which frames; leave it out")
        return self

    def _check_scale(self) -> None:
        if self.encoder != "latents":
            raise ValueError("scale: image towers resize what they get; leave it out")
        if self.mask != "none":
            raise ValueError(
                "scale: the mask is of the latents' own size; leave one of the two out"
            )
        if self.scale == 1:
            raise ValueError("scale: 1 is the clip's own size; leave it out")

    @property
    def tower(self) -> dict[str, Any] | None:
        """The settings of the image tower; None if the cache's own encoder is meant."""
        if isinstance(self.encoder, str):
            return None
        frames = "first_last" if self.of == "first_last" else "first"  # how many
        return {"dtype": "bfloat16", **self.encoder, "frames": frames}


class MaskedField(FramesField):
    """The latents' own encoder on clips of which a mask hides parts."""

    kind: Literal["visual"]
    of: Literal["masked", "vace"] = Field(
        description="masked: the clip with zeros where the mask is white. vace: that, and the clip with "
        "zeros where it is black, and the mask: the condition of Wan's VACE."
    )
    masks: str | None = Field(
        default=None,
        description="A column of corpus.keep with the path of a video or image per source: white is what "
        "a model is to fill in. An image is the mask of every frame. Omitted, of vace: all white, as "
        "for a control video in `column`.",
    )
    encoder: Literal["latents"] = Field(
        default="latents", description="The cache's own encoder, of which the mean is stored."
    )
    store: Dtype | None = Field(
        default=None, description="The dtype of what is stored; omitted: the latents'."
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.masks is None and self.of == "masked":
            raise ValueError(
                "of: masked needs `masks`, the column with the path of each clip's mask"
            )
        if self.masks is None and self.column is None:
            raise ValueError(
                "of: vace needs `masks`, a column with masks, or `column`, one with control videos"
            )
        if self.masks is not None and self.masks == self.column:
            raise ValueError("masks and column are the same column")
        return self

    @property
    def columns(self) -> list[str]:
        """The columns that are read of each clip: of the mask, then of the other file."""
        return [name for name in (self.masks, self.column) if name is not None]


class AudioField(Section):
    """What is heard while a clip's frames are shown."""

    kind: Literal["audio"]
    seconds: float = Field(
        gt=0,
        le=3600,
        description="Room for so many seconds per clip; what is longer is cut off, and counted.",
    )
    rate: int | None = Field(
        default=None,
        ge=1000,
        le=384_000,
        description="Samples per second of the waveform; with an encoder it is the model's own.",
    )
    channels: Literal[1, 2] | None = Field(
        default=None,
        description="Of the waveform: 1, the mean of both, or 2; with an encoder the model's own. "
        "Omitted: 1.",
    )
    encoder: dict[str, Any] | None = Field(
        default=None,
        description="Settings of an encoder of sound: `family`, `model` and so on; omitted: the waveform "
        "itself is stored.",
    )
    store: Dtype | None = Field(
        default=None,
        description="The dtype of what is stored; omitted: float32 of a waveform, else what the encoder "
        "computes in. Ids have their own.",
    )

    @model_validator(mode="before")
    @classmethod
    def _encoder_apart(cls, raw: Any) -> Any:
        return in_encoder(raw, "an encoder of sound", "wav2vec2")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.encoder is None and self.rate is None:
            raise ValueError("rate: say how many samples per second the waveform has")
        if self.encoder is not None and (self.rate or self.channels):
            raise ValueError("rate and channels are the encoder's own; leave them out")
        return self

    @property
    def columns(self) -> list[str]:
        """The columns that are read of each clip: none, for the sound is the source's own."""
        return []

    @property
    def sound(self) -> dict[str, Any] | None:
        """The settings of the encoder; None if the waveform is stored."""
        return None if self.encoder is None else {"dtype": "float32", **self.encoder}


class ArrayField(Section):
    """An array of numbers in a file of each clip's own: .npy, .safetensors or .json."""

    kind: Literal["array"]
    column: str = Field(
        description="A column of corpus.keep with the path of a file per source: .npy, .safetensors or "
        ".json."
    )
    folder: str | None = Field(
        default=None,
        description="Where relative paths in `column` start; omitted: at the corpus's table.",
    )
    shape: list[Positive] = Field(
        min_length=1,
        max_length=8,
        description="The shape of each clip's array; with `padding`, the first axis may be shorter.",
    )
    dtype: Literal["bfloat16", "float16", "float32", "uint8", "uint16", "uint32"] = Field(
        description="The dtype of what is stored. Fractions are rounded to it; whole numbers have to fit."
    )
    tensor: str | None = Field(
        default=None,
        description="The tensor's name in .safetensors files; omitted: each has a single one.",
    )
    padding: Literal["none", "zeros", "mask"] = Field(
        default="none",
        description="What batches have past a shorter array: nothing, for it fails; zeros; or zeros and a "
        "mask.",
    )

    @property
    def columns(self) -> list[str]:
        """The columns that are read of each clip."""
        return [self.column]


class ViewField(Section):
    """A part of the latents themselves: nothing is stored, and the loader takes it from what it reads."""

    kind: Literal["view"]
    of: Literal["first"] = Field(
        default="first",
        description="The latent of the first frame, of encoders that are prefix_exact.",
    )

    @property
    def columns(self) -> list[str]:
        """The columns that are read of each clip: none."""
        return []


class GivenField(Section):
    """Arrays that a program of a user's writes, by `latentcache.write_field`. recipe: how they are made."""

    kind: Literal["given"]
    arrays: list[dict[str, Any]]
    recipe: dict[str, Any] = Field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """The columns that are read of each clip: none."""
        return []


FieldConfig = (
    TextField
    | JointField
    | RawField
    | VisualField
    | MaskedField
    | AudioField
    | ArrayField
    | ViewField
    | GivenField
)
#: Fields that may read files of each clip's own, beside its source.
OF_FILES = FramesField | ArrayField | JointField


def path_columns(config: FieldConfig) -> list[str]:
    """Return which of a field's columns hold paths of such files: the first ones."""
    if isinstance(config, JointField):
        return config.image_columns
    return config.columns if isinstance(config, OF_FILES) else []


#: Those that a configuration can ask for.
MODELS: Mapping[str, type[FieldConfig]] = {
    "text": TextField,
    "joint": JointField,
    "raw": RawField,
    "visual": VisualField,
    "audio": AudioField,
    "array": ArrayField,
    "view": ViewField,
}
EXAMPLE = "NAME: {kind: text, family: wan, model: FOLDER}"
#: What a visual field with masks is of: a model of its own.
MASKED = ("masked", "vace")


def parse_field(name: str, raw: Any, where: str = "fields") -> FieldConfig:
    """Return a field's validated configuration. Raises ConfigError."""
    check_name(name)
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}.{name} is {raw!r}, and no field. Write  {EXAMPLE}")
    kind = raw.get("kind")
    if not isinstance(kind, str) or kind not in MODELS:
        raise ConfigError(
            f"{where}.{name}.kind: {'required' if kind is None else f'unknown kind {kind!r}'}."
            f"{did_you_mean(str(kind), MODELS)} Kinds: {', '.join(MODELS)}"
        )
    of_masks = kind == "visual" and ("masks" in raw or raw.get("of") in MASKED)
    model: type[FieldConfig] = MaskedField if of_masks else MODELS[kind]
    return validate(model, raw, f"{where}.{name}")


def stored_field(name: str, raw: Mapping[str, Any]) -> FieldConfig:
    """Return a field's configuration as its field.json has it. Raises ConfigError."""
    if raw.get("kind") == "given":
        return validate(GivenField, raw, f"fields.{name}")
    return parse_field(name, raw)


def parse_fields(raw: Mapping[str, Any], where: str = "fields") -> dict[str, FieldConfig]:
    """Return the validated fields of a configuration, by name. Raises ConfigError."""
    return {str(name): parse_field(str(name), field, where) for name, field in raw.items()}


def load_fields(path: str) -> dict[str, FieldConfig]:
    """Read a YAML file of fields by name, with or without `fields:` around them. Raises ConfigError."""
    data = read_yaml(path)
    fields = data.get("fields", data) if isinstance(data, dict) else None
    if not isinstance(fields, dict) or not fields:
        raise ConfigError(f"{path} holds no field; write  {EXAMPLE}")
    if "fields" in data and (others := [key for key in data if key not in Config.model_fields]):
        raise ConfigError(
            f"{path} has {', '.join(map(repr, others))} beside `fields`, which would be ignored. Move what "
            "is a field into `fields`."
        )
    return parse_fields(fields, Path(path).name)
