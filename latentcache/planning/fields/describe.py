"""What a field's configuration makes: its arrays, and the recipe of their values."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from latentcache.config.caption_fields import JointField, TextField
from latentcache.config.fields import (
    ArrayField,
    AudioField,
    FieldConfig,
    GivenField,
    MaskedField,
    RawField,
    ViewField,
    VisualField,
)
from latentcache.core.fields import MAX_SAMPLE_BYTES, FieldArray, to_arrays
from latentcache.core.records import Bucket
from latentcache.core.spec import ITEM_BYTES, LatentSpec
from latentcache.encoders.sounds import describe_sound_encoder
from latentcache.encoders.sounds.protocol import SoundArray
from latentcache.encoders.text import describe_joint_encoder, resolve
from latentcache.encoders.text.protocol import TextArray
from latentcache.encoders.towers import describe_image_tower
from latentcache.errors import ConfigError, EncoderError, GeometryError
from latentcache.format.manifest import Manifest

FIELD_RECIPE_VERSION = 1
#: Scales are ratios of small numbers, such as 2/3, which may be given with three digits.
MAX_DENOMINATOR = 32
SCALE_TOLERANCE = 1e-3
#: Fields that read each clip's source: its pixels, its sound, or its shape and times.
OF_SOURCES = RawField | VisualField | MaskedField | AudioField | JointField


@dataclass(frozen=True, kw_only=True)
class Description:
    """arrays: the first is the field's own. recipe: all that determines its values but the corpus."""

    arrays: tuple[FieldArray, ...]
    recipe: Mapping[str, Any]


def describe_field(config: FieldConfig, manifest: Manifest) -> Description:
    """Return what a field of a cache is. Raises ConfigError, EncoderError."""
    if isinstance(config, OF_SOURCES) and not manifest.provenance.has_pixels:
        raise _without_pixels(config)
    found = _described_by_kind(config, manifest)
    if not isinstance(config, ViewField):  # which stores nothing
        _check_bytes(found.arrays, manifest)
    return found


def _without_pixels(config: FieldConfig) -> ConfigError:
    return ConfigError(
        f"kind: {config.kind}: this cache was imported and has no pixels or sound of its clips' sources, "
        "and a file of another column is matched to these. Encode the sources with precompute, which makes "
        "the field beside the latents; or add values that you have with kind: array or "
        "latentcache.write_field."
    )


def _check_bytes(arrays: Sequence[FieldArray], manifest: Manifest) -> None:
    """Raise ConfigError where a clip's sample would be larger than any that can be stored."""
    for bucket, array in itertools.product(manifest.buckets, arrays):
        shape = array.shape_in(Bucket.parse(bucket.name), manifest.spec)
        num_bytes = math.prod(shape) * ITEM_BYTES[array.dtype]
        if num_bytes > MAX_SAMPLE_BYTES:
            raise ConfigError(
                f"of a clip of {bucket.name} it would store {list(shape)} of {array.dtype}, "
                f"{num_bytes / 1e9:.1f} GB, and a sample may have {MAX_SAMPLE_BYTES / 1e9:.1f} GB. Take "
                "fewer frames (of: first), or shorter or smaller clips."
            )


def _described_by_kind(config: FieldConfig, manifest: Manifest) -> Description:
    match config:
        case TextField():
            return _describe_text(config)
        case JointField():
            return _describe_joint(config)
        case RawField():
            frames = 0 if config.of == "clip" else 1  # 0: all
            pixels = FieldArray(name="", shape=(frames,), dtype="uint8", rule="pixels")
            return _described(config, pixels)
        case VisualField():
            return _describe_visual(config, manifest)
        case MaskedField():
            return _describe_masked(config, manifest.spec)
        case AudioField():
            return _describe_audio(config)
        case ArrayField():
            return _describe_array(config)
        case ViewField():
            return _describe_view(config, manifest.spec)
        case GivenField():
            return _describe_given(config)


def _describe_audio(config: AudioField) -> Description:
    """Describe a waveform [samples, channels], or an encoder's steps [n, width], of up to `seconds`."""
    if config.sound is None:
        assert config.rate is not None, "checked by the configuration"
        shape = (max(1, round(config.seconds * config.rate)), config.channels or 1)
        waves = {"": SoundArray(shape, config.store or "float32")}
        encoder: dict[str, object] = {"kind": "audio", "rate": config.rate, "channels": shape[1]}
        return Description(arrays=sound_arrays(waves), recipe=_audio_recipe(config, encoder, waves))
    found, recipe = describe_sound_encoder(config.sound, config.seconds)
    stored = {name: _as_stored(array, config.store) for name, array in found.items()}
    whole = _audio_recipe(config, dict(recipe), stored)
    return Description(arrays=sound_arrays(stored), recipe=whole)


def _audio_recipe(
    config: AudioField, encoder: dict[str, object], arrays: Mapping[str, SoundArray]
) -> dict[str, Any]:
    dtypes = [array.dtype for array in arrays.values()]
    facts = {"version": FIELD_RECIPE_VERSION, "kind": config.kind, "seconds": config.seconds}
    return plain({**facts, "resampler": "ffmpeg", "encoder": encoder, "stored": dtypes[0]})


def _as_stored(array: SoundArray, store: str | None) -> SoundArray:
    """Return an array in the dtype that is stored; ids keep theirs."""
    is_ids = array.dtype.startswith("uint")
    return array if store is None or is_ids else SoundArray(array.shape, store)


def sound_arrays(arrays: Mapping[str, SoundArray]) -> tuple[FieldArray, ...]:
    """Return arrays of sound as those of a field: the model gets a mask of what is shorter."""
    return tuple(
        FieldArray(
            name=name if n else "", shape=a.shape, dtype=a.dtype, padding="mask", rule="steps"
        )
        for n, (name, a) in enumerate(arrays.items())
    )


def _described(config: FieldConfig, *arrays: FieldArray) -> Description:
    has_files = getattr(config, "columns", None)
    left_out = {"folder"} if has_files else {"folder", "column", "same_shape"}
    left_out |= {"scale"}  # the array's shape says it
    recipe = {"version": FIELD_RECIPE_VERSION, **config.model_dump(mode="json", exclude=left_out)}
    return Description(arrays=arrays, recipe=plain({**recipe, "stored": arrays[0].dtype}))


def _describe_array(config: ArrayField) -> Description:
    padding = None if config.padding == "none" else config.padding
    array = FieldArray(name="", shape=tuple(config.shape), dtype=config.dtype, padding=padding)
    recipe = {"version": FIELD_RECIPE_VERSION, **config.model_dump(mode="json", exclude={"folder"})}
    return Description(arrays=(array,), recipe=plain(recipe))


def _describe_visual(config: VisualField, manifest: Manifest) -> Description:
    spec = manifest.spec
    if config.tower is not None:
        return _describe_tower(config, config.tower)
    _check_no_ids(spec)
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


def _check_no_ids(spec: LatentSpec) -> None:
    if spec.ids is not None:
        raise ConfigError(
            f"{spec.model_class} gives ids, which are no condition of a model. Use kind: raw, for pixels, "
            "or kind: visual with an image tower in `encoder`."
        )


def _describe_masked(config: MaskedField, spec: LatentSpec) -> Description:
    """Describe the latents of what is kept; of vace also of what is hidden, and the mask, by its pixels."""
    _check_no_ids(spec)
    is_pair = config.of == "vace"
    dtype = config.store or spec.dtype
    channels = spec.channels * (2 if is_pair else 1)
    arrays = [FieldArray(name="", shape=(channels, 0), dtype=dtype, rule="latents")]
    if is_pair:
        pixels = spec.stride[1] * spec.stride[2]
        arrays.append(FieldArray(name="mask", shape=(pixels, 0), dtype="uint8", rule="levels"))
    return _described(config, *arrays)


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
    _check_no_ids(spec)
    if spec.exactness != "prefix_exact":
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


def _describe_given(config: GivenField) -> Description:
    recipe = {"version": FIELD_RECIPE_VERSION, "kind": config.kind, "given": config.recipe}
    return Description(arrays=to_arrays(config.arrays), recipe=plain(recipe))


def _describe_text(config: TextField) -> Description:
    found = resolve.describe(config.encoder())
    return _described_text(config, *found, {"nulls": dict(config.nulls)})


def _describe_joint(config: JointField) -> Description:
    found = describe_joint_encoder(config.encoder(), config.num_images)
    facts = {"images": config.images}
    more = {"same_shape": config.same_shape} if config.image_columns else {}
    return _described_text(config, *found, {**facts, **more})


def _described_text(
    config: TextField | JointField,
    arrays: Mapping[str, TextArray],
    recipe: Mapping[str, Any],
    more: Mapping[str, Any],
) -> Description:
    dtype = config.store or config.dtype
    whole = {
        "version": FIELD_RECIPE_VERSION,
        "kind": config.kind,
        "encoder": recipe,
        "dtype": config.dtype,
        "stored": dtype,
        "columns": config.text_columns,
        "missing": config.missing,
        **more,
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
