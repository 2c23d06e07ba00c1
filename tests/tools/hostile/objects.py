"""Cases of shard objects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa

from latentcache.format.tables import from_parquet, to_parquet
from tests.tools.hostile.cases import CASES, SAMPLES, case, shard_path, sound
from tests.tools.synthetic import facts_of


def change_chunk(folder: Path, change: Callable[[bytearray], None], **options: Any) -> None:
    """Change the bytes of the first clip, and make its CRC32C fit."""
    written = sound(folder, **options)
    storage, row = written.storage, from_parquet(written.storage.read(SAMPLES)).to_pylist()[0]
    path = shard_path(written)
    data = bytearray(storage.read(path))
    chunk = data[row["offset"] : row["offset"] + row["length"]]
    change(chunk)
    data[row["offset"] : row["offset"] + row["length"]] = chunk
    storage.write(path, bytes(data))
    table = from_parquet(storage.read(SAMPLES))
    crcs = table["crc32c"].to_pylist()
    crcs[0] = google_crc32c.value(bytes(chunk))
    at = table.column_names.index("crc32c")
    table = table.set_column(at, table.schema.field("crc32c"), pa.array(crcs, pa.uint32()))
    storage.write(SAMPLES, to_parquet(table, facts_of(table)))


def header_case(name: str, start: int, value: int) -> None:
    def change(chunk: bytearray) -> None:
        chunk[start : start + 4] = value.to_bytes(4, "little")

    CASES[name] = lambda folder: change_chunk(folder, change)


header_case("blosc_claims_two_gib", 4, 2**31 - 1)
header_case("blosc_claims_less", 4, 16)
header_case("blosc_claims_longer_input", 12, 2**31 - 1)


@case
def parquet_object_with_a_footer_beyond_the_file(folder: Path) -> None:
    written = sound(folder, "parquet")
    data = bytearray(written.storage.read(shard_path(written)))
    data[-8:-4] = (2**32 - 1).to_bytes(4, "little")
    written.storage.write(shard_path(written), bytes(data))
