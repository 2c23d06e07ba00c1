"""Jobs on a cache with fields, run into one fault of storage each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from latentcache.format.fields.paths import FIELDS, field_json_path
from latentcache.format.paths import LEASE
from tests.tools.caches import run_inline, without_logs
from tests.tools.fault_lab import SOME_FAILED, KeptPool, Lab, check_growth
from tests.tools.faulty import FAULTS, Faults
from tests.tools.fields import text_field, write_fields
from tests.tools.places import Place, memory_backend

#: What a run is doing when the fault befalls it.
FIELD_JOBS = ("precompute", "add", "resume", "retry", "grow", "repair", "drop")
#: A field that is made along with the latents, and then a text field of two arrays.
FIELDS_MADE = {
    "frame0": {"kind": "raw", "of": "first"},
    "umt5": text_field(pooled=True, nulls={"bad": "worst quality"}),
}


class FieldLab(Lab):
    """Jobs that make fields with a cache, add them to it, finish, grow, repair and drop them."""

    jobs, shard_clips = FIELD_JOBS, 3

    def __init__(self, folder: Path, pool: KeptPool, shard_format: str = "zarr") -> None:
        super().__init__(folder, pool, shard_format)
        self._fields = write_fields(folder, **FIELDS_MADE)
        self._middle = 0
        self._bare = self._without_fields(memory_backend().place())
        self._count("add")
        operations = FAULTS["default"].operations
        tables = [n for n, (_, path) in enumerate(operations) if "umt5/samples/" in path]
        self._middle = tables[len(tables) // 2]
        for job in self.jobs:
            if job != "add":
                self._count(job)
        for job, number in (("retry", 2), ("grow", 2), ("repair", 2), ("add", 1), ("resume", 1)):
            assert self._num_versions(job) == number, job

    def _num_versions(self, job: str) -> int:
        names = [n for n in self._finished[job] if n.startswith(f"{FIELDS}/frame0/versions/")]
        names += [n for n in self._finished[job] if n.startswith(f"{FIELDS}/umt5/versions/")]
        return 1 + len(names)

    def _without_fields(self, place: Place) -> dict[str, bytes]:
        FAULTS["default"] = Faults()
        self._corpus_is("before")
        status, printed = run_inline(*self._precompute(place))
        assert status == SOME_FAILED, printed
        return place.files()

    def _commands(self, job: str, place: Place) -> list[tuple[object, ...]]:
        options = self._options(place)
        resume = ("resume", place.url, *options)
        return {
            "precompute": [self._with_fields(place)],
            "grow": [(*self._with_fields(place), "--prune")],
            "add": [("add_field", place.url, self._fields, "run.runner=local", *options)],
            "resume": [resume],
            "retry": [(*resume, "--retry-failed", "--field", "frame0")],
            "repair": [("verify", place.url, *options, "--repair"), resume],
            "drop": [("drop_field", place.url, "umt5", *options, "--yes")],
        }[job]

    def _with_fields(self, place: Place) -> tuple[object, ...]:
        return self._precompute(place, fields=FIELDS_MADE)

    def _continued(
        self, job: str, place: Place, there: Mapping[str, bytes]
    ) -> list[tuple[object, ...]]:
        if job == "drop" and not [n for n in there if n.startswith(f"{FIELDS}/umt5/")]:
            return []
        return self._commands(job, place)

    def _prepare(self, job: str, place: Place) -> None:
        FAULTS["default"] = Faults()
        self._corpus_is("before")
        if job == "precompute":
            return
        place.put(self._bare)
        if job == "add":
            return
        if job == "resume":
            FAULTS["default"] = Faults("outage", self._middle)
        self._pool.broken = {"p0.png", "p4.png"} if job == "retry" else set()
        status, printed = run_inline(*self._commands("add", place)[0])
        self._pool.broken = set()
        assert status == {"resume": 1, "retry": SOME_FAILED}.get(job, 0), printed
        if job == "repair":
            self._damage(place, f"{FIELDS}/umt5/000001/", f"{FIELDS}/umt5/samples/")
        if job == "grow":
            self._corpus_is("after")

    def _check_growth(
        self, job: str, before: Mapping[str, bytes], after: Mapping[str, bytes]
    ) -> None:
        """Nothing outside fields has changed unless the cache grows; in them only a dropped one."""
        if job == "drop":
            before = {n: d for n, d in before.items() if not n.startswith(f"{FIELDS}/umt5/")}
            assert after.get(field_json_path("umt5")) or not [
                n for n in after if n.startswith(f"{FIELDS}/umt5/")
            ], "a field that is dropped in part cannot be dropped again"
        check_growth(before, after)
        if job in ("add", "resume", "retry", "drop"):
            assert outside(after) == outside(before)


def outside(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What of a cache is of no field, no log, and no run's lease."""
    kept = without_logs(files)
    return {n: d for n, d in kept.items() if n != LEASE and not n.startswith(f"{FIELDS}/")}
