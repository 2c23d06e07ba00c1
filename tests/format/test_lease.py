"""The lease: who gets it, who is refused, and that a run which has lost it writes nothing more."""

from __future__ import annotations

import dataclasses
import os
import pickle
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from latentcache.errors import LeaseError
from latentcache.format import checksum, lease
from latentcache.format.lease import Lease, Leaseholder, read_lease
from latentcache.format.paths import CACHE_JSON, LEASE
from latentcache.storage.folder import Storage
from tests.tools import plain
from tests.tools.faulty import FAULTS, Faults

LASTS_S = 1000.0
#: Beyond every system's largest process number.
NO_PID = 1 << 30


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE_S", 0.0)


@pytest.fixture
def storage() -> Storage:
    return Storage(f"memory://lease-{uuid.uuid4().hex}")


def hold(storage: Storage, *, take: bool = False, lease_s: float = LASTS_S) -> Leaseholder:
    holder = Leaseholder(lease_s=lease_s, take=take)
    holder.over(storage, exclusive=False)
    return holder


def put(storage: Storage, **facts: object) -> Lease:
    """Leave the lease of a run on another machine."""
    now_s = time.time()
    found = Lease(
        token="theirs",
        host="node7",
        pid=4711,
        place=None,
        started=None,
        taken_s=now_s - 60,
        expires_s=now_s + LASTS_S,
    )
    found = dataclasses.replace(found, **facts)
    storage.write(LEASE, checksum.seal_json(dataclasses.asdict(found)))
    return found


def test_a_storage_that_creates_on_condition_needs_none(storage: Storage) -> None:
    with Leaseholder(lease_s=LASTS_S) as holder:
        assert holder.over(storage, exclusive=True) is storage
    assert not storage.files()


def test_it_is_held_until_the_job_ends_and_then_gone(storage: Storage) -> None:
    with Leaseholder(lease_s=LASTS_S) as holder:
        held = holder.over(storage, exclusive=False)
        assert holder.over(held, exclusive=False) is held
        found = read_lease(storage)
        assert found is not None
        assert found.pid == os.getpid()
        assert held.create("a", b"1")
        held.write("b", b"2")
        held.delete("a")
    assert [file.path for file in storage.files()] == ["b"]


def test_a_second_run_is_told_who_has_it_how_long_and_what_to_do(storage: Storage) -> None:
    theirs = put(storage)
    with pytest.raises(LeaseError) as told:
        hold(storage)
    for part in ("process 4711 on node7", "for 60", "its lease ends in 16", "--take-lease"):
        assert part in str(told.value)
    assert read_lease(storage) == theirs


@pytest.mark.parametrize(
    "facts",
    [
        lambda: {"expires_s": time.time() - 1},
        lambda: {"place": lease.this_place() or pytest.skip("not Linux"), "pid": NO_PID},
        lambda: {"place": lease.this_place() or pytest.skip("not Linux"), "pid": os.getpid()},
        lambda: {"place": lease.this_place() or pytest.skip("not Linux"), "pid": os.getppid()},
    ],
    ids=["expired", "of a process that has ended", "of this process", "of a number used again"],
)
def test_a_lease_that_is_over_is_taken(storage: Storage, facts: Callable[[], dict]) -> None:
    theirs = put(storage, **facts())
    with hold(storage):
        found = read_lease(storage)
        assert found is not None
        assert found.token != theirs.token


def test_a_process_number_on_another_system_says_nothing(storage: Storage) -> None:
    put(storage, place="another system", pid=NO_PID)
    with pytest.raises(LeaseError, match="worked on by"):
        hold(storage)


def test_a_lease_that_was_taken_away_stops_every_write(storage: Storage) -> None:
    with Leaseholder(lease_s=LASTS_S) as first:
        held = first.over(storage, exclusive=False)
        workers = pickle.loads(pickle.dumps(held))
        with hold(storage, take=True):
            before = storage.files()
            for each in (held, workers):
                for write in (each.write, each.create):
                    with pytest.raises(LeaseError, match=f"has lost .*: process {os.getpid()} on"):
                        write("shard", b"mine")
                with pytest.raises(LeaseError):
                    each.delete(LEASE)
            assert storage.files() == before
    assert not storage.files()


def test_a_lease_that_is_gone_is_lost(storage: Storage) -> None:
    with Leaseholder(lease_s=LASTS_S) as holder:
        held = holder.over(storage, exclusive=False)
        storage.delete(LEASE)
        with pytest.raises(LeaseError, match="it is gone"):
            held.create("shard", b"mine")


def test_one_that_expired_and_that_nobody_took_is_taken_once_more(storage: Storage) -> None:
    with Leaseholder(lease_s=LASTS_S) as holder:
        held = holder.over(storage, exclusive=False)
        found = read_lease(storage)
        assert found is not None
        put(storage, **{**dataclasses.asdict(found), "expires_s": time.time() - 1})
        assert held.create("shard", b"mine")
        again = read_lease(storage)
        assert again is not None
        assert again.expires_s > time.time()


def test_of_two_that_take_it_at_once_one_is_refused(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[Leaseholder] = []

    def meanwhile(_: float) -> None:
        if not others:
            others.append(Leaseholder(lease_s=LASTS_S, take=True))
            others[0].over(storage, exclusive=False)

    monkeypatch.setattr(lease.time, "sleep", meanwhile)
    with pytest.raises(LeaseError, match="at the same moment"):
        hold(storage)
    with others[0]:
        others[0].over(storage, exclusive=False).write("shard", b"theirs")


def test_it_is_renewed_while_the_run_goes_on(storage: Storage) -> None:
    with hold(storage, lease_s=0.2):
        first = read_lease(storage)
        assert first is not None
        while (now := read_lease(storage)) == first:
            time.sleep(0.01)
        assert now is not None
        assert now.token == first.token
        assert now.expires_s > first.expires_s


#: Sealed, as somebody who means harm would; the last of them is nested deeper than Python counts.
HARMFUL = [
    checksum.seal(text % f'"{checksum.KEY}": "{checksum.EMPTY}"'.encode())
    for text in (b"[{%s}]", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b", %s}")
]


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xff", b'{"latentcache.crc32c": "00000000"}', *HARMFUL]
)
def test_a_damaged_lease_is_refused_until_it_is_taken(storage: Storage, data: bytes) -> None:
    storage.write(LEASE, data)
    with pytest.raises(LeaseError, match=r"damaged .* --take-lease"):
        hold(storage)
    hold(storage, take=True).__exit__()


def test_what_a_storage_can_is_known_of_it_and_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plain.PlainFileSystem.protocol in fsspec.available_protocols()
    FAULTS["default"] = Faults()
    can = {
        "memory://can": ({}, True),
        str(tmp_path): ({}, True),
        f"plain://{tmp_path}/plain": ({}, False),  # creates it once, and one client sees no more
        "faulty:///s3": ({"wraps": "memory", "like": "s3"}, True),
        f"faulty://{tmp_path}/sftp": ({"wraps": "file", "like": "sftp"}, False),
    }
    for url, (options, expected) in can.items():
        assert Storage(url, options).creates_exclusively(CACHE_JSON) is expected, url

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert not Storage(str(tmp_path)).creates_exclusively(CACHE_JSON)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_store_that_refuses_conditions_is_written_to_under_the_lease(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = storage._open()[0]
    pipe_file = fs.pipe_file

    def refuse(path: str, data: bytes, mode: str = "overwrite", **options: object) -> None:
        assert mode != "create", "what the store refuses is asked for"
        pipe_file(path, data, **options)

    monkeypatch.setattr(fs, "pipe_file", refuse)
    with Leaseholder(lease_s=LASTS_S) as holder:
        held = holder.over(storage, exclusive=False)
        assert held.create("a", b"1")
        assert not held.create("a", b"2")
        assert held.read("a") == b"1"


def test_a_cache_that_was_moved_to_other_storage_needs_a_lease_there(tmp_path: Path) -> None:
    """Its cache.json says what the storage can on which it was made."""
    moved = Storage(f"plain://{tmp_path}")
    with Leaseholder(lease_s=LASTS_S) as holder:
        assert isinstance(holder.over(moved, exclusive=True), lease.LeasedStorage)
        assert read_lease(moved) is not None
    here = Storage(str(tmp_path))
    with Leaseholder(lease_s=LASTS_S) as holder:
        assert holder.over(here, exclusive=True) is here


class NotImplemented501(OSError):  # noqa: N818 the name of an answer
    """What a store answers that knows no conditions."""

    status = 501


@pytest.mark.parametrize("answer", ["ignores", "refuses"])
def test_a_cache_that_was_moved_to_a_store_without_conditions_needs_a_lease_there(
    answer: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = storage._open()[0]
    pipe_file = fs.pipe_file

    def without_conditions(path: str, data: bytes, mode: str = "", **options: object) -> None:
        if mode == "create" and answer == "refuses":
            raise NotImplemented501("a header implies functionality that is not implemented")
        pipe_file(path, data, mode="overwrite", **options)

    storage.write(CACHE_JSON, b"{}")
    with Leaseholder(lease_s=LASTS_S) as holder:
        assert holder.over(storage, exclusive=True) is storage
    monkeypatch.setattr(fs, "pipe_file", without_conditions)
    with Leaseholder(lease_s=LASTS_S) as holder:
        assert isinstance(holder.over(storage, exclusive=True), lease.LeasedStorage)
        assert storage.read(CACHE_JSON) == b"{}"
