"""Ray's workers run in the driver's environment, whatever has started the driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.caches import ROOT, make_config, make_corpus

#: The corpus has files that are no clips.
SOME_FAILED = 3
#: What Ray would give workers in place of the driver's interpreter.
ASK_RAY = "from ray._private.runtime_env.uv_runtime_env_hook import hook; print(hook({})['py_executable'])"


def under_uv_run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python below a process that Ray takes for `uv run`: it goes by the names of parents."""
    uv, script = folder / "uv", folder / "run"
    if not uv.exists():
        uv.symlink_to(sys.executable)
        script.write_text("import subprocess, sys\nsys.exit(subprocess.call(sys.argv[1:]))\n")
    return subprocess.run(
        [uv, "run", sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.long
def test_under_uv_run_workers_have_the_drivers_interpreter(tmp_path: Path) -> None:
    asked = under_uv_run(tmp_path, "-W", "ignore", "-c", ASK_RAY)
    assert asked.stdout.startswith(f"{tmp_path / 'uv'} run"), asked.stderr
    corpus = make_corpus(tmp_path / "corpus", 1)
    config = make_config(
        tmp_path, corpus, str(tmp_path / "cache"), run={"runner": "ray", "workers": 1}
    )
    done = under_uv_run(tmp_path, "-m", "jobs.precompute", config)
    assert done.returncode == SOME_FAILED, done.stdout + done.stderr
    assert "0 failed" in done.stdout
