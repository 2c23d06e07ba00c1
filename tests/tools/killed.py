"""A job that is killed again and again, and run again, until it ends: `python -m tests.tools.killed`.

Each run is a fork of one process, which has imported everything that jobs need and computed nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.tools.caches import ROOT, run_inline, written_once

#: Seconds that the first run may live, and how many times as long each next one.
FIRST_S, GROWTH = 0.03, 1.15


def killed(job: str, *args: object, seed: int, cache: Path | None = None) -> int:
    """Run a job until it ends by itself, and kill it before; returns how often it was killed.

    cache: one in which no run may write again what another has.
    """
    where = "" if cache is None else str(cache)
    command = [sys.executable, "-m", "tests.tools.killed", str(seed), where, job, *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(json.loads(done.stdout.splitlines()[-1]))


def _killed(rng: random.Random, cache: Path | None, words: Sequence[str]) -> int:
    num_killed, before = 0, {} if cache is None else written_once(cache)
    while True:
        child = os.fork()
        if child == 0:
            status, printed = run_inline(*words)
            Path(os.devnull if status in (0, 3) else "/dev/stderr").write_text(printed)
            os._exit(status)
        time.sleep(rng.uniform(0, FIRST_S * GROWTH**num_killed))
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)[1]
        now = {} if cache is None else written_once(cache)
        again = [name for name, facts in before.items() if now.get(name) != facts]
        assert not again, f"written again: {again}"
        before = now
        if os.WIFEXITED(ended):
            assert os.WEXITSTATUS(ended) in (0, 3), f"it ended with {os.WEXITSTATUS(ended)}"
            return num_killed
        num_killed += 1


if __name__ == "__main__":
    import torch  # noqa: F401 - once, and not in each run

    import jobs.add_field
    import jobs.export
    import jobs.import_cache
    import jobs.precompute  # noqa: F401

    seed, cache, *words = sys.argv[1:]
    print(json.dumps(_killed(random.Random(int(seed)), Path(cache) if cache else None, words)))
