"""One decoding process as its parent has it: started, asked, and killed when it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from latentcache.decoders.temporary_copies import remove_copies_of
from latentcache.decoders.trouble import CRASHES, ProcessTroubleError, machine_trouble
from latentcache.errors import ClipError, RunStoppedError, ShardError, broken_installation
from latentcache.redaction import printable
from latentcache.storage.urls import public_name

#: A process may take this long to import what it needs.
START_UP_S = 120.0
_IMPORT_ERROR = re.compile(r"\bImportError\b|\bModuleNotFoundError\b|No module named")


def _environment() -> dict[str, str]:
    """Return the environment of a decoding process: the processes are the parallelism.

    An empty entry of PYTHONPATH, which `PYTHONPATH=$PYTHONPATH:/x` makes, is the current folder.
    """
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    path = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    return {**rest, **path, "OMP_NUM_THREADS": "1"}


def _signal_name(number: int) -> str:
    """Return the name of a signal; the real-time ones have no names of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Child:
    """One decoding process, started on the first question and again after it was lost."""

    def __init__(
        self,
        program: str,
        buffer_fds: Sequence[int],
        settings: Mapping[str, Any],
        stall_s: float,
    ) -> None:
        self._stall_s = stall_s
        self._program = program
        self._buffer_fds = buffer_fds
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._stopped = False
        #: Signs of life while a source was read, and answers.
        self.num_steps = 0
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 closed with this object

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises ClipError, also where there is no answer in time, ProcessTroubleError, and RunStoppedError
        where an import has failed.
        """
        pipe = self._pipe or self._start()
        try:
            pipe.send_bytes(json.dumps(message).encode())
            answer = self._wait(pipe, timeout_s, message.get("url", "a source"))
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if "broken" in answer:
            raise RunStoppedError(broken_installation(answer["broken"]))
        if "lacks" in answer:
            raise ProcessTroubleError(answer["lacks"], answer["message"])
        if "reason" in answer:
            raise ClipError(answer["reason"], answer["message"])
        return answer

    def _wait(self, pipe: Connection, timeout_s: float, url: str) -> dict[str, Any]:
        """Return the answer. While the source is read, the clock of decoding stands still."""
        is_reading = False
        while pipe.poll(self._stall_s if is_reading else timeout_s):
            answer: dict[str, Any] = json.loads(pipe.recv_bytes())
            self.num_steps += 1
            if "reading" not in answer:
                return answer
            is_reading = answer["reading"]
        self.kill()
        if is_reading:
            raise ProcessTroubleError(
                "source",
                f"reading {printable(public_name(url))} gave no byte for {self._stall_s:g} s",
            )
        raise ClipError(
            "decode_timeout", f"no answer from the decoder after {timeout_s:g} s; it was killed"
        )

    def _lost(self) -> ClipError | ProcessTroubleError | ShardError:
        """Return what the end of the process says: a crash of the file, a kill of the machine."""
        code = self._code()
        cause = f"the decoding process {self._cause(code)}"
        if self._stopped:
            return ShardError("the decoding pool was closed")
        if code < 0 and -code not in CRASHES:
            return ProcessTroubleError(
                "machine",
                f"{cause}, which no file does. If the machine is short of memory, lower "
                "run.decode_processes or run.decode_memory_bytes",
            )
        return ClipError("decoder_crashed", cause)

    def _start(self) -> Connection:
        try:
            ours = self._spawn()
        except OSError as error:
            raise machine_trouble(error) from error
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
                raise ProcessTroubleError(
                    "machine", f"a decoding process did not start within {START_UP_S:g} s"
                )
            ours.recv_bytes()
            self.num_steps += 1
        except (EOFError, OSError) as error:
            cause = self._cause(self._code())
            if _IMPORT_ERROR.search(cause):
                message = broken_installation(f"a decoding process cannot start: it {cause}")
                raise RunStoppedError(message) from error
            raise ProcessTroubleError(
                "machine", f"a decoding process cannot start: it {cause}"
            ) from error
        return ours

    def _spawn(self) -> Connection:
        """Start the process; returns this end of the pipe."""
        ours, theirs = Pipe()
        try:
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
        except OSError:
            ours.close()
            raise
        return ours

    def _code(self) -> int:
        """Wait for the process that went away; returns its exit status, the signal's number below 0."""
        code = self._process.wait(timeout=10) if self._process else 0
        self.kill()
        return code

    def _cause(self, code: int) -> str:
        """Say how the process ended."""
        if code < 0:
            return f"was killed by {_signal_name(-code)}"
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
                remove_copies_of(self._process.pid)
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
