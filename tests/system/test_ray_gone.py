"""Ray's own processes are killed under a run: it ends with a message, and resume completes the cache."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from latentcache.inspecting.verify import verify
from latentcache.storage.folder import Storage
from tests.tools.caches import make_config, make_corpus, run_inline, start_job
from tests.tools.encoders import slow

pytestmark = [pytest.mark.slow, pytest.mark.long]
SOME_FAILED, OTHER = 3, 1
PATIENCE_S = 120


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_run_whose_ray_is_gone_ends_with_a_message(tmp_path: Path, name: str) -> None:
    corpus, cache = make_corpus(tmp_path / "corpus", 3), tmp_path / "cache"
    encoder = {"kind": "tests.tools.encoders.slow"}
    config = make_config(
        tmp_path, corpus, str(cache), encoder=encoder, run={"runner": "ray"}, quality={"every": 0}
    )
    process = start_job("precompute", config, env={slow.ENCODE_S: "2"})
    while not list(cache.glob("latents/*/c/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    (gone,) = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if Path((child.cmdline() or [""])[0]).name == name
    ]
    gone.kill()
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == OTHER, out + err
    assert "MachineError: Ray's " in err
    assert "Traceback" not in err
    status, printed = run_inline("resume", cache, "run.runner=local")
    assert status == SOME_FAILED, printed
    assert not verify(Storage(str(cache))).problems
