"""What is no evidence about a source: each trouble stops planning or the run, and nothing is recorded.

The short form has one of each kind; the long form has every trouble, while a corpus is probed and while it
is decoded. After that the world is well again, and the same command makes the cache of a run without any.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import latentcache
from jobs.progress import encode
from latentcache.core.records import ShardReport
from latentcache.decoders import asking
from latentcache.decoders.pool import DecodePool
from latentcache.errors import SourceError
from latentcache.running.driver import Run
from latentcache.running.events import Event
from latentcache.storage import retry
from tests.tools.caches import make_config, read_files, run_inline, tables_of
from tests.tools.corpora import write_csv
from tests.tools.fault_lab import KeptPool
from tests.tools.http_files import CUT_SHORT, RESET, Server, serve
from tests.tools.mounts import disk
from tests.tools.planned import planned_from
from tests.tools.proxy import serve_proxy
from tests.tools.s3 import new_bucket, serve_s3
from tests.tools.sick import sick
from tests.tools.videos import moving_pattern, write_video

OK, STOPPED = 0, 1
NUM_VIDEOS = 4
#: So that a video takes more than a page of a disk.
VIDEO_FRAMES = 41
SECTIONS: dict[str, dict[str, Any]] = {"clips": {"select": "first"}, "cache": {"shard_clips": 1}}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good videos in a folder, and nothing else."""
    folder = tmp_path_factory.mktemp("evidence") / "videos"
    folder.mkdir()
    for index in range(NUM_VIDEOS):
        write_video(folder / f"v{index}.mp4", moving_pattern(VIDEO_FRAMES, 64, 96, seed=index))
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, videos: Path) -> latentcache.Cache:
    """The cache of a run that met no trouble."""
    folder = tmp_path_factory.mktemp("clean")
    config = make_config(folder, videos, str(folder / "cache"), **SECTIONS)
    assert run_inline("precompute", config)[0] == OK
    return latentcache.open_cache(str(folder / "cache"))


@pytest.fixture(scope="module", autouse=True)
def hasty() -> Iterator[None]:
    """Nothing is waited for, and trouble is looked at twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "FIRST_WAIT_S", 0.0)
        patch.setattr(asking, "TROUBLE_TRIES", 2)
        patch.setitem(DecodePool.__init__.__kwdefaults__, "program", "tests.tools.sick")
        yield


@pytest.fixture(scope="module")
def kept_pool(hasty: None) -> Iterator[KeptPool]:
    pool = KeptPool()
    yield pool
    pool.end()


@pytest.fixture
def kept(kept_pool: KeptPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs keep one decoding process."""
    monkeypatch.setattr(DecodePool, "for_run", lambda *_, **__: kept_pool)


@dataclass
class World:
    """A corpus, and what can happen to it. source, options: for the configuration."""

    source: str
    fails: Callable[[], AbstractContextManager[Any]]
    options: Mapping[str, Any] = field(default_factory=dict)


Make = Callable[[Path, pytest.MonkeyPatch, contextlib.ExitStack], World]


def sick_files(folder: Path, what: str, number: int) -> World:
    return World(f"sick://{folder}", partial(sick, folder, what, number))


def http_table(folder: Path, server: Server) -> str:
    rows = [{"video": f"{server.url}/{path.name}"} for path in sorted(folder.glob("*.mp4"))]
    return str(write_csv(folder.parent / "table.csv", rows))


def http(folder: Path, stack: contextlib.ExitStack, fault: int | str) -> World:
    server = stack.enter_context(serve(folder))

    @contextlib.contextmanager
    def bad_day() -> Iterator[None]:
        server.fault = fault
        yield
        server.fault = None

    return World(http_table(folder, server), bad_day)


def s3(folder: Path, stack: contextlib.ExitStack, fault: str) -> World:
    proxy = stack.enter_context(serve_proxy(stack.enter_context(serve_s3())))
    bucket = new_bucket(proxy.url)
    for path in folder.iterdir():
        bucket.put(path.name, path.read_bytes())

    @contextlib.contextmanager
    def bad_day() -> Iterator[None]:
        proxy.choose = lambda _, path: fault if ".mp4" in path else None
        yield
        proxy.forget()

    return World(bucket.url, bad_day, bucket.options)


@contextlib.contextmanager
def renamed(folder: Path, *, leaves_mount_point: bool) -> Iterator[None]:
    """A mount that vanishes."""
    away = folder.rename(folder.with_name("away"))
    if leaves_mount_point:
        folder.mkdir()
    yield
    if leaves_mount_point:
        folder.rmdir()
    away.rename(folder)


@contextlib.contextmanager
def full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A TMPDIR without room, for which remote sources are fetched."""
    page = os.sysconf("SC_PAGESIZE")
    with disk(folder / "full", 2 * page), monkeypatch.context() as patch:
        (folder / "full" / "something").write_bytes(b"x" * page)  # there is room for a small file
        patch.setenv("TMPDIR", str(folder / "full"))
        yield


@contextlib.contextmanager
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Decoding processes that are killed, as the kernel does where memory is short."""
    with monkeypatch.context() as patch:
        patch.setenv("LATENTCACHE_TEST_KILL", str(int(signal.SIGKILL)))
        yield


WORLDS: dict[str, Callable[[Path, pytest.MonkeyPatch, contextlib.ExitStack], World]] = {
    **{
        f"read {errno.errorcode[number]}": lambda f, m, s, n=number: sick_files(f, "read", n)
        for number in (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENOMEM)
    },
    **{
        f"open {errno.errorcode[number]}": lambda f, m, s, n=number: sick_files(f, "open", n)
        for number in (errno.EMFILE, errno.EACCES, errno.ETIMEDOUT)
    },
    **{
        f"http {fault}": lambda f, m, s, fault=fault: http(f, s, fault)
        for fault in (403, 404, 429, 500, 503, RESET, CUT_SHORT)
    },
    **{
        f"s3 {fault}": lambda f, m, s, fault=fault: s3(f, s, fault)
        for fault in ("refused", "slow_down", "internal_error", "reset", "truncated")
    },
    "vanished": lambda f, m, s: World(str(f), partial(renamed, f, leaves_mount_point=False)),
    "unmounted": lambda f, m, s: World(str(f), partial(renamed, f, leaves_mount_point=True)),
    "full TMPDIR": lambda f, m, s: World(f"sick://{f}", partial(full_disk, f.parent, m)),
    "killed": lambda f, m, s: World(str(f), partial(killed, m)),
}
#: Those whose corpus cannot even be listed: planning refuses it before anything is probed.
UNLISTED = ("vanished", "unmounted")
#: What the short form tries, where one decoding process serves all: most of a small run is its start.
SHORT = {"probing": ("http 503", "read EIO"), "decoding": ("http 404", "vanished")}


@pytest.fixture
def make_world(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], World]]:
    folder = tmp_path / "corpus"
    shutil.copytree(videos, folder)
    with contextlib.ExitStack() as stack:
        yield lambda name: WORLDS[name](folder, monkeypatch, stack)


def config_for(tmp_path: Path, world: World) -> Path:
    corpus = {"source": world.source, "storage_options": world.options, "schemes": ["sick"]}
    run = {"source_cache_bytes": 0}  # or decoding would find what probing has fetched
    sections = {"corpus": corpus, "run": run, **SECTIONS}
    return make_config(tmp_path, Path("x"), str(tmp_path / "cache"), **sections)


def check_stopped(status: int, printed: str, cache: Path) -> None:
    """One message, and nothing recorded: no source rejected, no clip failed, no shard given up."""
    assert status == STOPPED, printed
    errors = [line for line in printed.splitlines() if re.match(r"\w+Error: ", line)]
    assert len(errors) == 1, printed
    assert re.match("(Source|Machine)Error: ", errors[0]), printed
    assert "no source was rejected and no clip failed" in printed
    assert "Traceback" not in printed
    check_nothing_recorded(cache)


def check_nothing_recorded(cache: Path) -> None:
    files = read_files(cache) if cache.exists() else {}
    assert not [name for name in files if "rejected" in name]
    for name, table in tables_of(files).items():
        if "status" in table.column_names:
            assert set(table["status"].to_pylist()) <= {"ok"}, name


def check_complete(tmp_path: Path, config: Path, clean: latentcache.Cache) -> None:
    """The same command makes the cache whole: the latents of a run that met no trouble."""
    status, printed = run_inline("precompute", config)
    assert status == OK, printed
    got = latentcache.open_cache(str(tmp_path / "cache"))
    assert len(got) == len(clean) == NUM_VIDEOS
    assert all(got[i]["latents"].equal(clean[i]["latents"]) for i in range(NUM_VIDEOS))


@pytest.fixture
def check_probing(
    make_world: Callable[[str], World], tmp_path: Path, clean: latentcache.Cache
) -> Callable[[str], None]:
    def check(name: str) -> None:
        world = make_world(name)
        config = config_for(tmp_path, world)
        with world.fails():
            status, printed = run_inline("precompute", config)
            check_stopped(status, printed, tmp_path / "cache")
        check_complete(tmp_path, config, clean)

    return check


@pytest.fixture
def check_decoding(
    make_world: Callable[[str], World],
    tmp_path: Path,
    clean: latentcache.Cache,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], None]:
    def check(name: str) -> None:
        world = make_world(name)
        config = config_for(tmp_path, world)
        planned = planned_from(config)
        with world.fails():
            status = encode(planned, planned.missing_shards())
            shown = capsys.readouterr()
            check_stopped(status, shown.out + shown.err, tmp_path / "cache")
            assert "Go on with:  latentcache resume" in shown.err
        check_complete(tmp_path, config, clean)

    return check


@pytest.mark.parametrize("name", SHORT["probing"])
def test_trouble_stops_probing(kept: None, check_probing: Callable[[str], None], name: str) -> None:
    check_probing(name)


@pytest.mark.parametrize("name", SHORT["decoding"])
def test_trouble_stops_decoding(
    kept: None, check_decoding: Callable[[str], None], name: str
) -> None:
    check_decoding(name)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in WORLDS if name not in UNLISTED])
def test_every_trouble_stops_probing(check_probing: Callable[[str], None], name: str) -> None:
    check_probing(name)


@pytest.mark.long
@pytest.mark.parametrize("name", WORLDS)
def test_every_trouble_stops_decoding(check_decoding: Callable[[str], None], name: str) -> None:
    check_decoding(name)


@pytest.mark.long
@pytest.mark.parametrize("leaves_mount_point", [False, True])
def test_a_mount_that_vanishes_during_a_run_stops_it(
    make_world: Callable[[str], World], tmp_path: Path, *, leaves_mount_point: bool
) -> None:
    """What was committed stays, what is under way is not recorded, and the same command goes on."""
    world = make_world("vanished")
    config = make_config(tmp_path, Path(world.source), str(tmp_path / "cache"))
    planned = planned_from(config)
    missing = planned.missing_shards()
    run = Run(planned, missing)
    vanished = renamed(Path(world.source), leaves_mount_point=leaves_mount_point)
    with contextlib.ExitStack() as stack:

        def vanish(event: Event) -> None:
            if isinstance(event, ShardReport) and run.summary.shards == 1:
                stack.enter_context(vanished)

        with pytest.raises(SourceError, match="nothing else is there"):
            list(map(vanish, run.events()))
        assert 0 < run.summary.shards < len(missing)
        assert run.summary.clips_failed == run.summary.shards_failed == 0
        check_nothing_recorded(tmp_path / "cache")
        status, printed = run_inline("resume", tmp_path / "cache")
        assert status == STOPPED, printed
        assert "SourceError: no such file" in printed
    status, printed = run_inline("precompute", config)
    assert status == OK, printed


@pytest.mark.long
def test_a_source_that_is_replaced_during_a_run_fails_its_clips_and_no_others(
    make_world: Callable[[str], World], tmp_path: Path
) -> None:
    world = make_world("vanished")
    config = make_config(tmp_path, Path(world.source), str(tmp_path / "cache"))
    planned = planned_from(config)
    new = write_video(tmp_path / "new.mp4", moving_pattern(VIDEO_FRAMES, 64, 96, seed=77))
    new.replace(Path(world.source) / "v1.mp4")
    list(Run(planned, planned.missing_shards()).events())
    rows = latentcache.open_cache(str(tmp_path / "cache")).table().to_pylist()
    reasons = {(row["source"], row["reason"]) for row in rows}
    assert reasons == {("v1.mp4", "source_changed"), *((f"v{n}.mp4", None) for n in (0, 2, 3))}
    status, printed = run_inline("precompute", config)
    assert status == OK, printed
