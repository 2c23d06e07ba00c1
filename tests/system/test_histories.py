"""Random histories of a corpus and its cache: whatever happens in whatever order, nothing is lost."""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import latentcache
from latentcache.inspecting.verify import verify
from latentcache.storage.folder import Storage
from tests.tools.caches import bits_of, make_config, read_files, run_inline
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

NAMES = ("a.mp4", "b.mp4", "c.mp4", "d.mp4")
#: What a file may hold: a video by its seed and frames; None: it is no video.
CONTENTS = (None, (1, 5), (2, 11), (3, 11), (4, 16))
OK, SOME_FAILED, INTERRUPTED = 0, 3, 130
#: Objects that are replaced: the snapshot, and arrays' metadata, whose shape grows.
POINTERS = ("index.parquet", "zarr.json")
Content = tuple[int, int] | None


@functools.cache
def bytes_of(content: Content) -> bytes:
    """A file's bytes; written once, for the video encoder does not repeat itself bit for bit."""
    if content is None:
        return b"<html>not found</html>"
    seed, frames = content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        return write_video(path, moving_pattern(frames, 32, 32, seed=seed)).read_bytes()


def encode(folder: Path, files: dict[str, Content]) -> dict[str, bytes]:
    """What a new cache of these files holds."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for name, content in files.items():
        (corpus / name).write_bytes(bytes_of(content))
    config = make_config(folder, corpus, str(folder / "cache"), clips={"size": [32, 32]})
    assert run_inline("precompute", config)[0] in (OK, SOME_FAILED)
    return bits_of(latentcache.open_cache(str(folder / "cache")))


@contextlib.contextmanager
def stopped_at(number: int | None) -> Iterator[None]:
    """Interrupt what runs within where it creates its `number`-th object."""
    create, count = Storage.create, itertools.count()

    def interrupted(self: Storage, path: str, data: bytes) -> bool:
        if next(count) == number:
            raise KeyboardInterrupt
        return create(self, path, data)

    with mock.patch.object(Storage, "create", interrupted):
        yield


@pytest.fixture(scope="module", autouse=True)
def _expected(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encode every content once: a clip's bits follow from its file."""
    folder = tmp_path_factory.mktemp("expected")
    files = {f"{n}.mp4": content for n, content in enumerate(CONTENTS)}
    found = encode(folder, files)
    for name, content in files.items():
        clips = {k.partition("#")[2]: v for k, v in found.items() if k.partition("#")[0] == name}
        History.clips[content] = clips


class History(RuleBasedStateMachine):
    """files: the corpus by name; captions: of each. planned: what the cache was last told of each."""

    clips: ClassVar[dict[Content, dict[str, bytes]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.corpus, self.cache = self.folder / "corpus", self.folder / "cache"
        self.files: dict[str, Content] = {}
        self.captions: dict[str, str] = {}
        self.planned: dict[str, Content] = {}
        self.told: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.readers: list[tuple[latentcache.Cache, dict[str, bytes]]] = []

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(format=st.sampled_from(["zarr", "parquet"]))
    def begin(self, format: str) -> None:  # noqa: A002
        self.corpus.mkdir()
        self.put("a.mp4", CONTENTS[2])
        cache = {"url": str(self.cache), "format": format, "shard_clips": 2}
        self.config = make_config(
            self.folder, self.corpus, str(self.cache), clips={"size": [32, 32]}, cache=cache
        )
        self.grow(prune=False)

    @rule(name=st.sampled_from(NAMES), content=st.sampled_from(CONTENTS))
    def put(self, name: str, content: Content) -> None:
        """Add, change or repair a source, or break it."""
        if name in self.files and self.files[name] == content:
            return
        (self.corpus / name).write_bytes(bytes_of(content))
        self.files[name] = content

    @precondition(lambda self: len(self.files) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.files)))
        (self.corpus / name).unlink()
        (self.corpus / name).with_suffix(".txt").unlink(missing_ok=True)
        del self.files[name]
        self.captions.pop(name, None)

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from(["one", "two"]))
    def caption(self, name: str, text: str) -> None:
        if name in self.files:
            (self.corpus / name).with_suffix(".txt").write_text(text)
            self.captions[name] = text

    @rule(prune=st.booleans())
    def grow(self, prune: bool) -> None:
        arguments = ["--prune"] if prune else []
        status, printed = run_inline("precompute", self.config, *arguments)
        assert status in (OK, SOME_FAILED), printed
        if prune:
            self.planned = {n: c for n, c in self.planned.items() if n in self.files}
        for name, content in self.files.items():
            if content is None and self.planned.get(name) is not None:
                continue  # it is unreadable now, and keeps its clips and its caption
            self.planned[name] = content
            self.told[name] = self.captions.get(name, "")

    @rule()
    def retry(self) -> None:
        """What was rejected or has failed and can be read now is taken in."""
        status, printed = run_inline("resume", self.cache, "--retry-failed", "--skip-changed")
        assert status in (OK, SOME_FAILED), printed
        for name, content in self.planned.items():
            if content is None and self.files.get(name) is not None:
                self.planned[name] = self.files[name]

    @rule(data=st.data())
    def damage_and_repair(self, data: st.DataObject) -> None:
        """A byte of a clip flips; its clip is planned and encoded again, the others stay."""
        if any(
            self.files.get(name) != content for name, content in self.planned.items() if content
        ):
            return  # the source to encode again is not what it was
        paths = sorted(p for p in self.cache.glob("latents/*/**/*") if p.is_file())
        paths = [p for p in paths if p.name != "zarr.json" and p.stat().st_size > 8000]
        if not paths:
            return
        path = data.draw(st.sampled_from(paths))
        name = str(path.relative_to(self.cache))
        changed = bytearray(path.read_bytes())
        changed[100] ^= 1
        path.write_bytes(bytes(changed))
        self.objects[name] = bytes(changed)
        assert run_inline("verify", self.cache, "--repair")[0] in (OK, SOME_FAILED)
        assert run_inline("resume", self.cache)[0] in (OK, SOME_FAILED)
        self.readers.clear()  # those that hold the damaged clip are told so

    @rule(below=st.sampled_from(["0.75", "1"]), stop_at=st.none() | st.integers(0, 6))
    def compact(self, below: str, stop_at: int | None) -> None:
        """Copy what counts into full shards, or be stopped at one of the objects that are created."""
        with stopped_at(stop_at):
            status, printed = run_inline("compact", self.cache, "--below", below)
        assert status == OK or (stop_at is not None and status == INTERRUPTED), printed

    @rule()
    def open(self) -> None:
        reader = latentcache.open_cache(str(self.cache))
        self.readers.append((reader, bits_of(reader)))

    @rule()
    def clean(self) -> None:
        assert run_inline("clean", self.cache, "--yes")[0] == OK

    @invariant()
    def nothing_was_replaced(self) -> None:
        now = read_files(self.cache) if self.cache.exists() else {}
        kept = {n: d for n, d in self.objects.items() if not n.endswith(POINTERS)}
        assert [name for name, data in kept.items() if now.get(name) != data] == []
        self.objects = now

    @invariant()
    def every_clip_is_there_once_with_the_right_bits(self) -> None:
        if not self.planned:
            return
        reader = latentcache.open_cache(str(self.cache))
        wanted = {
            f"{name}#{number}": bits
            for name, content in self.planned.items()
            for number, bits in self.clips[content].items()
        }
        assert bits_of(reader) == wanted
        rows = reader.table(["source", "caption", "status"])
        for row in rows.filter(pc.equal(rows["status"], "ok")).to_pylist():
            assert (row["caption"] or "") == self.told[row["source"]]

    @invariant()
    def old_readers_read_what_they_did(self) -> None:
        for reader, bits in self.readers:
            assert bits_of(reader) == bits

    @invariant()
    def it_is_sound(self) -> None:
        if self.planned:
            assert not verify(Storage(str(self.cache))).damaged


STEPS = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@pytest.mark.timeout(600)
def test_a_few_histories() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        History, settings=settings(max_examples=4, stateful_step_count=8, derandomize=True, **STEPS)
    )


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_histories() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        History, settings=settings(max_examples=60, stateful_step_count=20, **STEPS)
    )
