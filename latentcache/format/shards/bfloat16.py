"""The Zarr data type `bfloat16` for zarr-python, under the name that tensorstore and zarrs use.

zarr-python imports this module through entry points (see pyproject.toml), so that a plain
`zarr.open` reads a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import ml_dtypes
import numpy as np
from zarr.core.buffer.cpu import Buffer
from zarr.core.dtype.common import HasEndianness, HasItemSize
from zarr.dtype import DataTypeValidationError, ZDType, data_type_registry

__all__ = ["BFloat16", "Buffer"]

_NATIVE: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
_NO_V2 = "bfloat16 is a data type of Zarr v3; Zarr v2 has no name for it"


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[np.dtype[Any], Any], HasEndianness, HasItemSize):
    """The upper 16 bits of a float32, little-endian, as ml_dtypes gives them to numpy."""

    dtype_cls: ClassVar[type[np.dtype[Any]]] = type(_NATIVE)
    _zarr_v3_name: ClassVar[str] = "bfloat16"

    def __post_init__(self) -> None:
        if self.endianness != "little":
            raise ValueError("numpy's bfloat16, from ml_dtypes, has no big-endian form")

    @property
    def item_size(self) -> int:
        """Bytes of one element."""
        return _NATIVE.itemsize

    @classmethod
    def from_native_dtype(cls, dtype: np.dtype[Any]) -> Self:
        """Return this type for ml_dtypes' bfloat16; raises DataTypeValidationError else."""
        if cls._check_native_dtype(dtype):
            return cls()
        raise DataTypeValidationError(f"{dtype} is not {_NATIVE}")

    def to_native_dtype(self) -> np.dtype[Any]:
        """Return the numpy dtype of ml_dtypes."""
        return _NATIVE

    @classmethod
    def _from_json_v2(cls, data: Any) -> Self:  # noqa: ARG003 - zarr-python's signature
        raise DataTypeValidationError(_NO_V2)

    @classmethod
    def _from_json_v3(cls, data: Any) -> Self:
        if data == cls._zarr_v3_name:
            return cls()
        raise DataTypeValidationError(f"{data!r} is not {cls._zarr_v3_name!r}")

    def to_json(self, zarr_format: Literal[2, 3]) -> Any:
        """Return the name of the data type in `zarr.json`."""
        if zarr_format != 3:
            raise ValueError(_NO_V2)
        return self._zarr_v3_name

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, int | float | np.number | ml_dtypes.bfloat16)

    def cast_scalar(self, data: object) -> Any:
        """Return `data` rounded to bfloat16; raises TypeError where it is no number."""
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} is not a number, so it cannot be a bfloat16")
        return _NATIVE.type(data)

    def default_scalar(self) -> Any:
        """Return zero."""
        return _NATIVE.type(0)

    def from_json_scalar(self, data: Any, *, zarr_format: Literal[2, 3]) -> Any:
        """Read a fill value: a number, `NaN`, `Infinity`, `-Infinity`, or bits such as `0x7fc0`."""
        if zarr_format != 3 or isinstance(data, bool) or not isinstance(data, int | float | str):
            raise TypeError(f"{data!r} is not a fill value of bfloat16 in Zarr v3")
        if isinstance(data, str) and data.startswith("0x"):
            return np.array(int(data, 16), np.uint16).view(_NATIVE)[()]
        return _NATIVE.type(float(data))

    def to_json_scalar(self, data: object, *, zarr_format: Literal[2, 3]) -> float | str:
        """Write a fill value."""
        if zarr_format != 3:
            raise ValueError(_NO_V2)
        value = float(self.cast_scalar(data))
        if np.isnan(value):
            return "NaN"
        return value if np.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


data_type_registry.register("bfloat16", BFloat16)  # also where the entry point is not installed
