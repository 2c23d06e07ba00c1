"""Whole runs in this process through `faulty://`, each into one fault, and what the cache holds after.

`python -m tests.faults --seed 1 --minutes 4` runs faults of all kinds for as long as you like, and counts.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from latentcache.errors import LatentCacheError
from latentcache.format.paths import generation_path
from latentcache.reading.loader.loader import LatentLoader
from tests.tools.caches import run_inline
from tests.tools.fault_lab import OK, SOME_FAILED, KeptPool, Lab, quick_runs
from tests.tools.faulty import FAULTS, KINDS, Faults
from tests.tools.field_lab import FieldLab
from tests.tools.places import Backend, Place, backends_of
from tests.tools.s3 import new_bucket, serve_s3

#: What a run is doing when the fault befalls it.
JOBS = ("precompute", "resume", "retry", "grow", "repair")
#: Those that take a step of their own on a cache that is there.
APPENDS = ("retry", "grow", "repair")


class FaultLab(Lab):
    """Jobs that make, finish, grow and repair a cache, and streaming of it."""

    jobs = JOBS

    def __init__(self, folder: Path, pool: KeptPool, shard_format: str = "zarr") -> None:
        super().__init__(folder, pool, shard_format)
        self._middle = 0
        self._count("precompute")
        self.clean = self._finished["precompute"]
        operations = FAULTS["default"].operations
        tables = [n for n, (_, path) in enumerate(operations) if "/samples/1x" in path]
        self._middle = tables[len(tables) // 2]
        for job in self.jobs[1:]:
            self._count(job)

    def _count(self, job: str) -> None:
        super()._count(job)
        assert (generation_path(2) in self._finished[job]) == (job in APPENDS)

    def _commands(self, job: str, place: Place) -> list[tuple[object, ...]]:
        options = self._options(place)
        resume = ("resume", place.url, *options)
        return {
            "precompute": [self._precompute(place)],
            "grow": [(*self._precompute(place), "--prune")],
            "resume": [resume],
            "retry": [(*resume, "--retry-failed")],
            "repair": [("verify", place.url, *options, "--repair"), resume],
        }[job]

    def _continued(
        self, job: str, place: Place, there: Mapping[str, bytes]
    ) -> list[tuple[object, ...]]:
        is_planned = job == "precompute" and generation_path(1) in there
        return self._commands("resume" if is_planned else job, place)

    def _prepare(self, job: str, place: Place) -> None:
        FAULTS["default"] = Faults("outage", self._middle) if job == "resume" else Faults()
        self._corpus_is("before")
        if job == "precompute":
            return
        self._pool.broken = {"p0.png", "p4.png"} if job == "retry" else set()
        status, printed = run_inline(*self._precompute(place))
        self._pool.broken = set()
        assert status == (1 if job == "resume" else SOME_FAILED), printed
        if job == "repair":
            self._damage(place, "latents/", "samples/")
        if job == "grow":
            self._corpus_is("after")

    def put_clean(self, backend: Backend) -> Place:
        """Copy the clean cache to a backend."""
        place = backend.place()
        place.put(self.clean)
        return place

    def count_reads(self, place: Place) -> dict[str, int]:
        """Return the places where a fault can befall `stream`, by kind."""
        faults = Faults()
        self._read(place, faults)
        return faults.num_places()

    def stream(self, place: Place, kind: str, at: int) -> LatentCacheError | None:
        """Stream a cache into one fault; returns its error. Whatever is yielded must be right."""
        expected = self._read(place, Faults())
        try:
            found = self._read(place, Faults(kind, at, seed=at))
        except LatentCacheError as error:
            return error
        assert found == expected
        return None

    def _read(self, place: Place, faults: Faults) -> dict[str, tuple[str, bytes]]:
        FAULTS["default"] = faults
        found = {}
        for batch in LatentLoader(
            place.url, batch_size=2, storage_options=place.storage_options, num_threads=1
        ):
            for key, caption, latents in zip(
                batch["key"], batch["caption"], batch["latents"], strict=True
            ):
                found[key] = (caption, latents.float().numpy().tobytes())
        return found


def main() -> None:
    """Run into random faults for a while, and say how many of which kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--fields", action="store_true", help="jobs that make fields, not latents")
    args = parser.parse_args()
    rng, counts = random.Random(args.seed), Counter[str]()
    ends = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder, serve_s3() as endpoint, quick_runs() as pool:
        make = FieldLab if args.fields else FaultLab
        lab: Lab = make(Path(folder), pool)
        backends = backends_of(Path(folder), new_bucket(endpoint))
        while time.monotonic() < ends:
            name, job, kind = rng.choice([*backends]), rng.choice(lab.jobs), rng.choice([*KINDS])
            at = rng.randrange(lab.num_operations[job][kind])
            try:
                outcome = lab.run(backends[name], job, kind, at, seed=rng.randrange(1 << 30))
            except BaseException:
                print(f"at {name} {job} {kind} {at}", file=sys.stderr)
                raise
            ended = "finished" if outcome.status in (OK, SOME_FAILED) else "stopped"
            counts.update([f"kind {kind}: {ended}"] if outcome.struck else ["not struck"])
            counts.update(["runs", f"backend {name}", f"job {job}"])
    for what, count in sorted(counts.items()):
        print(f"{count:>6}  {what}")


if __name__ == "__main__":
    main()
