"""Caches compared object by object, and the corpora and configurations that runs are tested on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import torch
import yaml
from PIL import Image

import latentcache
from latentcache.corpus.saved_probes import is_saved_probe
from latentcache.format import checksum
from latentcache.format.fields.paths import FIELDS
from latentcache.format.paths import INDEX, LEASE
from latentcache.format.schemas import RUN_COLUMNS
from latentcache.format.shards.protocol import TABLE_MARK
from latentcache.format.tables import from_parquet
from latentcache.running.log_lines import is_log
from tests.tools.videos import moving_pattern, write_video

ROOT = Path(__file__).parents[2]
#: Jobs whose modules have another name.
MODULES = {
    "copy": "copy_cache",
    "import": "import_cache",
    "train_example": "training.train_example",
}

#: What allows jobs on a cache to import the encoders that tests bring.
OWN_ENCODERS = [
    word
    for path in sorted((ROOT / "tests" / "tools" / "encoders").glob("[a-z]*.py"))
    for word in ("--allow-encoder", f"tests.tools.encoders.{path.stem}")
]
ENCODING = {"resume", "verify", "preview", "report"}


#: A job that takes longer than this hangs, however busy the machine is.
JOB_S = 900


def words_of(job: str, args: Sequence[object]) -> list[str]:
    """Return the arguments of a job."""
    return [*map(str, args), *(OWN_ENCODERS if job in ENCODING else [])]


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
        config[name] = {**config.get(name, {}), **changes}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start_job(
    job: str, *args: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `python -m jobs.JOB`. env: beside this process's."""
    command = [sys.executable, "-m", f"jobs.{job}", *words_of(job, args)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONFAULTHANDLER": "1", **(env or {})},
        # A shell that runs the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run_apart(
    job: str, *args: object, status: int = 0, env: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """Run a job in a process of its own to its end; returns what it printed to stdout and to stderr.

    It takes seconds to import what a job needs: `run_job`, unless it is the process that matters.
    """
    process = start_job(job, *args, env=env)
    out, err = process.communicate(timeout=JOB_S)
    check_end(process.returncode, status, out, err)
    return out, err


def check_end(ended: int, status: int, out: str, err: str) -> None:
    """A job ended with that exit status, and showed no traceback."""
    assert ended == status, f"exit status {ended}\n{out}\n{err}"
    assert "Traceback" not in err, err


def finish(*jobs: tuple[object, ...], status: int = 3) -> list[str]:
    """Start jobs together; each must end with that status. Returns what each printed."""
    processes = [start_job(str(job), *arguments) for job, *arguments in jobs]
    printed = [process.communicate(timeout=JOB_S) for process in processes]
    for process, (out, err) in zip(processes, printed, strict=True):
        assert process.returncode == status, out + err
        assert "Traceback" not in err, err
    return [out for out, _ in printed]


def run_job(job: str, *args: object, status: int = 0) -> tuple[str, str]:
    """Run a job in this process to its end; returns what it printed to stdout and to stderr."""
    out, err = io.StringIO(), io.StringIO()
    check_end(_run(job, args, out, err), status, out.getvalue(), err.getvalue())
    return out.getvalue(), err.getvalue()


def printed_by(job: str, *args: object, status: int = 0) -> str:
    """As `run_job`; returns all that it printed."""
    ended, printed = run_inline(job, *args)
    check_end(ended, status, "", printed)
    return printed


def run_inline(job: str, *args: object) -> tuple[int, str]:
    """Run a job in this process; returns its exit status and all that it printed."""
    printed = io.StringIO()
    return _run(job, args, printed, printed), printed.getvalue()


def main_of(job: str) -> Callable[[], int]:
    """Return what runs a job in this process."""
    main: Callable[[], int] = import_module(f"jobs.{MODULES.get(job, job)}").main
    return main


def _run(job: str, args: Sequence[object], out: io.StringIO, err: io.StringIO) -> int:
    handler = signal.getsignal(signal.SIGTERM)
    with (
        mock.patch.object(sys, "argv", [job, *words_of(job, args)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            return main_of(job)()
        except SystemExit as left:
            return int(left.code or 0)
        finally:
            signal.signal(signal.SIGTERM, handler)


def read_files(cache: Path) -> dict[str, bytes]:
    """Every finished object of a cache but its logs: path in it -> bytes."""
    paths = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return without_logs({str(path.relative_to(cache)): path.read_bytes() for path in paths})


def samples_of(cache: Path | str, options: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """The latents of every clip that counts, by key; each key once."""
    return bits_of(latentcache.open_cache(str(cache), options))


def bits_of(opened: latentcache.Cache) -> dict[str, bytes]:
    """The latents of every clip of a snapshot, by key; each key once."""
    numbers = range(len(opened))
    found = {opened[n]["key"]: opened.stored(n) for n in numbers}
    assert len(found) == len(numbers), "a key twice"
    return {key: latents.view(torch.uint8).numpy().tobytes() for key, latents in found.items()}


def objects_in(cache: Path) -> dict[str, bytes]:
    """The shards' objects and sample tables."""
    return {
        name: data
        for name, data in read_files(cache).items()
        if name.startswith(("latents/", "samples/")) and not name.endswith("zarr.json")
    }


def without_logs(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What is of the data, and not of the run."""
    return {name: data for name, data in files.items() if not is_log(name)}


#: What two runs of one plan may differ in: when they ran, and where.
RUN_FACTS = dict.fromkeys(("config", "created_s", "exclusive", "parent_sha256", checksum.KEY))


def objects_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The objects of a cache but its tables, without what belongs to a run."""
    objects = {name: data for name, data in files.items() if not is_table(name)}
    for name, data in objects.items():
        if name == "cache.json" or name.startswith("generations/"):
            facts = {
                key: value for key, value in RUN_FACTS.items() if key in (known := json.loads(data))
            }
            objects[name] = json.dumps({**known, **facts}).encode()
        elif TABLE_MARK in data:
            body, _, tail = split_object(data)
            objects[name] = body + tail
    return objects


def split_object(data: bytes) -> tuple[bytes, bytes, bytes]:
    """A shard object's chunks, its sample table, and what follows it."""
    mark = data.rindex(TABLE_MARK)
    start = mark - 8 - int.from_bytes(data[mark - 8 : mark], "little")
    return data[:start], data[start : mark - 8], data[mark + len(TABLE_MARK) :]


def tables_of(files: Mapping[str, bytes]) -> dict[str, pa.Table]:
    """The tables of a cache, without the facts of the run."""
    tables = {}
    for name, data in sorted(files.items()):
        if is_table(name):
            tables[name] = _without_run(from_parquet(data))
        elif TABLE_MARK in data:
            tables[name] = _without_run(from_parquet(split_object(data)[1]))
    return tables


def _without_run(table: pa.Table) -> pa.Table:
    return table.drop_columns([c for c in RUN_COLUMNS if c in table.column_names])


def read_tables(cache: Path) -> dict[str, pa.Table]:
    """The tables of a cache in a folder, without the facts of the run."""
    return tables_of(read_files(cache))


def is_table(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith("latents/")


def assert_same_cache(got: Path, expected: Path) -> None:
    """Two caches hold the same objects, bit for bit, and the same tables but for facts of the run."""
    assert_same_files(read_files(got), read_files(expected))


def assert_same_files(got: Mapping[str, bytes], expected: Mapping[str, bytes]) -> None:
    """As `assert_same_cache`, of caches anywhere: path in the cache -> bytes."""
    got, expected = without_logs(got), without_logs(expected)
    assert got.keys() == expected.keys()
    other = [name for name, data in expected.items() if got[name] != data]
    got, expected = ({name: files[name] for name in other} for files in (got, expected))
    got_objects, expected_objects = objects_of(got), objects_of(expected)
    different = [name for name, data in expected_objects.items() if got_objects[name] != data]
    assert not different, different
    # Files of the same bytes hold the same tables.
    other = {name for name in expected if got[name] != expected[name]}
    got_tables, expected_tables = (
        tables_of({name: files[name] for name in other}) for files in (got, expected)
    )
    for name, table in expected_tables.items():
        assert got_tables[name].schema.equals(table.schema), name
        # As text, because NaN differs from itself but is the same value here.
        assert repr(got_tables[name].to_pydict()) == repr(table.to_pydict()), name


def committed(cache: Path) -> dict[str, tuple[int, int]]:
    """The committed shards' sample tables, each with inode and time of its last change."""
    found = {}
    for path in cache.glob("samples/*/*.parquet"):
        stat = path.stat()
        found[str(path.relative_to(cache))] = (stat.st_ino, stat.st_mtime_ns)
    return found


def is_pointer(name: str) -> bool:
    """Tell whether an object is one that a cache replaces, or of planning that has not ended."""
    pointer = name in (INDEX, LEASE) or name.endswith("zarr.json") or is_saved_probe(name)
    return pointer or (name.startswith(f"{FIELDS}/") and name.endswith(f"/{INDEX}"))


def written_once(cache: Path) -> dict[str, tuple[int, int]]:
    """All that a cache never replaces, each with inode and time of its last change."""
    found = {}
    for path in cache.rglob("*"):
        name = str(path.relative_to(cache))
        if path.is_file() and path.suffix != ".tmp" and not (is_log(name) or is_pointer(name)):
            stat = path.stat()
            found[name] = (stat.st_ino, stat.st_mtime_ns)
    return found


def lines_of(cache: Path, keys: Sequence[str] = ("fingerprint",)) -> list[Any]:
    """Values of a cache's cache.json."""
    manifest = json.loads((cache / "cache.json").read_text())
    return [manifest[key] for key in keys]
