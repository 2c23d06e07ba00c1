"""What plain readers see of every shard format: zarr-python, tensorstore and pyarrow read the same bits."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zarr

from latentcache.core.dtypes import Array, numpy_dtype
from latentcache.format.shards import get_format
from latentcache.format.shards.protocol import ArrayLayout
from latentcache.storage.folder import Storage
from tests.tools.shards import (
    BUCKET,
    CODECS,
    DTYPES,
    READERS,
    bits,
    check_array,
    grow,
    make_layout,
    make_rows,
    open_array,
    write,
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_python_and_tensorstore_read_the_arrays(
    dtype: str, codec: str, reader: str, tmp_path: Path
) -> None:
    layout, storage = make_layout(dtype, codec), Storage(str(tmp_path))
    shards = [make_rows(layout, 4, failed=[1]), make_rows(layout, 3)]
    write("zarr", storage, layout, shards)
    array = open_array(reader, tmp_path)
    assert array.shape == (7, *layout.shape)
    if reader == "zarr-python":
        assert array.dtype == numpy_dtype(dtype)
    check_array(array, [*itertools.chain(*shards)])


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_python_and_tensorstore_read_an_array_that_grew(
    dtype: str, codec: str, reader: str, tmp_path: Path
) -> None:
    layout, storage = make_layout(dtype, codec), Storage(str(tmp_path))
    _, shards, _ = grow("zarr", storage, layout)
    shards[1].append(None)  # the row that no clip has, in the middle of the array
    check_array(open_array(reader, tmp_path), [*itertools.chain(*shards)])


@pytest.mark.parametrize("codec", CODECS)
def test_shards_of_an_array_that_grew_are_those_that_zarr_python_writes(
    codec: str, tmp_path: Path
) -> None:
    layout, storage = make_layout(codec=codec), Storage(str(tmp_path / "ours"))
    grown, shards, encoded = grow("zarr", storage, layout)
    theirs = Storage(str(tmp_path / "theirs"))
    for path, data in get_format("zarr").metadata([grown]).items():
        theirs.write(path, data)
    array = zarr.open(theirs.url)[f"latents/{BUCKET.name}"]
    array[4:7], array[12:] = np.stack(shards[1]), np.stack(shards[3])
    for index in (1, 3):
        assert theirs.read(encoded[index].path) == encoded[index].body + encoded[index].tail


def read_with_pyarrow(file: Path, layout: ArrayLayout) -> dict[int, Array]:
    """The rows of a Parquet shard, as pyarrow reads them."""
    table = pq.read_table(file)
    values = table["latents"].combine_chunks().flatten()
    flat = np.frombuffer(values.buffers()[1], numpy_dtype(layout.dtype)) if len(values) else []
    return dict(zip(table["row"].to_pylist(), np.reshape(flat, (-1, *layout.shape)), strict=True))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pyarrow_reads_the_files_of_an_array_that_grew(
    dtype: str, codec: str, tmp_path: Path
) -> None:
    grown, shards, encoded = grow("parquet", Storage(str(tmp_path)), make_layout(dtype, codec))
    for rows, shard in zip(shards, encoded, strict=True):
        found = read_with_pyarrow(tmp_path / shard.path, grown)
        stored = {n: row for n, row in enumerate(rows) if row is not None}
        assert found.keys() == stored.keys()
        for n, row in stored.items():
            np.testing.assert_array_equal(bits(found[n]), bits(row))
    whole_array = pyarrow.dataset.dataset(tmp_path / "latents" / BUCKET.name, format="parquet")
    assert whole_array.count_rows() == sum(row is not None for rows in shards for row in rows)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shard_objects_are_those_that_zarr_python_writes(
    dtype: str, codec: str, tmp_path: Path
) -> None:
    layout, storage = make_layout(dtype, codec), Storage(str(tmp_path / "ours"))
    shards = [make_rows(layout, 4), make_rows(layout, 3)]
    encoded = write("zarr", storage, layout, shards)
    theirs = Storage(str(tmp_path / "theirs"))
    for path, data in get_format("zarr").metadata([layout]).items():
        theirs.write(path, data)
    array = zarr.open(theirs.url)[f"latents/{BUCKET.name}"]
    array[:4], array[4:] = np.stack(shards[0]), np.stack(shards[1])
    # Theirs have no sample table, which no entry of their index would point to.
    assert [theirs.read(e.path) for e in encoded] == [e.body + e.tail for e in encoded]


@pytest.mark.slow
def test_a_process_that_imports_zarr_alone_reads_bfloat16(tmp_path: Path) -> None:
    layout, storage = make_layout(), Storage(str(tmp_path))
    rows = make_rows(layout, 4)
    write("zarr", storage, layout, [rows])
    code = (
        "import sys, zarr\n"
        f"sample = zarr.open({str(tmp_path)!r})['latents/{BUCKET.name}'][2]\n"
        "assert 'torch' not in sys.modules\n"
        "print(sample.dtype, sample.tobytes().hex())"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert rows[2] is not None
    assert result.stdout.split() == ["bfloat16", rows[2].tobytes().hex()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_pyarrow_reads_the_files(dtype: str, tmp_path: Path) -> None:
    layout, storage = make_layout(dtype), Storage(str(tmp_path))
    rows = make_rows(layout, 4, failed=[1])
    (encoded,) = write("parquet", storage, layout, [rows])
    table = pq.read_table(tmp_path / encoded.path)
    assert table["row"].to_pylist() == [0, 2, 3]
    metadata = {k: v.decode() for k, v in table.schema.metadata.items()}
    assert metadata[b"dtype"] == dtype
    shape = json.loads(metadata[b"shape"])
    values = table["latents"].combine_chunks().flatten()
    assert values.type == (pa.binary(2) if dtype == "bfloat16" else pa.from_numpy_dtype(dtype))
    found = np.frombuffer(values.buffers()[1], numpy_dtype(dtype)).reshape(3, *shape)
    expected = np.stack([row for row in rows if row is not None])
    np.testing.assert_array_equal(bits(found), bits(expected))
    assert pq.read_metadata(tmp_path / encoded.path).num_row_groups == 3
