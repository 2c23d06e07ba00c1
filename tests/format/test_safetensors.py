"""Files of float32 tensors: what is written is read, and nothing that a header says is believed."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.errors import CorruptionError
from latentcache.format.paths import QUANTISER
from latentcache.format.quantiser import sha256
from latentcache.format.safetensors import MAX_HEADER_BYTES, read_float32, safetensors_bytes
from latentcache.reading.cache import open_cache
from tests.tools.synthetic import write_cache, write_manifest

NUM_VALUES = 6


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 4 * NUM_VALUES], **changes}


def file_of(header: Any, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(4 * NUM_VALUES)


HARMFUL = {
    "empty": b"",
    "no_header": bytes(4),
    "length_beyond_the_file": file_of({"weight": entry()}, 1 << 63),
    "huge_header": file_of(b" " * (MAX_HEADER_BYTES + 1)),
    "no_json": file_of(b"\xff"),
    "nested": file_of(b"[" * 100_000),
    "list": file_of([entry()]),
    "entry_of_text": file_of({"weight": "x"}),
    "no_places": file_of({"weight": {"dtype": "F32", "shape": [2, 3]}}),
    "one_place": file_of({"weight": entry(data_offsets=[0])}),
    "places_of_text": file_of({"weight": entry(data_offsets=["0", "24"])}),
    "backwards": file_of({"weight": entry(data_offsets=[24, 0])}),
    "before_the_file": file_of({"weight": entry(data_offsets=[-24, 0])}),
    "beyond_the_file": file_of({"weight": entry(data_offsets=[4, 28])}),
    "other_type": file_of({"weight": entry(dtype="F64", shape=[3])}),
    "other_shape": file_of({"weight": entry(shape=[1 << 40, 3])}),
    "negative_shape": file_of({"weight": entry(shape=[-2, -3])}),
    "huge_and_empty": file_of({"weight": entry(shape=[1 << 62, 0, 1 << 62], data_offsets=[0, 0])}),
    "fraction": file_of({"weight": entry(shape=[1.5, 4])}),
    "shared": file_of({f"weight{n}": entry() for n in range(2)}),
}


def test_what_is_written_is_read() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.empty(0, 4), "c": torch.tensor(7.0)}
    found = read_float32(safetensors_bytes(tensors, {"note": "x"}))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", HARMFUL)
def test_a_header_that_lies_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"^its (header is not that of tensors|tensors share bytes)"
    ):
        read_float32(HARMFUL[name])


@pytest.mark.parametrize(
    "data",
    [
        HARMFUL["empty"],
        HARMFUL["nested"],
        file_of({"x": entry()}),
        file_of({"weight": entry(shape=[6])}),
    ],
)
def test_a_stranger_s_quantiser_is_refused_in_one_message(tmp_path: Path, data: bytes) -> None:
    written = write_cache(str(tmp_path))
    write_manifest(written.storage, replace(written.manifest, quantiser_sha256=sha256(data)))
    written.storage.write(QUANTISER, data)
    with pytest.raises(CorruptionError, match=QUANTISER):
        open_cache(written.url).quantiser()
