"""A read that hangs is named, and one Ctrl-C ends it: in a loader's threads, in a DataLoader's workers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from latentcache.core import threads
from latentcache.reading.loader import prefetch
from latentcache.reading.loader.prefetch import Waiting, read_ahead
from tests.tools.caches import ROOT
from tests.tools.synthetic import write_cache

PATIENCE_S = 60


class Hung:
    """A part that is read until it is let go."""

    num_bytes = 1

    def __init__(self) -> None:
        self.gate, self.begun = threading.Event(), threading.Event()

    def parts(self) -> Sequence[Callable[[], None]]:
        return [self]

    def __call__(self) -> None:
        self.begun.set()
        self.gate.wait(PATIENCE_S)

    def __str__(self) -> str:
        return "shard 7 of bucket 5x32x32 (s3://somewhere/c/7)"

    def finish(self) -> str:
        return "read"


def test_a_hung_read_is_named_while_the_batch_is_awaited(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prefetch, "SLOW_S", 0.05)
    hung = Hung()

    def let_go(record: logging.LogRecord) -> bool:
        hung.gate.set()
        return True

    caplog.handler.addFilter(let_go)
    batches = read_ahead(iter([hung]), num_threads=2, max_bytes=1, waiting=Waiting())
    assert list(batches) == ["read"]
    caplog.handler.removeFilter(let_go)
    (message,) = {record.getMessage() for record in caplog.records}
    assert message.startswith(f"reading {hung} has taken")


def test_letting_go_waits_for_no_read_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CLOSE_S", 0.05)
    monkeypatch.setattr(threads.DaemonPool.close, "__defaults__", (0.05,))
    hung, fine = Hung(), Hung()
    fine.gate.set()
    batches = read_ahead(iter([fine, hung]), num_threads=2, max_bytes=10, waiting=Waiting())
    assert next(batches) == "read"
    assert hung.begun.wait(PATIENCE_S)
    batches.close()  # type: ignore[attr-defined]
    assert not hung.gate.is_set()
    hung.gate.set()


#: Reads a cache whose third shard is on a disk that does not answer: to open it takes for ever.
READER = """
import os, sys, threading
opened = os.open
def open_or_hang(path, *args, **kwargs):
    if str(path) == sys.argv[3]:
        threading.Event().wait()
    return opened(path, *args, **kwargs)
os.open = open_or_hang
from latentcache.reading.loader import prefetch
from latentcache.reading.loader.loader import LatentLoader
prefetch.SLOW_S = 0.2
loader = LatentLoader(sys.argv[1], batch_size=1, num_threads=2, shuffle=False)
if int(sys.argv[2]):
    from torch.utils.data import DataLoader
    loader = DataLoader(loader, batch_size=None, num_workers=int(sys.argv[2]))
for batch in loader:
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_one_interrupt_ends_a_trainer_whose_read_hangs(tmp_path: Path, num_workers: int) -> None:
    written = write_cache(str(tmp_path / "cache"), buckets={"5x32x32": 12}, shard_clips=4)
    found = (tmp_path / "cache" / "latents").glob("*/c/2/**/*")
    (path,) = (each for each in found if each.is_file())
    process = subprocess.Popen(
        [sys.executable, "-c", READER, written.url, str(num_workers), str(path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a terminal sends Ctrl-C to all processes of a group
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "has taken" in line:
            break
    assert "reading shard 2 of bucket 5x32x32" in line
    assert str(path) in line
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err
