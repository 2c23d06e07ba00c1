"""Corpora for tests: folders of empty files, and one table in every format."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latentcache.config.sections import CorpusConfig
from latentcache.corpus.sources import Corpus, read_corpus

Rows = list[dict[str, Any]]


def read(source: object, **config: Any) -> Corpus:
    if str(source).startswith("memory://"):
        config = {"schemes": ["memory"], **config}
    return read_corpus(CorpusConfig(source=str(source), **config))


def column(corpus: Corpus, name: str) -> list[Any]:
    values: list[Any] = corpus.table[name].to_pylist()
    return values


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}
