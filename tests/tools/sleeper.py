"""A decoding program that hangs, crashes or dies on request, by the name of the source; else decodes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentcache.decoders import process


class Worker(process.Worker):
    def _decode(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = Path(request["url"]).name
        if "hang" in name:
            time.sleep(1000)
        if "segfault" in name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "once" in name and not Path(request["url"] + ".died").exists():
            Path(request["url"] + ".died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if "decord" in name and not request["without_decord"]:
            time.sleep(1000)
        return super()._decode(request)


if __name__ == "__main__":
    process.Worker = Worker  # type: ignore[misc]
    process.main()
