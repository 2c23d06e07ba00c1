"""DecodePool: clips in, pixels in shared buffers out, by processes that are killed when they hang."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from latentcache.config.sections import Config
from latentcache.core.records import Clip, PictureFacts
from latentcache.decoders.frames import Frame
from latentcache.decoders.trouble import ProcessTroubleError
from latentcache.errors import ClipError, RunStoppedError, ShardError, broken_installation
from latentcache.storage.urls import redact_url, refused_scheme

#: A process may take this long to import what it needs.
START_UP_S = 120.0


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """Pixels uint8 [T, H, W, 3] in a shared buffer, valid until `release`, and facts of the clip."""

    pixels: Frame
    start_s: float
    end_s: float
    source_height: int
    source_width: int
    picture: PictureFacts
    decoder: str
    decode_s: float
    buffer: Buffer
    pool: DecodePool

    def release(self) -> None:
        """Give the buffer back; `pixels` must not be used after."""
        self.pool.give_back(self.buffer)


class Buffer:
    """Anonymous shared memory that grows to the largest clip; it goes with the last process."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.fd = _anonymous_file()
        self._map: mmap.mmap | None = None

    def view(self, shape: tuple[int, ...]) -> Frame:
        """Return the buffer as uint8 pixels of `shape`, larger than before where needed."""
        count = int(np.prod(shape))
        if self._map is None or len(self._map) < count:
            os.ftruncate(self.fd, count)
            self._map = mmap.mmap(self.fd, count)
        return np.frombuffer(self._map, dtype=np.uint8, count=count).reshape(shape)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("latentcache-pixels")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class DecodePool:
    """`num_processes` decoding processes and `num_buffers` buffers for the clips that they decode.

    max_pixels: of a source's frame. memory_bytes: that a process may take for itself. None: no limit.
    schemes: `corpus.schemes`; a source on another file system is refused, and not looked at.

    Requests are served in the order in which they were submitted, and a request takes its buffer before
    the next one does: a consumer that takes results in the order of submission never waits for ever.
    """

    def __init__(
        self,
        *,
        num_processes: int,
        num_buffers: int,
        timeout_s: float,
        interpolation: str = "bicubic",
        storage_options: Mapping[str, Any] | None = None,
        max_pixels: int | None = None,
        memory_bytes: int | None = None,
        schemes: Sequence[str] = (),
        program: str = "latentcache.decoders.process",
    ) -> None:
        self._timeout_s = timeout_s
        self._interpolation = interpolation
        self._schemes = tuple(schemes)
        settings = {
            "options": dict(storage_options or {}),
            "max_pixels": max_pixels,
            "memory_bytes": memory_bytes,
        }
        self._buffers = [Buffer(index) for index in range(num_buffers)]
        self._free: queue.SimpleQueue[Buffer | None] = queue.SimpleQueue()
        for buffer in self._buffers:
            self._free.put(buffer)
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._take = threading.Lock()
        self._closing = False
        fds = [buffer.fd for buffer in self._buffers]
        self._processes = [_Process(program, fds, settings) for _ in range(num_processes)]
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
            interpolation=config.clips.interpolation,
            storage_options=config.corpus.storage_options,
            max_pixels=config.corpus.max_pixels,
            memory_bytes=config.run.decode_memory_bytes,
            schemes=config.corpus.schemes,
        )

    def decode(self, clip: Clip) -> Future[DecodedClip]:
        """Decode a clip; the future raises ClipError where the clip, its decoder or its time fails."""
        return self._submit(_Request(message=_decode_message(clip, self._interpolation), clip=clip))

    def probe(self, url: str, kind: str, *, identity_only: bool = False) -> Future[dict[str, Any]]:
        """Find frames, duration_s, fps, height, width and identity of a source, or only its identity."""
        message = {"op": "probe", "url": url, "kind": kind, "identity_only": identity_only}
        return self._submit(_Request(message=message, clip=None))

    def _submit(self, request: _Request) -> Future[Any]:
        url = request.message["url"]
        if why := refused_scheme(url, self._schemes):
            request.future.set_exception(ClipError("unreadable", f"{redact_url(url)} {why}"))
        else:
            self._requests.put(request)
        return request.future

    def give_back(self, buffer: Buffer) -> None:
        """Return a buffer to the pool."""
        self._free.put(buffer)

    def close(self) -> None:
        """Stop the processes at once; requests that have not been served fail or are cancelled."""
        self._closing = True
        for process in self._processes:
            process.stop()
        for _ in self._lanes:
            self._free.put(None)
            self._requests.put(None)
        for lane in self._lanes:
            lane.join()
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

    def _serve(self, process: _Process) -> None:
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
            if self._closing or buffer is None or request is None:
                if request is not None:
                    request.future.cancel()
                return None
            return request, buffer

    def _work(self, process: _Process, request: _Request, buffer: Buffer) -> None:
        if not request.future.set_running_or_notify_cancel():
            self.give_back(buffer)
            return
        try:
            if request.clip is None:
                answer = _ask_persistently(process, request.message, self._timeout_s, [{}] * 3)
                request.future.set_result(answer)
                self.give_back(buffer)
            else:
                request.future.set_result(self._decoded(process, request, buffer))
        except BaseException as error:  # noqa: BLE001 whatever it is, the one who waits must see it
            self.give_back(buffer)
            request.future.set_exception(error)

    def _decoded(self, process: _Process, request: _Request, buffer: Buffer) -> DecodedClip:
        clip = request.clip
        assert clip is not None
        pixels = buffer.view((clip.frames, clip.height, clip.width, 3))
        message = {**request.message, "buffer": buffer.index}
        answer = _ask_persistently(process, message, self._timeout_s, _DECODE_ATTEMPTS)
        picture = PictureFacts(**answer.pop("picture"))
        return DecodedClip(pixels=pixels, picture=picture, buffer=buffer, pool=self, **answer)


#: The last attempt is without decord, which hangs and crashes on some damaged files.
_DECODE_ATTEMPTS: Sequence[Mapping[str, Any]] = (
    {"without_decord": False},
    {"without_decord": False},
    {"without_decord": True},
)


def _ask_persistently(
    process: _Process,
    message: Mapping[str, Any],
    timeout_s: float,
    attempts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Ask again where the process was lost: it may have been killed for no fault of the clip.

    Where it took too long, only what differs is tried. Where it lacked something, a fresh one is asked.
    """
    left = list(attempts)
    had_trouble = False
    while True:
        attempt = left.pop(0)
        try:
            return process.ask({**message, **attempt}, timeout_s)
        except ProcessTroubleError as trouble:
            process.kill()
            if had_trouble:
                raise _final(trouble) from trouble
            had_trouble = True
            left.insert(0, attempt)
        except ClipError as error:
            if error.reason == "decode_timeout":
                left = [other for other in left[-1:] if other != attempt]
            elif error.reason != "decoder_crashed":
                raise
            if not left:
                raise


def _final(trouble: ProcessTroubleError) -> ClipError | ShardError:
    """Return the error for trouble that a fresh process has, too."""
    if trouble.lacks == "memory":
        return ClipError("out_of_memory", str(trouble))
    return ShardError(str(trouble))


class _Request:
    def __init__(self, *, message: dict[str, Any], clip: Clip | None) -> None:
        self.message = message
        self.clip = clip
        self.future: Future[Any] = Future()


def _decode_message(clip: Clip, interpolation: str) -> dict[str, Any]:
    fields = ("url", "kind", "identity", "start", "frames", "fps", "height", "width")
    message = {name: getattr(clip, name) for name in fields}
    return {"op": "decode", "interpolation": interpolation, **message}


_IMPORT_ERROR = re.compile(r"\bImportError\b|\bModuleNotFoundError\b|No module named")


def _environment() -> dict[str, str]:
    """Return the environment of a decoding process: the processes are the parallelism.

    An empty entry of PYTHONPATH, which `PYTHONPATH=$PYTHONPATH:/x` makes, is the current folder.
    """
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    return {**rest, **path, "OMP_NUM_THREADS": "1"}


class _Process:
    """One decoding process, started on the first question and again after it was lost."""

    def __init__(
        self, program: str, buffer_fds: Sequence[int], settings: Mapping[str, Any]
    ) -> None:
        self._program = program
        self._buffer_fds = buffer_fds
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._stopped = False
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 closed with this object

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises ClipError, also where there is no answer in time, ProcessTroubleError, and RunStoppedError
        where an import has failed.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send_bytes(json.dumps(message).encode())
            if not pipe.poll(timeout_s):
                self.kill()
                raise ClipError(
                    "decode_timeout",
                    f"no answer from the decoder after {timeout_s:g} s; it was killed",
                )
            answer: dict[str, Any] = json.loads(pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise ClipError("decoder_crashed", f"the decoding process {self._cause()}") from error
        if "broken" in answer:
            raise RunStoppedError(broken_installation(answer["broken"]))
        if "lacks" in answer:
            raise ProcessTroubleError(answer["lacks"], answer["message"])
        if "reason" in answer:
            raise ClipError(answer["reason"], answer["message"])
        return answer

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        with theirs:
            fds = [theirs.fileno(), *self._buffer_fds]
            self._process = subprocess.Popen(  # noqa: S603 our own program
                # -P: no module of the folder that the run was started in shadows the library's
                [sys.executable, "-P", "-m", self._program, *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=fds,
                env=_environment(),
            )
        self._pipe = ours
        if (
            self._stopped
        ):  # looked at after the process is known to `stop`, so that one of both ends it
            self.kill()
            raise ShardError("the decoding pool was closed")
        try:
            ours.send_bytes(json.dumps(self._settings).encode())
            if not ours.poll(START_UP_S):
                self.kill()
                raise ShardError(f"a decoding process did not start within {START_UP_S:g} s")
            ours.recv_bytes()
        except (EOFError, OSError) as error:
            cause = self._cause()
            if _IMPORT_ERROR.search(cause):
                message = broken_installation(f"a decoding process cannot start: it {cause}")
                raise RunStoppedError(message) from error
            raise ShardError(f"a decoding process cannot start: it {cause}") from error
        return ours

    def _cause(self) -> str:
        """Wait for the process that went away and say how it ended."""
        code = self._process.wait(timeout=10) if self._process else 0
        self.kill()
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        self._stderr.seek(0)
        last = self._stderr.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"ended with exit status {code}" + (f": {last[0]}" if last else "")

    def kill(self) -> None:
        """Kill the process, if there is one; the next question starts another."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)
        self._pipe = self._process = None

    def stop(self) -> None:
        """End the process for good, from another thread: the one that waits for it sees it gone."""
        self._stopped = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """Kill the process, and forget what it said."""
        self.kill()
        self._stderr.close()
