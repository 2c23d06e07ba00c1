"""One request to a decoding process, asked again until it is clear what is at fault."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from latentcache.decoders.child import Child
from latentcache.decoders.trouble import ProcessTroubleError
from latentcache.errors import ClipError, MachineError, SourceError
from latentcache.storage import retry

#: Trouble that is no file's fault is looked at again after 0.5, 1 and 2 s; a storage that does not answer
#: has used up the budget by itself.
TROUBLE_TRIES = 4
TROUBLE_BUDGET_S = 10.0
#: The last attempt is without decord, which hangs and crashes on some damaged files.
DECODE_ATTEMPTS: Sequence[Mapping[str, Any]] = (
    {"without_decord": False},
    {"without_decord": False},
    {"without_decord": True},
)
#: Reasons for which a process was lost, so that nobody has looked at the file since.
_LOST = ("decode_timeout", "decoder_crashed")


class Asking:
    """One request, asked until there is an answer, or an error that says what is at fault."""

    def __init__(self, process: Child, message: Mapping[str, Any], timeout_s: float) -> None:
        self._process, self._message, self._timeout_s = process, message, timeout_s

    def persistently(
        self, attempts: Sequence[Mapping[str, Any]], wait: Callable[[float], object]
    ) -> dict[str, Any]:
        """Ask; what is no fault of the file is asked again after a while.

        Raises ClipError of the file; SourceError and MachineError where the trouble does not pass.
        """
        try:
            return retry.call(
                functools.partial(self._ask, attempts),
                passes=lambda error: isinstance(error, ProcessTroubleError),
                tries=TROUBLE_TRIES,
                budget_s=TROUBLE_BUDGET_S,
                sleep=wait,
            )
        except ProcessTroubleError as trouble:
            raise final(trouble) from trouble

    def _ask(self, attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Ask again where the process was lost: it may have been for no fault of the clip.

        Where it took too long, only what differs is tried. Where it lacked memory, a fresh one is asked.
        """
        left = list(attempts)
        had_trouble = False
        while True:
            attempt = left.pop(0)
            try:
                return self._process.ask({**self._message, **attempt}, self._timeout_s)
            except ProcessTroubleError as trouble:
                if trouble.lacks == "source":
                    raise
                self._process.kill()
                if trouble.lacks == "machine":
                    raise
                if had_trouble:
                    raise ClipError("out_of_memory", str(trouble)) from trouble
                had_trouble = True
                left.insert(0, attempt)
            except ClipError as error:
                if error.reason not in _LOST:
                    raise
                if error.reason == "decode_timeout":
                    left = [other for other in left[-1:] if other != attempt]
                if not left:
                    self._check()
                    raise

    def _check(self) -> None:
        """Raise what a fresh process finds wrong about reading a file on which others hang or crash."""
        self._process.ask({**self._message, "op": "check"}, self._timeout_s)


def final(trouble: ProcessTroubleError) -> SourceError | MachineError:
    """Return the error for trouble that does not pass."""
    tried = "".join(f" ({note})" for note in getattr(trouble, "__notes__", ()))
    said = f"{str(trouble).rstrip('.')}{tried}. {_NOTHING_RECORDED}"
    if trouble.lacks == "source":
        return SourceError(f"the corpus cannot be read: {said}")
    return MachineError(said)


_NOTHING_RECORDED = (
    "This says nothing about the files, so no source was rejected and no clip failed for it. When it is "
    "put right, go on with the same command."
)
