"""Whole runs in this process through `faulty://`, each into one fault, and what the cache holds after.

`python -m tests.faults --seed 1 --minutes 4` runs faults of all kinds for as long as you like, and counts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
from PIL import Image

from latentcache.core.records import Clip
from latentcache.corpus.saved_probes import is_saved_probe
from latentcache.decoders.pool import DecodedClip, DecodePool
from latentcache.errors import ClipError, LatentCacheError
from latentcache.format import lease
from latentcache.format.fields.paths import FIELDS
from latentcache.format.paths import INDEX, LEASE, generation_path
from latentcache.format.tables import from_parquet
from latentcache.reading.loader.loader import LatentLoader
from latentcache.storage import retry
from tests.tools.caches import assert_same_files, make_config, run_inline, without_logs
from tests.tools.faulty import FAULTS, KINDS, SECRET, Faults, faulty_local_files
from tests.tools.s3 import new_bucket, serve_s3
from tests.tools.videos import moving_pattern

#: What a run is doing when the fault befalls it.
JOBS = ("precompute", "resume", "retry", "grow", "repair")
#: Those that take a step of their own on a cache that is there.
APPENDS = ("retry", "grow", "repair")
#: A source that is no picture is in the corpus: runs that end well end so.
OK, SOME_FAILED = 0, 3


@dataclass(frozen=True, kw_only=True)
class Backend:
    """Where caches go. wraps, like, options: of the file system under `faulty://`."""

    wraps: str
    root: str
    like: str = "s3"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def place(self) -> Place:
        return Place(self, f"{self.root}/{uuid.uuid4().hex[:12]}")


def memory_backend() -> Backend:
    return Backend(wraps="memory", root="/faults")


def file_backend(folder: Path) -> Backend:
    return Backend(wraps="file", root=str(folder / "file"), like="file")


def sftp_backend(folder: Path) -> Backend:
    return Backend(wraps="file", root=str(folder / "sftp"), like="sftp")


def s3_backend(url: str, options: Mapping[str, Any]) -> Backend:
    return Backend(wraps="s3", root=url.removeprefix("s3://"), options=options)


@dataclass(frozen=True)
class Place:
    """One cache's folder."""

    backend: Backend
    path: str

    @property
    def url(self) -> str:
        return f"faulty://{self.path}"

    @property
    def storage_options(self) -> dict[str, Any]:
        return {
            "wraps": self.backend.wraps,
            "like": self.backend.like,
            "wrapped_options": {**self.backend.options, "password": SECRET},
        }

    def _filesystem(self) -> Any:
        fs = fsspec.filesystem(self.backend.wraps, **self.backend.options)
        fs.invalidate_cache()
        return fs

    def files(self) -> dict[str, bytes]:
        """Every finished object, path in the cache -> bytes, read past the faults."""
        fs, start = self._filesystem(), len(self.path) + 1
        found = [name for name in fs.find(self.path) if not name.endswith(".tmp")]
        return {name[start:]: fs.cat_file(name) for name in found}

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write objects past the faults."""
        fs = self._filesystem()
        for name, data in files.items():
            fs.makedirs(f"{self.path}/{name}".rpartition("/")[0], exist_ok=True)
            fs.pipe_file(f"{self.path}/{name}", data)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._filesystem().rm(self.path, recursive=True)


class KeptPool:
    """A pool with one decoding process for many runs: its start would be most of a small run's time.

    broken: sources that cannot be decoded for the moment.
    """

    window = DecodePool.window

    def __init__(self) -> None:
        self._pool = DecodePool(
            num_processes=1, num_buffers=2, timeout_s=60, schemes=("faulty", "sick")
        )
        self.broken: set[str] = set()

    def decode(self, clip: Clip) -> Future[DecodedClip]:
        answer: Future[DecodedClip] = Future()
        if clip.source in self.broken:
            answer.set_exception(ClipError("decode_timeout", "no answer from the decoder"))
            return answer
        decoded = self._pool.decode(clip).result()
        pixels = decoded.pixels.copy()
        decoded.release()
        answer.set_result(dataclasses.replace(decoded, pixels=pixels, pool=self))
        return answer

    @property
    def num_steps(self) -> int:
        return self._pool.num_steps

    def give_back(self, buffer: object) -> None:
        """The pixels are a copy."""

    def probe(self, *args: Any, **kwargs: Any) -> Future[dict[str, Any]]:
        return self._pool.probe(*args, **kwargs)

    def close(self) -> None:
        """It is kept."""

    def __enter__(self) -> KeptPool:
        return self

    def __exit__(self, *_: object) -> None:
        """It is kept."""

    def end(self) -> None:
        self._pool.close()


@contextlib.contextmanager
def quick_runs() -> Iterator[KeptPool]:
    """Runs within keep one decoding process, and wait for nothing before they try again."""
    pool = KeptPool()
    with (
        faulty_local_files(),
        mock.patch.object(DecodePool, "for_run", return_value=pool),
        mock.patch.object(retry, "FIRST_WAIT_S", 0.0),
        mock.patch.object(lease, "SETTLE_S", 0.0),
    ):
        try:
            yield pool
        finally:
            pool.end()


def make_small_corpus(folder: Path) -> Path:
    """Five pictures with captions, and a file that is none: three shards of two."""
    folder.mkdir(parents=True)
    for index in range(5):
        _picture(folder, f"p{index}", seed=index)
    (folder / "page.png").write_text("<html>not found</html>")
    return folder


def change_small_corpus(folder: Path, before: Path) -> Path:
    """The same with a new picture, a changed one, a removed one, another caption and a repaired file."""
    shutil.copytree(before, folder)  # keeps the times of change
    _picture(folder, "new", seed=10)
    _picture(folder, "p1", seed=11)
    _picture(folder, "page", seed=12)
    (folder / "p2.txt").write_text("another caption")
    for suffix in (".png", ".txt"):
        (folder / "p3").with_suffix(suffix).unlink()
    return folder


def _picture(folder: Path, name: str, seed: int) -> None:
    path = folder / f"{name}.png"
    Image.fromarray(moving_pattern(1, 32, 48, seed=seed)[0]).save(path)
    path.with_suffix(".txt").write_text(f"picture {seed}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run into a fault. struck: whether it came to that; status: of that run."""

    struck: bool
    status: int
    printed: str


class FaultLab:
    """Runs of one small corpus with faults, each compared with the run that had none.

    num_operations: job -> kind of fault -> places where it can befall the job.
    """

    def __init__(self, folder: Path, pool: KeptPool, shard_format: str = "zarr") -> None:
        self._folder, self._pool, self._format = folder, pool, shard_format
        self._corpora = {"before": make_small_corpus(folder / "before")}
        self._corpora["after"] = change_small_corpus(folder / "after", self._corpora["before"])
        self._corpus = folder / "corpus"
        self._middle = 0
        self._starts: dict[str, dict[str, bytes]] = {}
        self._finished: dict[str, dict[str, bytes]] = {}
        counted = [self._count("precompute", memory_backend().place())]
        self.clean = self._finished["precompute"]
        tables = [n for n, (_, p) in enumerate(FAULTS["default"].operations) if "/samples/1x" in p]
        self._middle = tables[len(tables) // 2]
        counted += [self._count(job, memory_backend().place()) for job in JOBS[1:]]
        self.num_operations = dict(zip(JOBS, counted, strict=True))

    def _count(self, job: str, place: Place) -> dict[str, int]:
        self._prepare(job, place)
        self._starts[job] = place.files()
        faults = FAULTS["default"] = Faults()
        for command in self._commands(job, place):
            status, printed = run_inline(*command)
            assert status in (OK, SOME_FAILED), printed
        self._finished[job] = place.files()
        assert (generation_path(2) in self._finished[job]) == (job in APPENDS)
        check_growth(self._starts[job], self._finished[job])
        return {
            kind: sum(befalls is None or what in befalls for what, _ in faults.operations)
            for kind, befalls in KINDS.items()
        }

    def _commands(self, job: str, place: Place) -> list[tuple[object, ...]]:
        """What brings a cache from the job's start to its end, or from anywhere between."""
        options = [
            f"cache.storage_options.{name}={json.dumps(value)}"
            for name, value in place.storage_options.items()
        ]
        resume = ("resume", place.url, *options)
        return {
            "precompute": [self._precompute(place)],
            "grow": [(*self._precompute(place), "--prune")],
            "resume": [resume],
            "retry": [(*resume, "--retry-failed")],
            "repair": [("verify", place.url, *options, "--repair"), resume],
        }[job]

    def _precompute(self, place: Place) -> tuple[object, ...]:
        clips = {"frames": 1, "select": "first", "size": [32, 48]}
        options = place.storage_options
        cache = {"shard_clips": 2, "format": self._format, "storage_options": options}
        return "precompute", make_config(
            self._folder, self._corpus, place.url, clips=clips, cache=cache
        )

    def _corpus_is(self, which: str) -> None:
        self._corpus.unlink(missing_ok=True)
        self._corpus.symlink_to(self._corpora[which])

    def _prepare(self, job: str, place: Place) -> None:
        """Bring a cache to where `job` is to be done: stopped in the middle, with a failed clip, ..."""
        FAULTS["default"] = Faults("outage", self._middle) if job == "resume" else Faults()
        self._corpus_is("before")
        if job == "precompute":
            return
        self._pool.broken = {"p0.png", "p4.png"} if job == "retry" else set()
        status, printed = run_inline(*self._precompute(place))
        self._pool.broken = set()
        assert status == (1 if job == "resume" else SOME_FAILED), printed
        if job == "repair":
            self._damage(place)
        if job == "grow":
            self._corpus_is("after")

    def _damage(self, place: Place) -> None:
        """Flip a byte of a clip, past the faults."""
        files = place.files()
        name = min(name for name in files if name.startswith("latents/") and "json" not in name)
        data = bytearray(files[name])
        table = from_parquet(next(files[n] for n in sorted(files) if n.startswith("samples/")))
        data[table["offset"][0].as_py()] ^= 0xFF
        place.put({name: bytes(data)})

    def run(self, backend: Backend, job: str, kind: str, at: int, seed: int = 0) -> Outcome:
        """Run into one fault, repair the storage, continue; the cache must be as if nothing happened."""
        place = backend.place()
        try:
            start = self._starts[job]
            self._corpus_is("after" if job == "grow" else "before")
            place.put(start)
            faults = FAULTS["default"] = Faults(kind, at, seed=seed)
            commands = self._commands(job, place)
            status, printed = run_inline(*commands[0])
            faults.repair()
            check_message(status, printed)
            before = place.files()
            check_growth(start, before)
            if job == "precompute" and generation_path(1) in before:
                commands = self._commands("resume", place)
            more = ""
            for command in commands:
                final_status, said = run_inline(*command)
                assert final_status in (OK, SOME_FAILED), said
                more += said
            check_growth(before, place.files())
            check_cache(place.files(), self._finished[job], printed + more)
        finally:
            place.remove()
        return Outcome(struck=faults.struck, status=status, printed=printed)

    def put_clean(self, backend: Backend) -> Place:
        """Copy the clean cache to a backend."""
        place = backend.place()
        place.put(self.clean)
        return place

    def count_reads(self, place: Place) -> dict[str, int]:
        """Return the places where a fault can befall `stream`, by kind."""
        faults = Faults()
        self._read(place, faults)
        return {
            kind: sum(befalls is None or what in befalls for what, _ in faults.operations)
            for kind, befalls in KINDS.items()
        }

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


def check_message(status: int, printed: str) -> None:
    """A run that stopped says why, in words and without secrets."""
    assert SECRET not in printed
    assert "Traceback" not in printed
    if status not in (OK, SOME_FAILED):
        assert status in (1, 2), printed
        lines = [line for line in printed.splitlines() if "its log is not written" not in line]
        errors = [line for line in lines if "Error: " in line]  # but the log's own warning
        assert len(errors) == 1, printed
        assert len(errors[0]) > 40, printed


def check_growth(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """Nothing that was there is gone or replaced but the pointers, which are made again at any time."""
    names = [name for name in without_logs(before) if not is_pointer(name)]
    changed = [name for name in names if after.get(name) != before[name]]
    assert not changed, f"written again: {changed}"


def is_pointer(name: str) -> bool:
    """Tell whether an object is one that a cache replaces, or of planning that has not ended."""
    pointer = name in (INDEX, LEASE) or name.endswith("zarr.json") or is_saved_probe(name)
    return pointer or (name.startswith(f"{FIELDS}/") and name.endswith(f"/{INDEX}"))


def check_cache(after: Mapping[str, bytes], finished: Mapping[str, bytes], printed: str) -> None:
    """The cache is that of a run that met no fault, and shows no secret."""
    assert_same_files(after, finished)
    assert SECRET not in printed
    assert not [name for name, data in after.items() if SECRET.encode() in data]


def main() -> None:
    """Run into random faults for a while, and say how many of which kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=4)
    args = parser.parse_args()
    rng, counts = random.Random(args.seed), Counter[str]()
    ends = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder, serve_s3() as endpoint, quick_runs() as pool:
        lab = FaultLab(Path(folder), pool)
        s3 = new_bucket(endpoint)
        backends = {
            "memory": memory_backend(),
            "file": file_backend(Path(folder)),
            "sftp-like": sftp_backend(Path(folder)),
            "s3": s3_backend(s3.url, s3.options),
        }
        while time.monotonic() < ends:
            name, job, kind = rng.choice([*backends]), rng.choice(JOBS), rng.choice([*KINDS])
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
