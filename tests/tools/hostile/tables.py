"""Cases of the snapshot and of sample tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentcache.format import checksum
from latentcache.format.paths import INDEX
from latentcache.format.schemas import INDEX_FACTS, INDEX_SCHEMA
from latentcache.format.tables import from_parquet, to_parquet
from latentcache.storage.folder import Storage
from tests.tools.hostile.cases import CASES, SAMPLES, case, reseal, sound
from tests.tools.synthetic import facts_of


def index_case(name: str, **values: Any) -> None:
    def make(folder: Path) -> None:
        written = sound(folder)
        index = from_parquet(written.storage.read(INDEX))
        rows = index.to_pylist()
        rows[0].update(values)
        table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
        written.storage.write(INDEX, to_parquet(table, facts_of(index)))

    CASES[name] = make


index_case("index_negative", num_ok=-1)
index_case("index_more_ok_than_clips", num_ok=5)
index_case("index_huge_shard", shard=10**15)
index_case("index_huge_counts", num_ok=2**31 - 1, num_clips=2**31 - 1)
index_case("index_path_up", bucket="../../x")
index_case("index_twice", shard=1)
index_case("index_more_clips_than_the_shard", num_clips=3, num_ok=3)
index_case("index_retires_what_is_counted", retired=[0])
index_case("index_retires_far_rows", retired=[2**31 - 1], num_clips=3, num_ok=3)
index_case("index_columns_up", columns="../../x")
index_case("index_columns_that_are_not_there", columns="000009-0123456789ab")


def index_facts_case(name: str, **facts: Any) -> None:
    def make(folder: Path) -> None:
        storage = sound(folder).storage
        index = from_parquet(storage.read(INDEX))
        known = facts_of(index)
        storage.write(INDEX, to_parquet(index, {INDEX_FACTS: {**known[INDEX_FACTS], **facts}}))

    CASES[name] = make


index_facts_case("index_of_a_far_generation", generation=10**18)
index_facts_case("index_of_a_negative_generation", generation=-1)
index_facts_case("index_of_a_generation_as_text", generation="1")
index_facts_case("index_of_another_cache", fingerprint="0" * 64)


@case
def index_of_other_types(folder: Path) -> None:
    storage = sound(folder).storage
    columns = {name: [["x"]] for name in INDEX_SCHEMA.names}
    storage.write(INDEX, to_parquet(pa.table(columns), index_facts(storage)))


@case
def index_of_many_rows_in_a_few_bytes(folder: Path) -> None:
    storage = sound(folder).storage
    rows = 200_000_000
    table = pa.table({"bucket": pa.nulls(rows, pa.string())})
    storage.write(INDEX, to_parquet(table, index_facts(storage)))


def index_facts(storage: Storage) -> dict[str, Any]:
    """The metadata of the sound snapshot, so that only its rows are what is wrong."""
    return facts_of(from_parquet(storage.read(INDEX)))


def change_samples(folder: Path, **columns: Any) -> None:
    """Set values of every row of one sample table, and seal it."""
    storage = sound(folder).storage
    table = from_parquet(storage.read(SAMPLES))
    for name, value in columns.items():
        array = value if isinstance(value, pa.Array) else pa.array([value] * 4, table[name].type)
        field = pa.field(name, array.type)
        at = table.column_names.index(name)
        table = table.set_column(at, field, array)
    storage.write(SAMPLES, to_parquet(table, facts_of(table)))


def samples_case(name: str, **columns: Any) -> None:
    CASES[name] = lambda folder: change_samples(folder, **columns)


samples_case("samples_offset_beyond", offset=2**45)
samples_case("samples_offset_huge", offset=2**62)
samples_case("samples_offset_negative", offset=-1)
samples_case("samples_length_huge", length=2**62)
samples_case("samples_length_two_gib", length=2**31)
samples_case("samples_length_zero", length=0)
samples_case("samples_length_negative", length=-(2**62))
samples_case("samples_without_place", offset=None, length=None)
samples_case("samples_offset_as_text", offset=pa.array(["0"] * 4))
samples_case("samples_key_as_list", key=pa.array([["a"] * 3] * 4))


@case
def samples_of_no_rows(folder: Path) -> None:
    storage = sound(folder).storage
    table = from_parquet(storage.read(SAMPLES)).slice(0, 0)
    storage.write(SAMPLES, to_parquet(table, facts_of(table)))


@case
def samples_without_columns(folder: Path) -> None:
    storage = sound(folder).storage
    table = from_parquet(storage.read(SAMPLES)).select(["key"])
    storage.write(SAMPLES, to_parquet(table, facts_of(table)))


@case
def samples_that_decompress_to_much(folder: Path) -> None:
    change_samples(folder, caption=pa.array(["x" * (300 << 20)] + [None] * 3))


@case
def samples_of_one_text_repeated(folder: Path) -> None:
    storage = sound(folder).storage
    text = pa.array(["x" * (1 << 19)])
    caption = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1 << 16, np.int32)), text)
    table = pa.table({"caption": caption, "status": ["ok"] * (1 << 16)})
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({checksum.KEY: checksum.EMPTY})
    storage.write(SAMPLES, checksum.seal(buffer.getvalue().to_pybytes()))


@case
def samples_with_a_footer_beyond_the_file(folder: Path) -> None:
    storage = sound(folder).storage
    data = bytearray(storage.read(SAMPLES))
    data[-8:-4] = (2**32 - 1).to_bytes(4, "little")
    storage.write(SAMPLES, reseal(bytes(data)))


@case
def samples_of_a_terabyte(folder: Path) -> None:
    sound(folder)
    with (folder / SAMPLES).open("r+b") as file:
        file.truncate(1 << 40)
