"""Notices that Ray's own processes are gone, for which Ray itself would wait for minutes or for ever.

A thread asks the cluster's control service (GCS) and this machine's raylet for a connection, now and then.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

INTERVAL_S = 1.0
ANSWER_S = 2.0
#: So many times in a row: a busy machine may miss one.
TRIES = 2
#: The run ends in order in this time, unless it waits inside Ray.
NOTICE_S = 3.0
END_S = 15.0
OTHER = 1


class RayWatch:
    """Watches Ray's processes. gcs: host:port; raylet: the path of its socket.

    lost: what is gone, in words; None while all is well. A process that does not end by itself is ended.
    """

    def __init__(self, gcs: str, raylet: str) -> None:
        host, _, port = gcs.rpartition(":")
        self._places: dict[str, tuple[int, str | tuple[str, int]]] = {
            f"Ray's control service (GCS) at {gcs}": (
                socket.AF_INET,
                (host.strip("[]"), int(port)),
            ),
            f"Ray's raylet on this machine ({raylet})": (socket.AF_UNIX, raylet),
        }
        if ":" in host:
            name = next(iter(self._places))
            self._places[name] = (socket.AF_INET6, self._places[name][1])
        self.lost: str | None = None
        self._is_noticed, self._is_over = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, name="ray-watch", daemon=True).start()

    def notice(self) -> str | None:
        """Return what is gone, if anything; the caller then ends the run."""
        if self.lost is not None:
            self._is_noticed.set()
        return self.lost

    def close(self) -> None:
        """Watch no more."""
        self._is_over.set()

    def _watch(self) -> None:
        missed = dict.fromkeys(self._places, 0)
        while not self._is_over.wait(INTERVAL_S):
            for name, place in self._places.items():
                missed[name] = 0 if _answers(*place) else missed[name] + 1
                if missed[name] == TRIES:
                    self.lost = name
                    self._end()
                    return

    def _end(self) -> None:
        """End the process if nothing else does: native code of Ray may wait for what is gone."""
        if not self._is_noticed.wait(NOTICE_S):
            sys.stderr.write(f"MachineError: {message(self.lost)}\n")
            sys.stderr.flush()
        else:
            threading.Event().wait(END_S)
        os._exit(OTHER)


def message(lost: str | None) -> str:
    """Return what to tell of processes that are gone."""
    return (
        f"{lost} is gone, so the run was stopped; what is committed stays. See why in Ray's logs "
        "(/tmp/ray/session_latest/logs), such as a machine that is short of memory; then resume."
    )


def _answers(family: int, place: str | tuple[str, int]) -> bool:
    try:
        with socket.socket(family) as asked:
            asked.settimeout(ANSWER_S)
            asked.connect(place)
    except OSError:
        return False
    return True
