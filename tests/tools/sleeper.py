"""A decoding program that hangs, crashes, dies or starves, as the source's name says; else it decodes."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av

from latentcache.decoders import process


class Worker(process.Worker):
    def _decode(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = Path(request["url"]).name
        if "hang" in name:
            time.sleep(1000)
        if "importless" in name:
            raise ModuleNotFoundError("No module named 'flash_attn'")
        if "mapless" in name:
            raise ImportError("libtorch_cpu.so: failed to map segment from shared object")
        if "segfault" in name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "once" in name and not Path(request["url"] + ".died").exists():
            Path(request["url"] + ".died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if "starving" in name:
            raise av.error.BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if "starved" in name and not Path(request["url"] + ".starved").exists():
            Path(request["url"] + ".starved").touch()
            raise av.error.MemoryError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        if "decord" in name and not request["without_decord"]:
            time.sleep(1000)
        return super()._decode(request)


if __name__ == "__main__":
    process.Worker = Worker  # type: ignore[misc]
    process.main()
