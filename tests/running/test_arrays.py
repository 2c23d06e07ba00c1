"""Fields of arrays in files: what is read, what is refused, and what batches have."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import latentcache
from latentcache.config.fields import parse_field
from latentcache.core.dtypes import Array
from latentcache.core.fields import FieldArray
from latentcache.errors import ClipError, ConfigError
from latentcache.format.safetensors import safetensors_bytes
from latentcache.running.array_files import parse_array, to_field
from tests.tools.caches import run_inline
from tests.tools.fields import add, cache_of

pytestmark = pytest.mark.usefixtures("kept_pools")

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3) / 4


def npy(array: Array, **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def tensors(**arrays: Array) -> bytes:
    return safetensors_bytes({name: torch.from_numpy(a) for name, a in arrays.items()}, {})


@pytest.mark.parametrize(
    ("name", "data", "tensor"),
    [
        ("a.npy", npy(VALUES), None),
        ("a.NPY", npy(np.asfortranarray(VALUES)), None),
        ("a.npy", npy(VALUES.astype(">f8")), None),
        ("a.npy", npy(VALUES, version=(2, 0)), None),
        ("s3://b/a.safetensors", tensors(only=VALUES), None),
        ("a.safetensors", tensors(other=VALUES + 1, this=VALUES), "this"),
        ("a.json", json.dumps(VALUES.tolist()).encode(), None),
    ],
)
def test_arrays_are_read_from_each_kind_of_file(name: str, data: bytes, tensor: str | None) -> None:
    field = FieldArray(name="", shape=(2, 3), dtype="float32")
    found = to_field(parse_array(data, name, tensor), field)
    np.testing.assert_array_equal(found, VALUES)
    assert found.dtype == np.dtype("float32")
    assert found.flags.c_contiguous


def test_bfloat16_is_read_as_it_is() -> None:
    values = torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
    found = parse_array(safetensors_bytes({"x": values}, {"made": "here"}), "a.safetensors", None)
    assert found.dtype == ml_dtypes.bfloat16
    field = FieldArray(name="", shape=(1, 2), dtype="bfloat16")
    assert to_field(found, field).tolist() == values.tolist()


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> bytes:
    return json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    ("name", "data", "tensor", "message"),
    [
        ("a.txt", b"1 2", None, "none of .npy, .safetensors, .json"),
        ("a.npz", b"PK", None, "none of"),
        ("a", b"", None, "none of"),
        ("a.npy", b"", None, "no whole .npy file"),
        ("a.npy", npy(VALUES)[:-1], None, "23 bytes for \\[2, 3\\]"),
        ("a.npy", npy(VALUES) + b"x", None, "25 bytes"),
        ("a.npy", npy(np.array([{}], object), allow_pickle=True), None, "Python objects"),
        ("a.npy", npy(VALUES), "x", "leave `tensor` out"),
        ("a.safetensors", b"", None, "no whole"),
        ("a.safetensors", struct.pack("<Q", 1 << 60), None, "longer than the file"),
        ("a.safetensors", header(b"[]"), None, "0 tensors"),
        ("a.safetensors", header(b"{"), None, "no whole"),
        ("a.safetensors", header(b"3"), None, "no whole"),
        ("a.safetensors", header(b'{"x": 1}'), None, "no whole"),
        ("a.safetensors", header(entry([2], [0, 8])), None, "outside of the file"),
        ("a.safetensors", header(entry([2], [-8, 0]), b"12345678"), None, "outside of the file"),
        ("a.safetensors", header(entry([3], [0, 8]), b"12345678"), None, "8 bytes for"),
        ("a.safetensors", header(entry([-1, -2], [0, 8]), b"12345678"), None, "8 bytes for"),
        ("a.safetensors", header(entry([8], [0, 8], "F8_E4M3"), b"12345678"), None, "F8_E4M3"),
        ("a.safetensors", tensors(one=VALUES, two=VALUES), None, "needs `tensor`"),
        ("a.safetensors", tensors(one=VALUES), "two", "no tensor 'two', but one"),
        ("a.json", b"[[1, 2], [3]]", None, "no whole .json file"),
        ("a.json", b"[1, NaN]", None, "NaN is no number"),
        ("a.json", b"[" * 100_000, None, "no whole .json file"),
        ("a.json", b"\xff", None, "no whole .json file"),
    ],
)
def test_files_that_are_damaged_or_hostile_are_refused(
    name: str, data: bytes, tensor: str | None, message: str
) -> None:
    with pytest.raises(ClipError, match=message) as caught:
        parse_array(data, name, tensor)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("values", "dtype", "padding", "reason"),
    [
        (np.zeros((3, 2)), "float32", None, "other_array"),
        (np.zeros(6), "float32", None, "other_array"),
        (np.zeros(()), "float32", None, "other_array"),
        (np.zeros((1, 3)), "float32", None, "other_array"),
        (np.zeros((3, 3)), "float32", "mask", "other_array"),
        (np.full((2, 3), 0.5), "uint8", None, "other_array"),
        (np.full((2, 3), 256), "uint8", None, "other_array"),
        (np.full((2, 3), -1), "uint32", None, "other_array"),
        (np.full((2, 3), "1"), "float32", None, "other_array"),
        (np.full((2, 3), 1j), "float32", None, "other_array"),
        (np.full((2, 3), np.nan), "bfloat16", None, "non_finite"),
        (np.full((2, 3), 1e6), "float16", None, "non_finite"),
        (np.full((2, 3), 1e300), "float32", None, "non_finite"),
        (np.full((2, 3), 10**30, object), "float32", None, "other_array"),
    ],
)
def test_arrays_that_do_not_fit_fail_their_clip(
    values: Array, dtype: str, padding: Any, reason: str
) -> None:
    field = FieldArray(name="", shape=(2, 3), dtype=dtype, padding=padding)
    with pytest.raises(ClipError) as caught:
        to_field(values, field)
    assert caught.value.reason == reason


def test_whole_numbers_that_fit_are_kept_and_fractions_rounded() -> None:
    whole = FieldArray(name="", shape=(2,), dtype="uint8")
    assert to_field(np.array([255.0, True]), whole).tolist() == [255, 1]
    assert to_field(np.array([[True], [False]])[:, 0], whole).tolist() == [1, 0]
    rounded = FieldArray(name="", shape=(1,), dtype="bfloat16")
    assert to_field(np.array([1 / 3]), rounded).tolist() == [0.333984375]


@pytest.mark.slow
def test_batches_have_arrays_of_files_with_their_mask(tmp_path: Path) -> None:
    files = tmp_path / "arrays"
    files.mkdir()
    own = [np.full((n + 1, 3), n, np.float32) for n in range(3)]
    for n, array in enumerate(own):
        (files / f"{n}.npy").write_bytes(npy(array))
    (files / "bad.npy").write_bytes(npy(np.zeros((9, 9))))
    paths = ["0.npy", str(files / "1.npy"), "2.npy", "gone.npy", "bad.npy", None, ".", "pipe.npy"]
    os.mkfifo(files / "pipe.npy")
    texts = [None if path is None else [path] for path in paths]
    cache = cache_of(tmp_path, ["a"] * len(paths), texts=texts)
    field = {
        "kind": "array", "column": "texts", "folder": str(files),
        "shape": [4, 3], "dtype": "float32", "padding": "mask",
    }  # fmt: skip
    printed = add(cache, "run.max_failed_fraction=1", status=3, emb=field)
    for num, reason in [
        (1, "missing"),
        (1, "other_array"),
        (1, "missing_input"),
        (2, "unreadable"),
    ]:
        assert f"{num} x {reason}:" in printed, printed
    url = cache.storage.url
    # Of the cache of the tests, one of these clips has no latent.
    batch = next(iter(latentcache.LatentLoader(url, fields=["emb"], batch_size=9, shuffle=False)))
    numbers = [int(key.partition("#")[0].removeprefix("v")) for key in batch["key"]]
    assert set(numbers) < {0, 1, 2}
    for row, n in enumerate(numbers):
        assert batch["emb_mask"][row].tolist() == [k <= n for k in range(4)]
        np.testing.assert_array_equal(batch["emb"][row, : n + 1], own[n])
        assert not batch["emb"][row, n + 1 :].any()
    (files / "gone.npy").write_bytes(npy(own[0]))
    (files / "bad.npy").write_bytes(npy(own[1]))
    status, printed = run_inline("resume", url, "--retry-failed", "--field", "emb")
    assert (status, "retry    4 clips of the field emb" in printed) == (3, True), printed
    assert "5 clips ok, 3 failed" in printed
    assert run_inline("verify", url)[0] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": []}, "at least 1"),
        ({"shape": [0]}, "greater than 0"),
        ({"shape": [1 << 40]}, "no sample is as large"),
        ({"dtype": "int64"}, "dtype"),
        ({"column": None}, "column"),
    ],
)
def test_arrays_that_cannot_be_stored_are_refused(settings: dict[str, Any], message: str) -> None:
    from latentcache.planning.fields.describe import describe_field

    field = {"kind": "array", "column": "c", "shape": [2], "dtype": "float32", **settings}
    with pytest.raises(ConfigError, match=message):
        describe_field(parse_field("x", field), None)  # type: ignore[arg-type]
