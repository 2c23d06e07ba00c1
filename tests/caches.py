"""Caches compared object by object, and the corpora and configurations that runs are tested on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from latentcache.tables import RUN_COLUMNS
from tests.videos import moving_pattern, write_video

ROOT = Path(__file__).parents[1]


def make_corpus(folder: Path, num_videos: int = 6, *, frames: int = 13) -> Path:
    """Some videos of 64x96 with captions, an image, a file that is no video and one that is too short."""
    folder.mkdir(parents=True)
    for index in range(num_videos):
        write_video(folder / f"v{index}.mp4", moving_pattern(frames, 64, 96, seed=index))
        (folder / f"v{index}.txt").write_text(f"pattern number {index}\n")
    Image.fromarray(moving_pattern(1, 64, 96, seed=99)[0]).save(folder / "picture.png")
    (folder / "page.mp4").write_text("<html>not found</html>")
    write_video(folder / "short.mp4", moving_pattern(3, 64, 96, seed=77))
    return folder


def make_config(
    folder: Path, corpus: Path, cache_url: str, /, **sections: Mapping[str, Any]
) -> Path:
    """Write a configuration for the weightless encoder; `sections` change it."""
    config: dict[str, dict[str, Any]] = {
        "corpus": {"source": str(corpus)},
        "clips": {"frames": 5, "select": "all", "size": [64, 96]},
        "encoder": {"kind": "dct", "store": "mean"},
        "cache": {"url": cache_url, "shard_clips": 3},
        "run": {"runner": "local", "decode_processes": 1},
    }
    for name, changes in sections.items():
        config[name] = {**config[name], **changes}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start_job(job: str, *args: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """Start `python -m jobs.JOB`."""
    command = [sys.executable, "-m", f"jobs.{job}", *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )


def run_job(job: str, *args: object, status: int = 0) -> tuple[str, str]:
    """Run a job to its end; returns what it printed to stdout and to stderr."""
    process = start_job(job, *args)
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, f"exit status {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out, err


def read_objects(cache: Path) -> dict[str, bytes]:
    """Every finished object of a cache but its tables: path -> bytes. cache.json without `config`."""
    objects = {}
    for path in cache.rglob("*"):
        name = str(path.relative_to(cache))
        is_table = path.suffix == ".parquet" and not name.startswith("latents/")
        if path.is_file() and not path.name.endswith(".tmp") and not is_table:
            objects[name] = path.read_bytes()
    manifest = {**json.loads(objects["cache.json"]), "config": None}
    return {**objects, "cache.json": json.dumps(manifest).encode()}


def read_tables(cache: Path) -> dict[str, pa.Table]:
    """Every table of a cache, without the facts of the run: path -> table."""
    tables = {}
    for path in sorted(cache.rglob("*.parquet")):
        if path.relative_to(cache).parts[0] != "latents":
            table = pq.read_table(path, partitioning=None)
            tables[str(path.relative_to(cache))] = table.drop_columns(
                [name for name in RUN_COLUMNS if name in table.column_names]
            )
    return tables


def assert_same_cache(got: Path, expected: Path) -> None:
    """Two caches hold the same objects, bit for bit, and the same tables but for facts of the run."""
    got_objects, expected_objects = read_objects(got), read_objects(expected)
    assert got_objects.keys() == expected_objects.keys()
    different = [name for name, data in expected_objects.items() if got_objects[name] != data]
    assert not different, different
    got_tables, expected_tables = read_tables(got), read_tables(expected)
    assert got_tables.keys() == expected_tables.keys()
    for name, table in expected_tables.items():
        assert got_tables[name].equals(table), name


def committed(cache: Path) -> dict[str, tuple[int, int]]:
    """The committed shards' sample tables, each with inode and time of its last change."""
    found = {}
    for path in cache.glob("samples/*/*.parquet"):
        stat = path.stat()
        found[str(path.relative_to(cache))] = (stat.st_ino, stat.st_mtime_ns)
    return found


def lines_of(cache: Path, keys: Sequence[str] = ("fingerprint",)) -> list[Any]:
    """Values of a cache's cache.json."""
    manifest = json.loads((cache / "cache.json").read_text())
    return [manifest[key] for key in keys]
