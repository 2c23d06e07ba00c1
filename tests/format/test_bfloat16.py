from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.dtype import DataTypeValidationError, data_type_registry
from zarr.storage import MemoryStore

from latentcache.format.shards.bfloat16 import BFloat16

NATIVE = np.dtype(ml_dtypes.bfloat16)


def test_zarr_finds_it_by_name_and_by_numpy_dtype() -> None:
    assert data_type_registry.match_json("bfloat16", zarr_format=3) == BFloat16()
    assert data_type_registry.match_dtype(NATIVE) == BFloat16()
    assert BFloat16().to_json(3) == "bfloat16"
    assert BFloat16().to_native_dtype() == NATIVE
    assert BFloat16().item_size == 2


@pytest.mark.parametrize("other", [np.float16, np.float32, np.uint16])
def test_it_takes_no_other_numpy_dtype(other: type) -> None:
    with pytest.raises(DataTypeValidationError):
        BFloat16.from_native_dtype(np.dtype(other))


def test_it_is_refused_in_zarr_v2_and_in_big_endian() -> None:
    with pytest.raises(ValueError, match="Zarr v2 has no name"):
        BFloat16().to_json(2)
    with pytest.raises(ValueError, match="no big-endian form"):
        BFloat16(endianness="big")


@given(st.integers(0, 0xFFFF))
def test_fill_values_go_through_json(bits: int) -> None:
    value = np.array(bits, np.uint16).view(NATIVE)[()]
    is_nan = (bits & 0x7FFF) > 0x7F80
    text = json.dumps(BFloat16().to_json_scalar(value, zarr_format=3), allow_nan=False)
    back = BFloat16().from_json_scalar(json.loads(text), zarr_format=3)
    assert back.dtype == NATIVE
    assert (is_nan and bool(back != back)) or back.tobytes() == value.tobytes()


@pytest.mark.parametrize(
    ("text", "bits"),
    [("NaN", 0x7FC0), ("Infinity", 0x7F80), ("-Infinity", 0xFF80), ("0x7fc1", 0x7FC1), (1, 0x3F80)],
)
def test_fill_values_of_the_zarr_specification_are_read(text: Any, bits: int) -> None:
    value = BFloat16().from_json_scalar(text, zarr_format=3)
    assert int(value.view(np.uint16)) == bits


@pytest.mark.parametrize("wrong", [None, [1], True, {}])
def test_other_fill_values_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="is not a fill value"):
        BFloat16().from_json_scalar(wrong, zarr_format=3)


def test_zarr_arrays_are_written_and_read() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6).astype(NATIVE)
    array = zarr.create_array(MemoryStore(), shape=(4, 6), chunks=(2, 3), dtype=NATIVE)
    array[:] = values
    np.testing.assert_array_equal(np.asarray(array[:]).view(np.uint16), values.view(np.uint16))
    assert array.metadata.to_dict()["codecs"][0]["configuration"] == {"endian": "little"}
