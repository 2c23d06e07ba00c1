"""The decoding process: answers one request at a time over a pipe, pixels go through shared memory.

Started by `pool` as `python -m latentcache.decoders.process PIPE_FD BUFFER_FD...`; messages are JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from latentcache.decoders import decord, pyav
from latentcache.decoders.clip import decode_clip, indices_of, span_of, wanted_s
from latentcache.decoders.frames import Frame
from latentcache.decoders.identity import absence, identify_url
from latentcache.decoders.ranged import NeedsWholeError
from latentcache.decoders.sound import SoundReader
from latentcache.decoders.source import Reader, Source
from latentcache.decoders.trouble import (
    ProcessTroubleError,
    is_of_ranges,
    may_be_the_disks,
    trouble_of,
)
from latentcache.errors import ClipError, ConfigError, LatentCacheError
from latentcache.redaction import printable
from latentcache.storage.source_cache import NoRoomError, StaleError, source_cache
from latentcache.storage.urls import public_name, redact_url

PR_SET_PDEATHSIG = 1
#: Sent once when everything is imported, so that a broken installation is not blamed on a clip.
READY = b"ready"


#: How the loader of shared libraries says that there is no memory for one.
_NO_MEMORY = re.compile(r"(?i)allocate|failed to map|cannot map|map segment")
#: After these another decoder may do better.
DECODING_ERRORS: tuple[type[Exception], ...] = (ClipError, *decord.Error)


def _broken(error: ImportError | ConfigError) -> dict[str, Any]:
    """Return the answer for an import that failed, unless it did for want of memory."""
    if isinstance(error, ImportError) and _NO_MEMORY.search(str(error)):
        trouble = trouble_of(MemoryError())
        assert trouble is not None
        return {"lacks": trouble.lacks, "message": str(trouble)}
    return {"broken": f"{type(error).__name__}: {error}"}


#: What a request can raise that is not a mistake of this program.
_FAILURES: tuple[type[Exception], ...] = (
    ClipError, ProcessTroubleError, LatentCacheError, MemoryError, OSError,
)  # fmt: skip


#: What is known of a file when its header is.
_OF_A_HEADER = frozenset({"source_changed", "too_large"})


_OF_THE_FILE: tuple[type[Exception], ...] = (NeedsWholeError, *_FAILURES)


class _AgainError(Exception):
    """What failed may have been passing, or the file was replaced meanwhile: it is tried once more."""


class Buffers:
    """The shared buffers, mapped again only when the parent has resized one."""

    def __init__(self, fds: list[int]) -> None:
        self._fds = fds
        self._maps: dict[int, mmap.mmap] = {}

    def make_room(self, index: int, num_bytes: int) -> None:
        """Let a buffer have that many bytes at least; the parent sees it by its size."""
        if os.fstat(self._fds[index]).st_size < num_bytes:
            os.ftruncate(self._fds[index], num_bytes)

    def view(self, index: int, shape: tuple[int, ...]) -> Frame:
        """Return buffer `index` as uint8 pixels of `shape`."""
        size = os.fstat(self._fds[index]).st_size
        if index not in self._maps or len(self._maps[index]) != size:
            self._maps[index] = mmap.mmap(self._fds[index], size)
        count = int(np.prod(shape))
        return np.frombuffer(self._maps[index], dtype=np.uint8, count=count).reshape(shape)


class Worker:
    """Answers requests; keeps the last source open, for the next clip is often of the same one.

    tell: gives the parent a sign of life; `reading` means that the source is read, and not decoded.
    """

    def __init__(
        self,
        buffers: Buffers,
        settings: Mapping[str, Any],
        tell: Callable[[Mapping[str, Any]], object] = lambda _: None,
    ) -> None:
        self._buffers = buffers
        self._options = settings["options"]
        self._max_pixels = settings["max_pixels"]
        self._tell = tell
        self._source: Source | None = None
        self._sound: SoundReader | None = None
        self._cache = source_cache(settings.get("source_cache_bytes", 0))
        self._by_ranges = bool(settings.get("by_ranges"))
        self._by_time = bool(settings.get("by_time"))
        #: The source that is wanted whole, and that which is not kept in the cache: they change rarely.
        self._whole_url: str | None = None
        self._uncached_url: str | None = None
        self._num_reading = 0
        self._closed_fetch_s = 0.0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do one request.

        A ClipError, which only a file's bytes cause, becomes an answer with `reason` and `message`. All
        else that fails, and says nothing of the file, becomes one with `lacks` and `message`.
        """
        try:
            return self._answer(request)
        except ClipError as error:
            return {"reason": error.reason, "message": str(error)}
        except (ImportError, ConfigError) as error:
            return _broken(error)
        except ProcessTroubleError as trouble:
            return {"lacks": trouble.lacks, "message": str(trouble)}

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        operations = {
            "probe": self._probe, "fetch": self._fetch, "decode": self._decode, "check": self._check,
            "sound": self._hear,
        }  # fmt: skip
        is_last = False
        while True:
            if self._source is not None:
                self._source.forget_failure()
            try:
                answer = operations[request["op"]](request)
                if self._source is not None:
                    self._source.check_fetches()
            except ConfigError:  # what a file needs is not installed
                raise
            except NoRoomError:
                if request["op"] == "fetch":
                    return {"fetch_s": 0.0}
                self._uncached_url = request["url"]
            except StaleError as error:
                if is_last:
                    raise _changing(request) from error
                is_last = True
            except _OF_THE_FILE as error:
                if self._lacks_ranges(error, request):
                    pass  # from now on this server's files are copied whole
                elif self._is_of_a_part(error, request):
                    self._whole_url = request["url"]
                else:
                    try:
                        raise self._verdict(error, request, is_last) from error
                    except _AgainError:
                        is_last = True
            else:
                return answer
            self._close()

    def _lacks_ranges(self, error: Exception, request: Mapping[str, Any]) -> bool:
        """Tell whether an error came of a server that gives no ranges, which was not known of it."""
        failure = self._source.failure if self._source else None
        found = is_of_ranges(error) or is_of_ranges(failure)
        return found and self._cache is not None and self._cache.give_up(request["url"])

    def _is_of_a_part(self, error: Exception, request: Mapping[str, Any]) -> bool:
        """Tell whether an error is of a source of which only parts are here, so that it says nothing."""
        source = self._source
        if source is None or source.url != request["url"] or not source.is_ranged:
            return False
        if isinstance(error, ClipError):
            return error.reason not in _OF_A_HEADER
        return isinstance(error, NeedsWholeError)

    def _verdict(
        self, error: Exception, request: Mapping[str, Any], is_last: bool
    ) -> ClipError | ProcessTroubleError | _AgainError:
        """Return what an error says of the file, or of all else."""
        try:
            return self._evidence(error, request, is_last)
        except (
            LatentCacheError,
            OSError,
        ) as other:  # the file, or what is beside it, cannot be read
            return self._trouble(other, request) or _as_trouble(other)

    def _evidence(
        self, error: Exception, request: Mapping[str, Any], is_last: bool
    ) -> ClipError | ProcessTroubleError | _AgainError:
        if not isinstance(error, ClipError):
            if trouble := self._trouble(error, request):
                return trouble
            absent = isinstance(error, FileNotFoundError)
            missing = f"no such file: {redact_url(request['url'])}"
            error = ClipError("missing", missing) if absent else ClipError("unreadable", str(error))
        if error.reason == "missing":
            found = absence(error, request["url"], self._options, request.get("neighbours", ()))
            return found if isinstance(found, ClipError) else _as_trouble(found)
        source = self._source
        if error.reason == "source_changed" or source is None or source.url != request["url"]:
            return error
        if not self._is_as_opened():
            return error if is_last else _AgainError()
        with self._reading():
            source.read_through()
        passing = may_be_the_disks(error) and not is_last
        return _AgainError() if passing else error

    def _trouble(self, error: Exception, request: Mapping[str, Any]) -> ProcessTroubleError | None:
        """Return the trouble that an error tells of, with the source's name."""
        trouble = trouble_of(error)
        if trouble and trouble.lacks == "source" and not isinstance(error, LatentCacheError):
            return ProcessTroubleError(
                "source", f"{printable(public_name(request['url']))}: {trouble}"
            )
        return trouble

    def _close(self) -> None:
        self._close_sound()
        if self._source is not None:
            self._closed_fetch_s += self._source.fetch_s
            self._source.close()
        self._source = None

    def _open(self, request: Mapping[str, Any]) -> Source:
        """Return the source of a request: the one that is open, where it still is that file."""
        url = request["url"]
        by_ranges = request["op"] == "probe" or (self._by_ranges and request["kind"] == "video")
        if self._source is None or self._source.url != url or not self._is_as_opened():
            self._close()
            with self._reading():
                self._source = Source(
                    url,
                    request["kind"],
                    self._options,
                    self._max_pixels,
                    self._on_fetch,
                    None if url == self._uncached_url else self._cache,
                    by_ranges and url != self._whole_url,
                    request["op"] != "fetch",
                )
        return self._source

    def _fetch_s(self) -> float:
        """Return the seconds that fetching has taken so far."""
        return self._closed_fetch_s + (self._source.fetch_s if self._source else 0.0)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Say that what goes on is no decoding: a slow network is no slow decoder."""
        self._num_reading += 1
        self._tell({"reading": True})
        try:
            yield
        finally:
            self._num_reading -= 1
            self._tell({"reading": self._num_reading > 0})

    def _on_fetch(self, is_fetching: bool) -> None:
        self._tell({"reading": is_fetching or self._num_reading > 0})

    def _is_as_opened(self) -> bool:
        """Tell whether the open source is still the file that it was; its storage may be asked."""
        assert self._source is not None
        with self._reading():
            return self._source.is_as_opened()

    def _check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Read a source whole, to tell whether a decoder that hung or crashed did so for its bytes."""
        source = self._open(request)
        with self._reading():
            source.read_through()
        return {}

    def _probe(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if request["identity_only"]:
            with self._reading():
                return {"identity": identify_url(request["url"], self._options)}
        source = self._open(request)
        if request["kind"] == "image":
            height, width = source.shown_shape()
            info: dict[str, Any] = {
                "frames": 1,
                "duration_s": 0.0,
                "fps": None,
                "height": height,
                "width": width,
            }
        else:
            if source.is_windowed and (request.get("times") or not self._by_time):
                raise NeedsWholeError
            info = dict(vars(pyav.probe(source.path, self._max_pixels)))
            times_s = info.pop("times_s")
            if request.get("times"):
                info["times_s"] = times_s.tolist()
        return {**info, "identity": source.identity}

    def _fetch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Put what a clip needs into the cache of sources; nothing else is kept of it."""
        fetched_s = self._fetch_s()
        source = self._open(request)
        if source.is_ranged:
            reader = source.reader(without_decord=True, span_s=wanted_s(request))
            assert isinstance(reader, pyav.Reader)
            reader.fetch(indices_of(reader, request))
        return {"fetch_s": self._fetch_s() - fetched_s}

    def _decode(self, request: Mapping[str, Any]) -> dict[str, Any]:
        fetched_s = self._fetch_s()
        source = self._open(request)
        started, opened_s = time.perf_counter(), self._fetch_s()
        _check_planned(source.identity == request["identity"], request)
        shape = (request["frames"], request["height"], request["width"], 3)
        out = self._buffers.view(request["buffer"], shape)
        try:
            answer = self._decode_clip(source, request, out)
        finally:  # whatever came of it, what was decoded may be another file
            _check_planned(self._is_as_opened(), request)
        decode_s = time.perf_counter() - started - (self._fetch_s() - opened_s)
        return {**answer, "decode_s": decode_s, "fetch_s": self._fetch_s() - fetched_s}

    def _hear(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Write a clip's sound into its buffer: float32 [samples, channels]."""
        if request["kind"] == "image":
            raise ClipError("no_sound", "an image has no sound")
        source = self._open(request)
        _check_planned(source.identity == request["identity"], request)
        try:
            reader = source.reader(span_s=wanted_s(request))
            start_s, end_s = span_of(reader, indices_of(reader, request))
            samples, lost = self._sound_of(source, reader, request).span(
                start_s, end_s, request["max_samples"]
            )
        except BaseException:
            self._close_sound()
            raise
        finally:
            _check_planned(self._is_as_opened(), request)
        if samples.size:
            self._buffers.make_room(request["buffer"], samples.nbytes)
            out = self._buffers.view(request["buffer"], (samples.nbytes,))
            out[:] = samples.view(np.uint8).reshape(-1)
        return {"num_samples": len(samples), "lost": lost, "start_s": start_s, "end_s": end_s}

    def _sound_of(self, source: Source, reader: Reader, request: Mapping[str, Any]) -> SoundReader:
        """Return the sound of the source that is open: as it was, if it is the same sound."""
        rate, channels, sound = request["rate"], request["channels"], self._sound
        if sound is None or (sound.rate, sound.channels) != (rate, channels):
            self._close_sound()
            sound = self._sound = SoundReader(source.path, rate, channels, reader.packets)
        return sound

    def _close_sound(self) -> None:
        if self._sound is not None:
            self._sound.close()
        self._sound = None

    def _decode_clip(
        self, source: Source, request: Mapping[str, Any], out: Frame
    ) -> dict[str, Any]:
        try:
            reader = source.reader(request["without_decord"], wanted_s(request))
            return decode_clip(reader, request, out)
        except DECODING_ERRORS:
            if source.is_ranged or source.reader().name != decord.NAME:
                raise
            return decode_clip(source.reader(without_decord=True), request, out)


def _check_planned(is_planned: bool, request: Mapping[str, Any]) -> None:
    if not is_planned:
        raise ClipError(
            "source_changed",
            f"{redact_url(request['url'])} is not the file that was planned: its bytes differ",
        )


def _changing(request: Mapping[str, Any]) -> ClipError:
    return ClipError(
        "source_changed",
        f"{redact_url(request['url'])} is replaced again and again while it is read",
    )


def _as_trouble(error: BaseException) -> ProcessTroubleError:
    return ProcessTroubleError("source", str(error))


def _limit_memory(num_bytes: int | None) -> None:
    """Make allocations beyond `num_bytes` fail, where the system can: a hostile file takes no more.

    Data, not address space: shared buffers and the code of libraries do not count.
    """
    if num_bytes is not None and sys.platform == "linux":
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = num_bytes if hard == resource.RLIM_INFINITY else min(num_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def main() -> None:
    """Serve requests until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when decoding stops
    with contextlib.suppress(
        OSError, AttributeError
    ):  # Linux: die with the parent, even if it is killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    pipe_fd, *buffer_fds = map(int, sys.argv[1:])
    with contextlib.suppress(EOFError, BrokenPipeError), Connection(pipe_fd) as pipe:
        settings = json.loads(pipe.recv_bytes())
        worker = Worker(
            Buffers(buffer_fds),
            settings,
            lambda state: pipe.send_bytes(json.dumps(state).encode()),
        )
        _limit_memory(settings["memory_bytes"])
        pipe.send_bytes(READY)
        while True:
            pipe.send_bytes(json.dumps(worker.answer(json.loads(pipe.recv_bytes()))).encode())


if __name__ == "__main__":
    main()
