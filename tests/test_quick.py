"""The quick tests: every room has some, and what is slow is not among them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import starts_refused
from tests.tools.doc_blocks import ROOT


def rooms() -> set[str]:
    """The packages of latentcache, and the jobs."""
    found = {path.parent.name for path in (ROOT / "latentcache").glob("*/__init__.py")}
    return found | {"jobs"}


def quick_files() -> list[str]:
    """The files of the quick tests."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "quick"]
    command += ["-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("tests/")]


@pytest.mark.long
@pytest.mark.slow
def test_every_room_has_quick_tests_and_whole_systems_have_none() -> None:
    folders = {file.split("/")[1] for file in quick_files()}
    assert rooms() <= folders
    assert not {"system", "tools"} & folders


def listen() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        lambda: os.fork() or os._exit(0),
        lambda: multiprocessing.get_context("fork").Process(target=int).start(),
        lambda: multiprocessing.get_context("spawn").Process(target=int).start(),
        listen,
    ],
    ids=["subprocess", "fork", "forked process", "spawned process", "server"],
)
def test_a_quick_test_that_starts_something_fails(start: Callable[[], object]) -> None:
    with starts_refused(), pytest.raises(pytest.fail.Exception, match="mark it slow"):
        start()
