"""Exports that are ended: what is written is recorded, and nothing more is begun or made to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import latentcache
from latentcache.exchange import export as module
from latentcache.exchange.export import Export, File, Options, write_files
from latentcache.exchange.layouts import get_layout
from latentcache.exchange.mark import PART, Written, read_list
from latentcache.exchange.stopping import GivenUpError, given_up_at, in_turns
from latentcache.storage.folder import Storage
from tests.tools.exchange import make_cache, spec_of


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_THREADS", 2)


def recorded(out: Path) -> set[str]:
    """What a run that was ended has recorded of its files."""
    return {
        path for part in out.glob(f"{PART}*") for path in read_list(Storage(str(out)), part.name)
    }


def test_what_is_being_written_is_recorded_and_the_rest_is_not_begun(
    wan: latentcache.Cache, tmp_path: Path
) -> None:
    begun, may_end = threading.Barrier(3), threading.Event()
    made: list[str] = []

    def slow() -> bytes:
        begun.wait()
        may_end.wait()
        return b"slow"

    def queued(name: str) -> Callable[[], bytes]:
        return lambda: made.append(name) or b"queued"  # type: ignore[func-returns-value]

    files = [File("first", lambda: b"first"), File("slow", slow), File("slower", slow)]
    files += [File(name, queued(name)) for name in ("a", "b", "c")]
    out = tmp_path / "out"
    what = Export(files=files, stanza=str)
    left = module.export(wan, "webdataset", what, Storage(str(out)), Options())
    assert next(left) == 6
    assert next(left) == 5
    begun.wait()
    threading.Timer(0.2, may_end.set).start()
    left.close()
    assert recorded(out) == {"first", "slow", "slower"}
    assert not made


def test_a_file_of_many_clips_is_given_up(tmp_path: Path) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def long() -> bytes:
        for _ in in_turns(range(1 << 40)):
            begun.set()
            may_go_on.wait()
        return b""

    out, found = tmp_path / "out", dict[str, Written]()
    files = [
        File("first", lambda: b"first"),
        File("long", long),
        File("x", bytes),
        File("y", bytes),
    ]
    run = write_files(Storage(str(out)), files, 0, found.__setitem__)
    next(run)
    begun.wait()
    threading.Timer(0.2, may_go_on.set).start()
    run.close()
    assert "long" not in found
    assert not (out / "long").exists()
    assert all((out / path).exists() for path in found)


@pytest.mark.parametrize("layout", ["fastvideo", "rcm", "memmap", "webdataset", "mds", "hf"])
def test_every_layout_with_files_of_several_clips_gives_them_up(
    layout: str, wan: latentcache.Cache, tmp_path: Path
) -> None:
    ids = {"memmap": spec_of(stored="ids")}.get(layout)
    cache = make_cache(tmp_path, ids, sizes=((32, 32),)) if ids else wan
    what = get_layout(layout).export(cache, Options(text=None if ids else "umt5"))
    stop = threading.Event()
    stop.set()
    with given_up_at(stop), pytest.raises(GivenUpError):
        what.files[0].make()
    assert what.files[0].make()
