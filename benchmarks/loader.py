"""Loaders on the same latents: latentcache beside its peers, in alternating runs of one session.

`python benchmarks/loader.py`                         all formats, page cache and S3, some minutes
`python benchmarks/loader.py --samples 64 --formats latentcache,mds --source page-cache`
`python benchmarks/loader.py --table FILE.json`       markdown of an earlier run

docs/benchmarks.md says how to install the peers, and what is measured how.
"""

from __future__ import annotations

import os
import sys

#: Environment of all readers. Large blocks stay in the process, because a new page costs readers that
#: allocate every batch a fault. torch's threads sleep while they wait, as the cores are needed elsewhere.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "OMP_WAIT_POLICY": "PASSIVE",
}

if __name__ == "__main__" and not ENVIRONMENT.keys() & os.environ.keys():
    # The process starts again, because glibc and OpenMP read the environment only at the start.
    os.execve(sys.executable, [sys.executable, *sys.argv], {**ENVIRONMENT, **os.environ})

import argparse
import functools
import importlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.capped_s3 import Running, running
from benchmarks.loaders import READERS, latents, mosaic, report
from benchmarks.loaders.latents import SAMPLE_BYTES, SHAPE, Latents
from benchmarks.loaders.measure import Run, cold, in_process, scratch_folder, steady, to_json
from benchmarks.loaders.reader import (
    BATCH_SIZE,
    BUCKET,
    PAGE_CACHE,
    S3,
    SHARD_SAMPLES,
    Place,
    Reader,
)
from benchmarks.machine import machine

SHARED = Path(__file__).parents[2] / "shared" / "data" / "latents"
PACKAGES = (
    *("torch", "numpy", "zarr", "s3fs", "safetensors"),
    *("mosaicml-streaming", "litdata", "webdataset"),
)
LEAST_BATCHES = 3
WRITE_TIMEOUT_S = 300.0
#: Time beyond the expected duration after which a run counts as hung.
PATIENCE_S = 60.0


class Contest:
    """The data in every format, and what was measured for every reader."""

    def __init__(self, root: Path, samples: Latents, args: argparse.Namespace) -> None:
        self._root, self._samples, self._args = root, samples, args
        self._num_cores = len(os.sched_getaffinity(0))
        self._written: dict[str, tuple[float, str | None]] = {}

    def write(self, reader: Reader) -> tuple[float, str | None]:
        """Write a reader's format, once; returns bytes on disk over raw bytes, and an error."""
        if reader.data not in self._written:
            folder = self._folder(reader)
            job = functools.partial(reader.write, self._samples, folder)
            _, error = in_process(job, WRITE_TIMEOUT_S)
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            self._written[reader.data] = size / (len(self._samples) * SAMPLE_BYTES), error
        return self._written[reader.data]

    def _folder(self, reader: Reader) -> Path:
        return self._root / BUCKET / reader.data

    def run(self, reader: Reader, server: Running | None, lanes: int, seconds: float) -> Any:
        """Measure once; returns the run as JSON, and an error."""
        with scratch_folder(self._root) as scratch:
            place = Place(
                folder=self._folder(reader),
                scratch=scratch,
                num=len(self._samples),
                endpoint=server.endpoint if server else None,
            )
            sent = server.num_bytes if server else 0
            job = functools.partial(cold if server else steady, reader, place, lanes, self._samples)
            job = job if server else functools.partial(job, seconds)
            run, error = in_process(functools.partial(_as_json, job), seconds * 4 + PATIENCE_S)
            if run and server:
                run["wire_bytes"] = server.num_bytes - sent
            return run, error

    def measure(self, readers: Sequence[Reader], source: str, server: Running | None) -> list[Any]:
        """Find each reader's best number of lanes, then run all in turn, round by round."""
        results = [self._best(reader, source, server) for reader in readers]
        # One epoch from S3 is enough: it takes seconds and varies little.
        for _ in range(max(1, self._args.rounds - bool(server))):
            for reader, result in zip(readers, results, strict=True):
                if result["error"] is None:
                    run, result["error"] = self.run(
                        reader, server, result["lanes"], self._args.seconds
                    )
                    result["runs"] += [run] if run else []
                    _progress(source, reader, result["lanes"], run, result["error"])
        for result in results:
            if result["error"]:  # no comparison with what it did before it failed
                result["runs"] = []
        return results

    def _best(self, reader: Reader, source: str, server: Running | None) -> dict[str, Any]:
        disk_ratio, error = self.write(reader)
        tried: dict[int, float] = {}
        for lanes in reader.grid(source, self._num_cores) if error is None else ():
            run, error = self.run(reader, server, lanes, self._args.seconds / 2)
            _progress(source, reader, lanes, run, error)
            if run:
                tried[lanes] = run["samples_per_s"]
            if error and error.startswith("WRONG"):
                break
        wrong = error is not None and error.startswith("WRONG")
        return {
            "source": source,
            "reader": reader.name,
            "lanes_of": reader.lanes,
            "lanes": max(tried, key=tried.__getitem__, default=0),
            "tried": tried,
            "disk_ratio": disk_ratio,
            "error": error if wrong or not tried else None,
            "runs": [],
        }


def _as_json(job: functools.partial[Run]) -> dict[str, float]:
    return to_json(job())


def _progress(source: str, reader: Reader, lanes: int, run: Any, error: str | None) -> None:
    figure = f"{run['samples_per_s']:8,.0f} samples/s, {run['cpu_ms']:.2f} ms" if run else error
    print(f"{source:10}  {reader.name:38} {lanes:3} {reader.lanes:8} {figure}", flush=True)


def versions() -> dict[str, str]:
    """Versions of the packages that take part."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def select(names: str | None) -> tuple[list[Reader], list[tuple[Reader, str]]]:
    """The readers whose names contain one of the comma-separated parts, and those that cannot run."""
    parts = [part.strip().lower() for part in (names or "").split(",")]
    chosen = [r for r in READERS if any(part in r.name.lower() for part in parts)]
    if not chosen:
        raise SystemExit(f"--formats {names}: there are {', '.join(r.name for r in READERS)}")
    missing = [(r, why) for r in chosen if (why := r.missing())]
    return [r for r in chosen if r not in {r for r, _ in missing}], missing


def compete(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write, measure, and return the report."""
    readers, missing = select(args.formats)
    for reader, why in missing:
        print(f"{reader.name}: left out: {why}")
    preload(readers)
    (root / BUCKET).mkdir()
    facts, error = in_process(functools.partial(make_latents, root, args), WRITE_TIMEOUT_S)
    if error:
        raise SystemExit(error)
    contest = Contest(root, Latents(path=root / "flat.bin", num=args.samples), args)
    results = []
    for source in (PAGE_CACHE, S3) if args.source == "both" else (args.source,):
        rate = args.cap_mb_s * 1e6 or None
        with running(root, rate) if source == S3 else nullcontext() as server:
            here = [r for r in readers if source in r.sources]
            results += contest.measure(here, source, server)
    return {
        "machine": machine(),
        "versions": versions(),
        "settings": {
            "samples": args.samples,
            "sample_bytes": SAMPLE_BYTES,
            "shape": list(SHAPE),
            "batch_size": BATCH_SIZE,
            "shard_samples": SHARD_SAMPLES,
            "rounds": args.rounds,
            "seconds": args.seconds,
            "cap_mb_s": args.cap_mb_s,
            "environment": {n: os.environ[n] for n in ENVIRONMENT if n in os.environ},
        },
        "base": facts,
        "results": results,
    }


def preload(readers: Sequence[Reader]) -> None:
    """Import the peers before forking; otherwise each measurement would import them again."""
    for module in ("s3fs", "safetensors.torch", "litdata", "webdataset"):
        if importlib.util.find_spec(module.partition(".")[0]):
            importlib.import_module(module)
    if any(reader in mosaic.READERS for reader in readers):
        mosaic.load()


def make_latents(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write the flat file; returns where the base comes from and how well it compresses."""
    base, origin = latents.base_latent(args.latents)
    samples = latents.write(base, args.samples, root / "flat.bin")
    noisy = latents.ratio(samples[0])
    facts = {"origin": origin, "ratio": latents.ratio(base), "noisy_ratio": noisy}
    print(f"latents: {origin}; ratio {facts['ratio']:.4f}, with noise {noisy:.4f}", flush=True)
    return facts


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--samples", type=int, default=256, help="2.25 MB each, in every format (256)")
    add("--formats", help="parts of readers' names, comma-separated (all)")
    add("--source", choices=[PAGE_CACHE, S3, "both"], default="both")
    add("--seconds", type=float, default=1.0, help="how long a run from page cache lasts (1)")
    add("--rounds", type=int, default=3, help="alternating runs of every reader (3)")
    add("--cap-mb-s", type=float, default=100, help="cap of the S3 server (100); 0: none")
    add("--latents", type=Path, default=SHARED, help=f"folder with {latents.REAL}")
    add(
        "--scratch",
        type=Path,
        help="where all formats are written: 25 MB per sample (a new folder)",
    )
    add("--json", type=Path, help="write the report there")
    add("--table", type=Path, metavar="FILE.json", help="print an earlier report; measure nothing")
    args = parser.parse_args()
    if args.samples < LEAST_BATCHES * BATCH_SIZE or args.samples % BATCH_SIZE:
        parser.error(
            f"--samples must be a multiple of {BATCH_SIZE}, so that batches are whole, and at least "
            f"{LEAST_BATCHES * BATCH_SIZE}, so that an epoch has a middle"
        )
    return args


def main() -> int:
    """Measure, or print what was measured; returns 1 if a reader returned wrong values."""
    args = parse()
    if args.table:
        print(report.markdown(json.loads(args.table.read_text())))
        return 0
    print(machine())
    root = Path(tempfile.mkdtemp(prefix="latentcache-bench-", dir=args.scratch))
    try:
        measured = compete(root, args)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if args.json:
        args.json.write_text(json.dumps(measured, indent=2) + "\n")
    print("\n" + report.markdown(measured))
    return int(any((r["error"] or "").startswith("WRONG") for r in measured["results"]))


if __name__ == "__main__":
    sys.exit(main())
