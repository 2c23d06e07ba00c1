"""What fails a clip and what does not: one decoding process's answers, with nothing started."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from latentcache.core.machine import anonymous_file
from latentcache.decoders import process, trouble
from latentcache.decoders import source as sources
from latentcache.decoders.identity import identify_url
from latentcache.decoders.neighbours import NUM_REMEMBERED, Neighbours
from latentcache.decoders.trouble import ProcessTroubleError, trouble_of
from latentcache.errors import ClipError, SourceError
from latentcache.storage import retry
from tests.tools.videos import moving_pattern, read_with_pyav, write_video

SHAPE = (5, 64, 96)
#: How a source is decoded: its name, and whether decord is left out.
DECODERS = {"decord": ("v.mp4", False), "pyav": ("v.mp4", True), "pillow": ("v.png", False)}

Answer = Mapping[str, Any]


@pytest.fixture
def worker() -> Iterator[process.Worker]:
    fd = anonymous_file("pixels")
    os.ftruncate(fd, 3 * int(np.prod(SHAPE)))
    worker = process.Worker(process.Buffers([fd]), {"options": {}, "max_pixels": None})
    yield worker
    worker._close()
    os.close(fd)


def make(path: Path, seed: int = 0) -> Path:
    pixels = moving_pattern(SHAPE[0], *SHAPE[1:], seed=seed)
    if path.suffix == ".png":
        Image.fromarray(pixels[0]).save(path)
        return path
    return write_video(path, pixels)


def request(path: Path, *, without_decord: bool = False, op: str = "decode") -> dict[str, Any]:
    """A request for all of a file as it is now."""
    kind = "image" if path.suffix == ".png" else "video"
    frames, height, width = (1 if kind == "image" else SHAPE[0]), *SHAPE[1:]
    return {
        "op": op,
        "url": str(path),
        "kind": kind,
        "identity": identify_url(str(path)),
        "identity_only": False,
        "start": 0,
        "frames": frames,
        "fps": None,
        "height": height,
        "width": width,
        "interpolation": "bicubic",
        "buffer": 0,
        "without_decord": without_decord,
    }


def rename_over(path: Path) -> None:
    make(path.with_name(f"new{path.suffix}"), seed=9).replace(path)


def write_over(path: Path) -> None:
    """Other bytes in the same file, at the same time of change."""
    before = path.stat()
    path.write_bytes(make(path.with_name(f"new{path.suffix}"), seed=9).read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("replace", [rename_over, write_over])
@pytest.mark.parametrize("when", ["between clips", "before decoding", "after decoding"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_file_that_is_replaced_is_another_with_every_decoder(
    worker: process.Worker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    decoder: str,
    when: str,
    replace: Callable[[Path], None],
) -> None:
    name, without_decord = DECODERS[decoder]
    path = make(tmp_path / name)
    asked = request(path, without_decord=without_decord)
    decode_clip = process.decode_clip

    def meanwhile(*args: Any) -> dict[str, Any]:
        if when == "before decoding":
            replace(path)
        answer = decode_clip(*args)
        if when == "after decoding":
            replace(path)
        return answer

    if when == "between clips":
        assert worker.answer(asked)["decoder"] == decoder
        replace(path)
    else:
        monkeypatch.setattr(process, "decode_clip", meanwhile)
    answer = worker.answer(asked)
    assert answer.get("reason") == "source_changed", answer
    monkeypatch.undo()
    assert worker.answer(request(path))["decode_s"] > 0  # a plan with the new file goes on


def test_a_file_that_is_only_touched_or_copied_anew_is_the_same(
    worker: process.Worker, tmp_path: Path
) -> None:
    path = make(tmp_path / "v.mp4")
    asked = request(path)
    for _ in range(2):
        assert "decode_s" in worker.answer(asked)
        shutil.copyfile(path, tmp_path / "same.mp4")
        (tmp_path / "same.mp4").replace(path)


def test_a_file_is_missing_only_where_its_neighbours_are_there(
    worker: process.Worker, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    path, beside = make(corpus / "v.mp4"), make(corpus / "other.mp4")
    link = tmp_path / "link.mp4"
    link.symlink_to(path)
    for op in ("decode", "probe"):
        asked, by_link = request(path, op=op), request(link, op=op)
        path.unlink()
        assert worker.answer(asked)["reason"] == "missing"
        assert worker.answer(by_link)["reason"] == "missing"
        away = beside.rename(tmp_path / "beside.mp4")
        for _ in range(2):  # an empty mount point, and then not even that
            for each in (
                asked,
                by_link,
            ):  # beside the link there is something; its file is elsewhere
                answer = worker.answer(each)
                assert answer["lacks"] == "source", answer
                assert "nothing else is there" in answer["message"]
            corpus.rmdir() if corpus.exists() else None
        corpus.mkdir()
        beside = away.rename(beside)
        make(path)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES])
@pytest.mark.parametrize("op", ["decode", "probe"])
def test_a_disk_that_fails_while_a_decoder_reads_is_no_damage(
    worker: process.Worker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    op: str,
    number: int,
) -> None:
    """The decoder says `corrupt`, for it cannot know; the file cannot be read, and that counts."""
    path = make(tmp_path / "v.mp4")
    asked = request(path, op=op)
    path.write_bytes(damaged := path.read_bytes()[:-900])
    assert damaged
    asked["identity"] = identify_url(str(path))
    assert worker.answer(asked)["reason"] in ("unreadable", "corrupt", "truncated")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    worker._close()
    monkeypatch.setattr(sources, "read_through", fail)
    answer = worker.answer(asked)
    assert answer.get("lacks") == "source", answer
    assert os.strerror(number) in answer["message"]


def test_what_a_decoder_says_is_heard_twice_if_it_may_be_the_disks(
    worker: process.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "v.mp4")
    decode_clip, said = process.decode_clip, [errno.EIO]

    def once(*args: Any) -> dict[str, Any]:
        if not said:
            return decode_clip(*args)
        error = av.error.OSError(said.pop(), "Input/output error")
        raise ClipError("corrupt", "the video stream is damaged") from error

    monkeypatch.setattr(process, "decode_clip", once)
    assert "decode_s" in worker.answer(request(path, without_decord=True))


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "machine"),
        (OSError(errno.ENOSPC, "No space left on device"), "machine"),
        (av.error.OSError(errno.ENOSPC, "No space left on device"), "machine"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "machine"),
        (av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
        (MemoryError(), "memory"),
        (OSError(errno.EIO, "Input/output error"), "source"),
        (PermissionError(errno.EACCES, "Permission denied"), "source"),
        (SourceError("cannot read it"), "source"),
        (av.error.OSError(errno.EIO, "a short read, to FFmpeg"), None),
        (av.error.InvalidDataError(1094995529, "Invalid data"), None),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
        (OSError("image file is truncated"), None),
        (ValueError("bad header"), None),
    ],
)
def test_which_errors_are_a_files_and_which_the_worlds(error: Exception, lacks: str | None) -> None:
    wrapped = RuntimeError("it fails")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        found = trouble_of(each)
        assert (found.lacks if found else None) == lacks


def test_what_a_library_itself_asks_the_system_for_in_vain_is_the_files_fault() -> None:
    """A damaged header makes it seek to where nothing can be; reads that fail are told before it."""
    for number in (errno.EINVAL, errno.EOVERFLOW, errno.ENXIO, errno.EPERM):
        assert trouble_of(OSError(number, os.strerror(number)), is_parsers=True) is None
    lacking = trouble_of(OSError(errno.EMFILE, "Too many open files"), is_parsers=True)
    assert lacking is not None
    assert lacking.lacks == "machine"


@pytest.mark.parametrize("op", ["probe", "decode"])
def test_an_image_whose_header_points_astray_is_rejected_and_the_run_goes_on(
    worker: process.Worker, tmp_path: Path, op: str
) -> None:
    path = make(tmp_path / "v.png")
    Image.open(path).save(path, format="TIFF")
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\x2b" + data[3:])  # a TIFF of 64 bits, with offsets of 32
    answer = worker.answer(request(path, op=op))
    assert answer.get("reason") == "corrupt", answer


def test_a_source_is_read_through_once_however_many_of_its_clips_fail(
    worker: process.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes()[:-900])
    reads: list[str] = []
    read_through = trouble.read_through
    monkeypatch.setattr(
        sources, "read_through", lambda path, *a: (reads.append(path), read_through(path, *a))
    )
    asked = request(path)
    assert [worker.answer(asked)["reason"] for _ in range(3)]
    assert reads == [str(path)]


def test_a_fetch_and_a_check_say_that_they_read(tmp_path: Path) -> None:
    path, told = make(tmp_path / "v.mp4"), []
    worker = process.Worker(
        process.Buffers([]),
        {"options": {}, "max_pixels": None},
        lambda s: told.append(s["reading"]),
    )
    assert worker.answer(request(path, op="check")) == {}
    assert told[0] is True
    assert told[-1] is False


def test_http_status_tells_a_file_that_is_gone_from_a_server_that_is_ill() -> None:
    class RefusedError(Exception):
        def __init__(self, status: int) -> None:
            self.status = status

    for status, is_gone in ((404, True), (410, True), (403, False), (429, False), (503, False)):
        error = FileNotFoundError("http://h/v.mp4")  # as fsspec has it for each of them
        error.__cause__ = RefusedError(status)
        assert (retry.behind_absence(error) is None) == is_gone, status
        assert retry.is_transient(error) == (status in (429, 503)), status
    lost = FileNotFoundError("http://h/v.mp4")
    lost.__cause__ = ConnectionResetError()
    assert retry.is_transient(lost)
    assert retry.behind_absence(FileNotFoundError("v.mp4")) is None


def test_neighbours_are_of_the_same_host_first_and_never_the_source_itself() -> None:
    known = Neighbours()
    for number in range(2 * NUM_REMEMBERED):
        known.add(f"http://a/{number}.mp4")
    known.add("https://b/0.mp4?sig=1")
    known.add("/data/v.mp4")
    assert known.of("/data/other.mp4") == []
    of_a = known.of("http://a/15.mp4")
    assert len(of_a) == NUM_REMEMBERED
    assert of_a[:-1] == [f"http://a/{n}.mp4" for n in range(8, 15)]
    assert known.of("https://b/0.mp4?sig=1")[0].startswith("http://a/")
    assert known.of("https://b/1.mp4")[0] == "https://b/0.mp4?sig=1"


def test_trouble_names_the_source_without_its_secrets(
    worker: process.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "v.mp4")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(process.Source, "__init__", fail)
    url = f"http://h/{path.name}?sig=hunter2"
    answer = worker.answer(request(path) | {"url": url})
    assert answer["lacks"] == "source"
    assert "http://h/v.mp4" in answer["message"]
    assert "hunter2" not in answer["message"]
    assert isinstance(ProcessTroubleError("source", "x"), Exception)
    assert read_with_pyav(path).shape[0] == SHAPE[0]
