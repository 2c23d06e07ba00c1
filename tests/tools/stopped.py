"""A job that stops itself (SIGSTOP) before its k-th step: `python -m tests.tools.stopped K JOB ...`.

Steps are storage operations, and on a local disk the links and renames that they end with. With K = -1 it
runs through and prints how many steps there were.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from latentcache.storage.folder import Storage


class Steps:
    """Counts steps of all threads, and stops the process before the chosen one."""

    def __init__(self, chosen: int) -> None:
        self.chosen, self.count, self._lock = chosen, 0, threading.Lock()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function as a step."""

        def step(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                self.count += 1
                stop = self.count - 1 == self.chosen
            if stop:
                os.kill(os.getpid(), signal.SIGSTOP)
            return function(*args, **kwargs)

        return step


def main() -> int:
    """Run a job of `jobs` with steps counted."""
    steps = Steps(int(sys.argv[1]))
    Storage._do = steps.wrap(Storage._do)  # type: ignore[method-assign]
    for name in ("link", "replace"):
        setattr(os, name, steps.wrap(getattr(os, name)))
    job = importlib.import_module(f"jobs.{sys.argv[2]}")
    sys.argv = sys.argv[2:]
    status: int = job.main()
    if steps.chosen < 0:
        print(f"steps {steps.count}")
    return status


if __name__ == "__main__":
    sys.exit(main())
