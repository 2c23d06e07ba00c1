"""What encoders of fields give, as it is stored; and whether a field was planned with the same encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from latentcache.core.dtypes import Array, as_numpy, torch_dtype
from latentcache.core.fields import FieldArray
from latentcache.errors import ClipError, EncoderError
from latentcache.format.fields.manifest import FieldManifest
from latentcache.format.manifest import recipe_difference
from latentcache.planning.fields.describe import plain


def to_stored(
    given: Mapping[str, torch.Tensor], names: Iterable[str], arrays: Sequence[FieldArray]
) -> list[Array]:
    """Return a clip's arrays as they are stored. names: the encoder's, in the order of `arrays`.

    Raises ClipError if one is not finite, EncoderError.
    """
    names = list(names)
    if set(given) != set(names):
        raise EncoderError(
            f"the encoder returned {', '.join(given) or 'nothing'}, not {', '.join(names)}"
        )
    return [_to_stored(given[name], array) for name, array in zip(names, arrays, strict=True)]


def _to_stored(tensor: torch.Tensor, array: FieldArray) -> Array:
    shape = tuple(tensor.shape)
    fits = len(shape) == len(array.shape) and shape[1:] == array.shape[1:]
    if not fits or not (shape[0] == array.shape[0] or (array.ragged and shape[0] < array.shape[0])):
        raise EncoderError(
            f"the encoder returned {list(shape)} for {array.name or 'its first array'}, which is "
            f"{list(array.shape)}"
        )
    kept = tensor.to("cpu", torch_dtype(array.dtype)).contiguous()
    if not torch.isfinite(kept).all():
        raise ClipError("non_finite", f"the encoder gave NaN or infinity, as {array.dtype}")
    return as_numpy(kept)


def check_encoder(
    field: FieldManifest, arrays: Sequence[FieldArray], recipe: Mapping[str, object]
) -> None:
    """Raise EncoderError if what was loaded is not the encoder that a field was planned with."""
    if tuple(arrays) != field.arrays:
        raise EncoderError(
            f"the encoder gives {_names(arrays)}, and the field {field.name} was planned with "
            f"{_names(field.arrays)}"
        )
    planned, here = field.recipe["encoder"], plain(recipe)
    if lines := recipe_difference({"encoder": planned}, {"encoder": here}):
        raise EncoderError(
            f"the encoder on this machine is not the one that the field {field.name} was planned with, so "
            "values of two would be mixed: " + "; ".join(lines)
        )


def _names(arrays: Sequence[FieldArray]) -> str:
    return ", ".join(f"{array.name or 'states'} {list(array.shape)}" for array in arrays)
