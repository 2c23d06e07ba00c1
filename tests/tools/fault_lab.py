"""Jobs that run in this process into one fault of storage each, and what the cache holds after."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

from latentcache.core.records import Clip
from latentcache.decoders.pool import DecodedClip, DecodePool
from latentcache.errors import ClipError
from latentcache.format import lease
from latentcache.format.tables import from_parquet
from latentcache.storage import retry
from tests.tools.caches import (
    assert_same_files,
    is_pointer,
    make_config,
    run_inline,
    without_logs,
)
from tests.tools.faulty import FAULTS, SECRET, Faults, faulty_local_files
from tests.tools.places import Backend, Place, memory_backend
from tests.tools.videos import moving_pattern

#: A source that is no picture is in the corpus: runs that end well end so.
OK, SOME_FAILED = 0, 3


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


class Lab:
    """Jobs on small caches run into faults, each compared with the run that had none.

    jobs: by their names. num_operations: job -> kind of fault -> places where it can befall the job.
    """

    jobs: tuple[str, ...]
    shard_clips = 2

    def __init__(self, folder: Path, pool: KeptPool, shard_format: str = "zarr") -> None:
        self._folder, self._pool, self._format = folder, pool, shard_format
        self._corpora = {"before": make_small_corpus(folder / "before")}
        self._corpora["after"] = change_small_corpus(folder / "after", self._corpora["before"])
        self._corpus = folder / "corpus"
        self._starts: dict[str, dict[str, bytes]] = {}
        self._finished: dict[str, dict[str, bytes]] = {}
        self.num_operations: dict[str, dict[str, int]] = {}

    def _count(self, job: str) -> None:
        """Run a job without faults, and keep what there was before and after it."""
        place = memory_backend().place()
        self._prepare(job, place)
        self._starts[job] = place.files()
        faults = FAULTS["default"] = Faults()
        for command in self._commands(job, place):
            status, printed = run_inline(*command)
            assert status in (OK, SOME_FAILED), printed
        self._finished[job] = place.files()
        self._check_growth(job, self._starts[job], self._finished[job])
        self.num_operations[job] = faults.num_places()

    def _commands(self, job: str, place: Place) -> list[tuple[object, ...]]:
        """What brings a cache from the job's start to its end, or from anywhere between."""
        raise NotImplementedError

    def _continued(
        self, job: str, place: Place, there: Mapping[str, bytes]
    ) -> list[tuple[object, ...]]:
        """What brings a cache to the job's end from what a run into a fault has left there."""
        raise NotImplementedError

    def _prepare(self, job: str, place: Place) -> None:
        """Bring a cache to where `job` is to be done: stopped in the middle, with a failed clip, ..."""
        raise NotImplementedError

    def _check_growth(
        self, job: str, before: Mapping[str, bytes], after: Mapping[str, bytes]
    ) -> None:
        check_growth(before, after)

    def _options(self, place: Place) -> list[str]:
        return [
            f"cache.storage_options.{name}={json.dumps(value)}"
            for name, value in place.storage_options.items()
        ]

    def _precompute(self, place: Place, **sections: Mapping[str, Any]) -> tuple[object, ...]:
        clips = {"frames": 1, "select": "first", "size": [32, 48]}
        options = place.storage_options
        cache = {
            "shard_clips": self.shard_clips,
            "format": self._format,
            "storage_options": options,
        }
        return "precompute", make_config(
            self._folder, self._corpus, place.url, clips=clips, cache=cache, **sections
        )

    def _corpus_is(self, which: str) -> None:
        self._corpus.unlink(missing_ok=True)
        self._corpus.symlink_to(self._corpora[which])

    def _damage(self, place: Place, objects: str, tables: str) -> None:
        """Flip a byte of the first sample of an object, past the faults."""
        files = place.files()
        name = min(name for name in files if name.startswith(objects) and "json" not in name)
        data = bytearray(files[name])
        table = from_parquet(next(files[n] for n in sorted(files) if n.startswith(tables)))
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
            status, printed = run_inline(*self._commands(job, place)[0])
            faults.repair()
            check_message(status, printed)
            before = place.files()
            self._check_growth(job, start, before)
            more = ""
            for command in self._continued(job, place, before):
                final_status, said = run_inline(*command)
                assert final_status in (OK, SOME_FAILED), said
                more += said
            self._check_growth(job, before, place.files())
            check_cache(place.files(), self._finished[job], printed + more)
        finally:
            place.remove()
        return Outcome(struck=faults.struck, status=status, printed=printed)


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


def check_cache(after: Mapping[str, bytes], finished: Mapping[str, bytes], printed: str) -> None:
    """The cache is that of a run that met no fault, and shows no secret."""
    assert_same_files(after, finished)
    assert SECRET not in printed
    assert not [name for name, data in after.items() if SECRET.encode() in data]
