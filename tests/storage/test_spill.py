"""Tables that go to a temporary file are the same rows, whatever they hold, and outlive their writer."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest

from latentcache.errors import MachineError
from latentcache.storage import spill as spilling
from latentcache.storage.spill import Spill, written


def varied(first: int, num: int) -> pa.Table:
    """Return rows with nulls, text, lists, structs and a dictionary."""
    numbers = range(first, first + num)
    table = pa.table(
        {
            "text": [None if n % 5 == 0 else f"é {n}" * (n % 9) for n in numbers],
            "list": pa.array([None if n % 3 else [str(n)] for n in numbers], pa.list_(pa.string())),
            "struct": [{"a": n, "b": str(n)} for n in numbers],
            "kind": pa.array([f"kind {n % 4}" for n in numbers]).dictionary_encode(),
        }
    )
    return table.replace_schema_metadata({"about": "rows"})


def test_rows_come_back_as_they_were_after_the_writer_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spilling, "BATCH_ROWS", 7)
    monkeypatch.setattr(spilling, "MAPPED_BYTES", 1 << 14)
    spill = Spill(kept_bytes=0)
    tables = [varied(100 * n, 100).slice(n, 90 - n) for n in range(20)]
    back = [spill.put(table) for table in tables]
    del spill
    gc.collect()
    for table, found in zip(tables, back, strict=True):
        assert found.schema.equals(table.schema, check_metadata=True)
        assert found.to_pylist() == table.to_pylist()
        found.validate(full=True)


def test_what_is_spilled_takes_no_memory_of_arrows() -> None:
    table = pa.table({"text": [str(n) * 9 for n in range(100_000)]})
    before = pa.total_allocated_bytes()
    back = Spill(kept_bytes=0).put(table)
    assert pa.total_allocated_bytes() - before < table.nbytes // 100
    assert back.equals(table)


def test_few_rows_stay_in_memory_and_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    table = varied(0, 10)
    assert Spill(kept_bytes=table.nbytes).put(table) is table
    empty = pa.table({"text": pa.array([], pa.string())})
    assert Spill(kept_bytes=0).put(empty).equals(empty)


def test_no_file_stays_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    back = Spill(kept_bytes=0).put(varied(0, 10))
    assert not list(tmp_path.iterdir())
    assert back.num_rows == 10


def test_a_temporary_folder_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(MachineError, match=r"temporary folder /nowhere cannot hold .* set TMPDIR"):
        Spill(kept_bytes=0).put(varied(0, 10))


def test_no_temporary_folder_at_all_is_trouble_of_the_machine_and_not_a_file_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    monkeypatch.setenv("TMPDIR", "/nowhere")
    for use in (
        lambda: Spill(kept_bytes=0).put(varied(0, 10)),
        lambda: written(lambda file: file.write(b"x")),
    ):
        with pytest.raises(
            MachineError, match=r"temporary folder /nowhere cannot hold .* set TMPDIR"
        ):
            use()
