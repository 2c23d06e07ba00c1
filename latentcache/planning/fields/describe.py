"""What a field's configuration makes: its arrays, and the recipe of their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from latentcache.config.fields import (
    ArrayField,
    FieldConfig,
    RawField,
    TextField,
    ViewField,
    VisualField,
)
from latentcache.core.fields import FieldArray
from latentcache.core.records import Bucket
from latentcache.core.spec import LatentSpec
from latentcache.encoders.text import resolve
from latentcache.encoders.text.protocol import TextArray
from latentcache.encoders.towers import describe_image_tower
from latentcache.errors import ConfigError, EncoderError, GeometryError
from latentcache.format.manifest import Manifest

FIELD_RECIPE_VERSION = 1
#: Scales are ratios of small numbers, such as 2/3, which may be given with three digits.
MAX_DENOMINATOR = 32
SCALE_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Description:
    """arrays: the first is the field's own. recipe: all that determines its values but the corpus."""

    arrays: tuple[FieldArray, ...]
    recipe: Mapping[str, Any]


def describe_field(config: FieldConfig, manifest: Manifest) -> Description:
    """Return what a field of a cache is. Raises ConfigError, EncoderError."""
    match config:
        case TextField():
            return _describe_text(config)
        case RawField():
            frames = 0 if config.of == "clip" else 1  # 0: all
            pixels = FieldArray(name="", shape=(frames,), dtype="uint8", rule="pixels")
            return _described(config, pixels)
        case VisualField():
            return _describe_visual(config, manifest)
        case ArrayField():
            return _describe_array(config)
        case ViewField():
            return _describe_view(config, manifest.spec)


def _described(config: FieldConfig, array: FieldArray) -> Description:
    left_out = {"folder"} if getattr(config, "column", None) else {"folder", "column", "same_shape"}
    left_out |= {"scale"}  # the array's shape says it
    recipe = {"version": FIELD_RECIPE_VERSION, **config.model_dump(mode="json", exclude=left_out)}
    return Description(arrays=(array,), recipe=plain({**recipe, "stored": array.dtype}))


def _describe_array(config: ArrayField) -> Description:
    padding = None if config.padding == "none" else config.padding
    array = FieldArray(name="", shape=tuple(config.shape), dtype=config.dtype, padding=padding)
    recipe = {"version": FIELD_RECIPE_VERSION, **config.model_dump(mode="json", exclude={"folder"})}
    return Description(arrays=(array,), recipe=plain(recipe))


def _describe_visual(config: VisualField, manifest: Manifest) -> Description:
    spec = manifest.spec
    if config.tower is not None:
        return _describe_tower(config, config.tower)
    if spec.ids is not None:
        raise ConfigError(
            f"encoder: latents: {spec.model_class} gives ids, which are no condition of a model"
        )
    whole = config.of.endswith("then_zeros") or config.of == "clip"
    if not whole:
        spec.check_frames(1)
    rule, stride = spec.frame_rule, spec.stride[0]
    if config.mask == "wan" and (rule.multiple % stride or rule.remainders != (1 % stride,)):
        raise ConfigError(
            f"mask: wan: it has {stride} values per latent frame and one frame that stands by itself, and "
            f"{spec.model_class} takes {rule.describe()} frames. Leave mask out."
        )
    scale = () if config.scale is None else _ratio(config.scale)
    shape = (spec.channels, 0 if whole else 1, *scale)
    array = FieldArray(name="", shape=shape, dtype=config.store or spec.dtype, rule="latents")
    for bucket in manifest.buckets if scale else ():
        _check_size(array, Bucket.parse(bucket.name), spec)
    return _described(config, array)


def _ratio(scale: float) -> tuple[int, int]:
    """Return a scale as numerator and denominator. Raises ConfigError where it is no simple ratio."""
    ratio = Fraction(scale).limit_denominator(MAX_DENOMINATOR)
    if not ratio or abs(ratio / Fraction(scale) - 1) > SCALE_TOLERANCE:
        raise ConfigError(
            f"scale: {scale:g} is no simple ratio, so sizes would be no whole numbers; use one such as 0.5"
        )
    return ratio.numerator, ratio.denominator


def _check_size(array: FieldArray, bucket: Bucket, spec: LatentSpec) -> None:
    """Raise ConfigError where the encoder cannot take a bucket's clips in the field's size."""
    try:
        array.shape_in(bucket, spec)
    except (ConfigError, GeometryError) as error:
        raise ConfigError(
            f"scale: clips of {bucket.height}x{bucket.width} cannot be encoded in that size. {error}"
        ) from None


def _describe_tower(config: VisualField, settings: Mapping[str, Any]) -> Description:
    shapes, recipe = describe_image_tower(settings, "encoder")
    dtype = config.store or str(settings["dtype"])
    whole = {
        "version": FIELD_RECIPE_VERSION,
        "kind": config.kind,
        "of": config.of,
        "encoder": recipe,
        **({"column": config.column, "same_shape": config.same_shape} if config.column else {}),
        "stored": dtype,
    }
    return Description(arrays=tower_arrays(shapes, dtype), recipe=plain(whole))


def tower_arrays(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> tuple[FieldArray, ...]:
    """Return an image tower's arrays as those of a field."""
    return tuple(
        FieldArray(name=name if n else "", shape=shape, dtype=dtype)
        for n, (name, shape) in enumerate(shapes.items())
    )


def _describe_view(config: ViewField, spec: LatentSpec) -> Description:
    if spec.exactness != "prefix_exact" or spec.ids is not None:
        raise ConfigError(
            f"kind: view: the first latent of {spec.model_class} is not that of the first frame "
            f"({spec.exactness}). Use kind: visual, of: first."
        )
    if spec.stored == "sample":
        raise ConfigError(
            "kind: view: the cache stores samples, and a condition is the mean. Use kind: visual, "
            "of: first."
        )
    array = FieldArray(name="", shape=(spec.channels, 1), dtype=spec.dtype, rule="latents")
    return _described(config, array)


def _describe_text(config: TextField) -> Description:
    settings = config.encoder()
    arrays, recipe = resolve.describe(settings)
    dtype = config.store or config.dtype
    whole = {
        "version": FIELD_RECIPE_VERSION,
        "kind": config.kind,
        "encoder": recipe,
        "dtype": config.dtype,
        "stored": dtype,
        "columns": config.columns,
        "missing": config.missing,
        "nulls": dict(config.nulls),
    }
    return Description(arrays=text_arrays(arrays, dtype), recipe=plain(whole))


def text_arrays(arrays: Mapping[str, TextArray], dtype: str) -> tuple[FieldArray, ...]:
    """Return a text encoder's arrays as those of a field. Raises EncoderError if there is none."""
    if not arrays:
        raise EncoderError("the text encoder names no array")
    return tuple(
        FieldArray(
            name=name if n else "",
            shape=tuple(array.shape),
            dtype=dtype,
            padding=array.padding,
            side=array.side,
        )
        for n, (name, array) in enumerate(arrays.items())
    )


def plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values, as reading them gives them back. Raises EncoderError."""
    try:
        return json.loads(json.dumps(recipe, allow_nan=False))  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise EncoderError(f"the encoder's recipe holds more than JSON values: {error}") from None
