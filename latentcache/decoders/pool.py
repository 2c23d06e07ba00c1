"""DecodePool: clips in, pixels in shared buffers out, by processes that are killed when they hang."""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentcache.config.sections import Config
from latentcache.core.machine import anonymous_file
from latentcache.core.records import Clip, PictureFacts
from latentcache.decoders.ahead import CLIPS_AHEAD, Ahead, Fetchers, num_fetchers
from latentcache.decoders.asking import DECODE_ATTEMPTS, Asking, final
from latentcache.decoders.child import Child
from latentcache.decoders.frames import Frame
from latentcache.decoders.neighbours import Neighbours
from latentcache.decoders.temporary_copies import remove_orphans
from latentcache.decoders.trouble import machine_trouble
from latentcache.errors import ClipError
from latentcache.storage.source_cache import user_of_sources
from latentcache.storage.urls import is_remote, redact_url, refused_scheme

#: A source that is read, or fetched, may give no sign of life for so long. Stores give one with each block
#: that they hand over, of up to 50 MiB; fsspec's http waits as long for an answer.
STALL_S = 300.0


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """Pixels uint8 [T, H, W, 3] in a shared buffer, valid until `release`, and facts of the clip.

    frame_numbers: which frames of the source these are [T]; of Matroska that was read by ranges, which of
    those that were read, unless the clip counts frames. fetch_s: seconds for which its process fetched.
    """

    pixels: Frame
    start_s: float
    end_s: float
    source_height: int
    source_width: int
    picture: PictureFacts
    decoder: str
    frame_numbers: Sequence[int]
    decode_s: float
    fetch_s: float
    buffer: Buffer
    pool: DecodePool

    def release(self) -> None:
        """Give the buffer back; `pixels` must not be used after."""
        self.pool.give_back(self.buffer)


@dataclass(frozen=True, kw_only=True)
class DecodedSound:
    """Samples float32 [n, channels] in a shared buffer, valid until `release`; they span start_s to end_s.

    lost: how many more there would be.
    """

    samples: npt.NDArray[np.float32]
    start_s: float
    end_s: float
    lost: int
    buffer: Buffer
    pool: DecodePool

    def release(self) -> None:
        """Give the buffer back; `samples` must not be used after."""
        self.pool.give_back(self.buffer)


@contextlib.contextmanager
def _machine_errors() -> Iterator[None]:
    """Turn what the system refuses to this process into MachineError."""
    try:
        yield
    except OSError as error:
        raise final(machine_trouble(error)) from error


class Buffer:
    """Anonymous shared memory that grows to the largest clip; it goes with the last process."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.fd = anonymous_file("latentcache-pixels")
        self._map: mmap.mmap | None = None

    def view(self, shape: tuple[int, ...]) -> Frame:
        """Return the buffer as uint8 pixels of `shape`, larger than before where needed."""
        count = int(np.prod(shape))
        if self._map is None or len(self._map) < count:
            os.ftruncate(self.fd, count)
            self._map = mmap.mmap(self.fd, count)
        return np.frombuffer(self._map, dtype=np.uint8, count=count).reshape(shape)


class DecodePool:
    """`num_processes` decoding processes and `num_buffers` buffers for the clips that they decode.

    timeout_s: for decoding a clip; fetching its source does not count, which may give no byte for
    stall_s. max_pixels: of a source's frame. memory_bytes: that a process may take for itself. None: no
    limit. source_cache_bytes: that remote sources may take on this machine's disk, for all its processes;
    0: each fetches what it needs. by_ranges: of a long remote video only its clips' bytes are fetched.
    by_time: nobody counts frames, so that probing may take their number from the rate that a file declares.
    schemes: `corpus.schemes`; a source on another file system is refused, and not looked at.
    Raises MachineError.

    Requests are served in the order in which they were submitted, and a request takes its buffer before
    the next one does: a consumer that takes results in the order of submission never waits for ever.

    window: requests that are worth having under way; more would only hold memory.
    """

    window = 256

    def __init__(
        self,
        *,
        num_processes: int,
        num_buffers: int,
        timeout_s: float,
        rules: Mapping[str, Any] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        max_pixels: int | None = None,
        memory_bytes: int | None = None,
        schemes: Sequence[str] = (),
        stall_s: float = STALL_S,
        source_cache_bytes: int = 0,
        by_ranges: bool = False,
        by_time: bool = False,
        program: str = "latentcache.decoders.process",
    ) -> None:
        if num_processes < 1 or num_buffers < 1:
            raise ValueError(
                f"a pool of {num_processes} processes and {num_buffers} buffers would never answer"
            )
        self._timeout_s = timeout_s
        self._rules = dict(rules or {"interpolation": "bicubic"})
        self._schemes = tuple(schemes)
        settings = {
            "options": dict(storage_options or {}),
            "max_pixels": max_pixels,
            "memory_bytes": memory_bytes,
            "source_cache_bytes": source_cache_bytes,
            "by_ranges": by_ranges,
            "by_time": by_time,
        }
        remove_orphans()
        with _machine_errors():
            self._buffers = [Buffer(index) for index in range(num_buffers)]
            fds = [buffer.fd for buffer in self._buffers]
            self._processes = [Child(program, fds, settings, stall_s) for _ in range(num_processes)]
            fetching = num_fetchers(num_processes) if source_cache_bytes else 0
            self._fetchers = Fetchers(
                [Child(program, fds, settings, stall_s) for _ in range(fetching)],
                CLIPS_AHEAD * num_processes,
                timeout_s,
            )
        self._sources = user_of_sources(source_cache_bytes)
        self._has_decoded = False
        self._neighbours = Neighbours()
        self._free: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        for buffer in self._buffers:
            self._free.put(buffer)
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._take = threading.Lock()
        self._closing = threading.Event()
        self._lanes = [
            threading.Thread(target=self._serve, args=(process,), name="decode", daemon=True)
            for process in self._processes
        ]
        for lane in self._lanes:
            lane.start()

    @classmethod
    def for_run(cls, config: Config, *, num_processes: int, num_buffers: int) -> DecodePool:
        """Return a pool that decodes a configuration's corpus, with the limits that it sets."""
        return cls(
            num_processes=num_processes,
            num_buffers=num_buffers,
            timeout_s=config.run.decode_timeout_s,
            rules=config.clips.pixel_rules(),
            storage_options=config.corpus.storage_options,
            max_pixels=config.corpus.max_pixels,
            memory_bytes=config.run.decode_memory_bytes,
            schemes=config.corpus.schemes,
            source_cache_bytes=config.run.source_cache_bytes,
            by_ranges=config.clips.takes_parts,
            by_time=config.clips.goes_by_time,
        )

    def decode(self, clip: Clip, times_s: Sequence[float] | None = None) -> Future[DecodedClip]:
        """Decode a clip. times_s: its frames are those nearest to these times since the file's first frame.

        The future raises ClipError where the clip, its decoder or its time fails; SourceError and
        MachineError where something else does, for longer than a moment.
        """
        message = _decode_message(clip, self._rules)
        if times_s is not None:
            message["times_s"] = list(times_s)
        self._has_decoded = True
        return self._submit(_Request(message=message, clip=clip))

    def sound(
        self, clip: Clip, *, rate: int, channels: int, max_samples: int
    ) -> Future[DecodedSound]:
        """Decode what is heard while a clip's frames are shown, `max_samples` at most.

        The future raises as that of `decode`.
        """
        message = _decode_message(clip, self._rules)
        message |= {"op": "sound", "rate": rate, "channels": channels, "max_samples": max_samples}
        return self._submit(_Request(message=message, clip=clip))

    def probe(
        self, url: str, kind: str, *, identity_only: bool = False, times: bool = False
    ) -> Future[dict[str, Any]]:
        """Find frames, duration_s, fps, height, width and identity of a source, or only its identity.

        times: the presentation times of a video's frames, too, as times_s. The future raises as that of
        `decode`.
        """
        message = {
            "op": "probe", "url": url, "kind": kind, "identity_only": identity_only, "times": times,
        }  # fmt: skip
        return self._submit(_Request(message=message, clip=None))

    def remember(self, urls: Iterable[str]) -> None:
        """Take in sources that another pool has been asked for: see `Neighbours`."""
        for url in urls:
            self._neighbours.add(url)

    def _submit(self, request: _Request) -> Future[Any]:
        url = request.message["url"]
        if why := refused_scheme(url, self._schemes):
            request.future.set_exception(ClipError("unreadable", f"{redact_url(url)} {why}"))
        else:
            self._neighbours.add(url)
            is_decoded = request.message["op"] == "decode"
            if is_decoded and self._fetchers.processes and is_remote(url):
                request.ahead = self._fetchers.add(request.message)
            self._requests.put(request)
            if self._closing.is_set():  # `close` may have looked for the last time
                request.future.cancel()
        return request.future

    @property
    def num_steps(self) -> int:
        """Pieces of sources that were read, and answers, since the start."""
        return sum(p.num_steps for p in (*self._processes, *self._fetchers.processes))

    def give_back(self, buffer: Buffer) -> None:
        """Return a buffer to the pool."""
        self._free.put(buffer)

    def close(self) -> None:
        """Stop the processes at once; requests that have not been served fail or are cancelled.

        So are those that come later: a shard's thread may be reading storage while its run stops. To close
        it again does nothing.
        """
        if self._closing.is_set():  # its descriptors may be those of other files by now
            return
        self._closing.set()
        for process in self._processes:
            process.stop()
        for _ in self._lanes:
            self._free.put(None)
            self._requests.put(None)
        self._fetchers.close()
        for lane in self._lanes:
            lane.join()
        if self._sources is not None:
            self._sources.leave(clear=self._has_decoded)
        with contextlib.suppress(queue.Empty):
            while True:
                request = self._requests.get_nowait()
                if request is not None:
                    request.future.cancel()
        for buffer in self._buffers:
            os.close(buffer.fd)

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self, process: Child) -> None:
        try:
            while (work := self._next()) is not None:
                self._work(process, *work)
        finally:
            process.close()

    def _next(self) -> tuple[_Request, Buffer] | None:
        """Take a buffer, then a request; the lock keeps the order of requests the order of buffers."""
        with self._take:
            buffer = self._free.get()
            request = self._requests.get() if buffer else None
            if self._closing.is_set() or buffer is None or request is None:
                if request is not None:
                    request.future.cancel()
                return None
            return request, buffer

    def _work(self, process: Child, request: _Request, buffer: Buffer) -> None:
        if request.ahead is not None:
            self._fetchers.begin(request.ahead)
        if not request.future.set_running_or_notify_cancel():
            self.give_back(buffer)
            return
        try:
            if request.clip is None:
                request.future.set_result(self._ask(process, request.message, [{}] * 3))
                self.give_back(buffer)
            elif request.message["op"] == "sound":
                request.future.set_result(self._heard(process, request, buffer))
            else:
                request.future.set_result(self._decoded(process, request, buffer))
        except BaseException as error:  # noqa: BLE001 whatever it is, the one who waits must see it
            self.give_back(buffer)
            request.future.set_exception(error)

    def _decoded(self, process: Child, request: _Request, buffer: Buffer) -> DecodedClip:
        clip = request.clip
        assert clip is not None
        with _machine_errors():
            pixels = buffer.view((clip.frames, clip.height, clip.width, 3))
        message = {**request.message, "buffer": buffer.index}
        answer = self._ask(process, message, DECODE_ATTEMPTS)
        picture = PictureFacts(**answer.pop("picture"))
        answer["fetch_s"] += request.ahead.fetch_s if request.ahead else 0.0
        return DecodedClip(pixels=pixels, picture=picture, buffer=buffer, pool=self, **answer)

    def _heard(self, process: Child, request: _Request, buffer: Buffer) -> DecodedSound:
        message = {**request.message, "buffer": buffer.index}
        answer = self._ask(process, message, [{}] * 3)
        shape = (answer.pop("num_samples"), message["channels"])
        with _machine_errors():
            data = buffer.view((4 * shape[0] * shape[1],)) if shape[0] else np.zeros(0, np.uint8)
        samples = data.view(np.float32).reshape(shape)
        return DecodedSound(samples=samples, buffer=buffer, pool=self, **answer)

    def _ask(
        self, process: Child, message: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        asked = {**message, "neighbours": self._neighbours.of(message["url"])}
        return Asking(process, asked, self._timeout_s).persistently(attempts, self._closing.wait)


class _Request:
    def __init__(self, *, message: dict[str, Any], clip: Clip | None) -> None:
        self.message = message
        self.clip = clip
        self.ahead: Ahead | None = None
        self.future: Future[Any] = Future()


def _decode_message(clip: Clip, rules: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("url", "kind", "identity", "start", "frames", "fps", "height", "width")
    message = {name: getattr(clip, name) for name in fields}
    return {"op": "decode", **rules, **message, "counts_frames": clip.counts_frames}
