"""Storage over the S3 protocol: requests, conditions, and errors that show no secret."""

from __future__ import annotations

import errno
import os
import traceback
from typing import Any

import pytest
from botocore.exceptions import ClientError

from latentcache.errors import StorageError
from latentcache.storage import remote_objects, retry
from latentcache.storage.folder import Storage
from latentcache.storage.spill import written
from tests.tools.s3 import S3, SECRET

pytestmark = pytest.mark.usefixtures("no_waiting")

#: Objects that s3fs sends in parts.
MULTIPART_BYTES = 100 << 20


def test_an_object_store_is_asked_for_each_prefix(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = Storage(f"{s3.url}/cache", s3.options), []
    for name in ("000001.parquet", "001001.parquet"):
        store.write(f"samples/{name}", b"1")
    filesystem = type(store._open()[0])
    find = filesystem.find

    def counting(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["prefix"])
        return find(self, path, *args, **kwargs)

    monkeypatch.setattr(filesystem, "find", counting)
    assert list(store.names("samples", ["001"])) == ["001001.parquet"]
    assert asked == ["001"]


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    import s3fs

    calls: list[str] = []
    original = s3fs.S3FileSystem._call_s3

    async def record(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        return await original(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", record)
    return calls


def test_an_s3_write_is_one_put(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, store = calls_of(monkeypatch), Storage(s3.url, s3.options)
    store.write("a", bytes(20 << 20))
    assert calls == ["put_object"]


@pytest.mark.parametrize(
    ("code", "status", "times"),
    [
        ("NotImplemented", 501, None),
        ("MethodNotAllowed", 405, None),
        ("InvalidArgument", 400, None),  # as of a store that does not know the condition
        ("BadDigest", 400, None),  # which says nothing of the condition
        ("RequestTimeout", 400, 1),  # nor does this, and it passes
    ],
)
def test_an_s3_object_is_never_written_without_the_condition(
    s3: S3, monkeypatch: pytest.MonkeyPatch, code: str, status: int, times: int | None
) -> None:
    """Whatever the store answers, an object that is there stays as it is."""
    store = Storage(f"{s3.url}/cache", s3.options)
    store.write("cache.json", b"theirs")
    fs = store._open()[0]
    refused: list[str] = []
    pipe_file = fs.pipe_file

    def refuse(path: str, data: bytes, **options: Any) -> None:
        if options.get("mode") == "create" and len(refused) != times:
            refused.append(path)
            response: Any = {
                "Error": {"Code": code},
                "ResponseMetadata": {"HTTPStatusCode": status},
            }
            raise OSError(errno.EIO, "A header is not as it should be") from ClientError(
                response, "PutObject"
            )
        pipe_file(path, data, **options)

    monkeypatch.setattr(fs, "pipe_file", refuse)
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.0)
    if times:
        assert not store.create("cache.json", b"mine")
    else:
        with pytest.raises(StorageError):
            store.create("cache.json", b"mine")
        assert not store.creates_exclusively("cache.json")
    assert store.read("cache.json") == b"theirs"
    assert refused


def test_a_large_s3_write_appears_when_it_is_complete(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, store = calls_of(monkeypatch), Storage(s3.url, s3.options)
    data = os.urandom(1 << 20) * 100
    store.write("a", data)
    assert set(calls) == {"create_multipart_upload", "upload_part", "complete_multipart_upload"}
    assert calls[-1] == "complete_multipart_upload"
    assert store.read("a") == data


def test_ranges_of_an_s3_object_are_read_at_the_same_time(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    import s3fs

    store = Storage(s3.url, s3.options)
    store.write("a", bytes(100))
    running = peak = 0
    original = s3fs.S3FileSystem._call_s3

    async def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.01)
        running -= 1
        return await original(self, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", count)
    assert store.read_ranges("a", [(i, 1) for i in range(8)]) == [b"\0"] * 8
    assert peak == 8


def test_a_missing_bucket_is_a_storage_error_that_names_it(s3: S3) -> None:
    store = Storage("s3://nobody-made-this/cache", s3.options)
    assert store.list("") == {}
    with pytest.raises(
        StorageError, match=r"cannot write s3://nobody-made-this/cache/a: .*no such bucket.*Create"
    ):
        store.write("a", b"1")


def test_no_error_shows_a_secret(s3: S3) -> None:
    options = {**s3.options, "client_kwargs": {"endpoint_url": f"http://user:{SECRET}@127.0.0.1:1"}}
    with pytest.raises(StorageError) as caught:
        Storage(s3.url, {**options, "skip_instance_cache": True, "retries": 1}).read("a")
    shown = (
        str(caught.value) + repr(caught.value) + "".join(traceback.format_exception(caught.value))
    )
    assert SECRET not in shown
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_systems_own_message_loses_its_secrets(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Storage(s3.url, s3.options)

    def refuse(*args: Any) -> None:
        raise ValueError(f"signed with {SECRET},\nat ftp://me:pw@host")

    monkeypatch.setattr(store._open()[0], "cat_file", refuse)
    with pytest.raises(StorageError) as caught:
        store.read("a")
    assert str(caught.value).endswith("/a: ValueError: signed with ***, at ftp://***@host.")
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_forked_process_opens_its_own_file_system(s3: S3) -> None:
    store = Storage(s3.url, s3.options)
    store.write("a", b"1")
    child = os.fork()
    if child == 0:
        os._exit(0 if store.read("a") == b"1" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.read("a") == b"1"


def test_the_message_says_how_often_it_was_tried(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Storage(s3.url, s3.options)

    def fail(*args: Any) -> None:
        raise ConnectionResetError("reset")

    monkeypatch.setattr(store._open()[0], "pipe_file", fail)
    with pytest.raises(StorageError) as caught:
        store.write("a", b"1")
    assert str(caught.value) == (
        f"cannot write {s3.url}/a: ConnectionResetError: reset (tried {retry.TRIES} times over 0 s). "
        "Check the network and the endpoint, then run the same command again."
    )


@pytest.mark.slow
def test_a_large_object_that_is_mapped_reaches_s3_in_slices(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_objects, "WHOLE_BYTES", MULTIPART_BYTES)
    num_bytes = MULTIPART_BYTES + 1000
    data = written(lambda file: file.write(bytes(range(250)) * (num_bytes // 250)))
    storage = Storage(s3.url, s3.options)
    storage.write("large", data)
    assert s3.filesystem.info(f"{s3.url}/large")["ETag"].endswith('-3"')  # of three parts
    assert storage.read("large") == data[:]
    storage.write("small", written(lambda file: file.write(b"small")))
    assert storage.read("small") == b"small"
