"""Quick tests: all but those marked slow or long and those of whole systems. They start nothing."""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from tests.tools.encoders.hashed_text import COUNTED

#: No test asserts a time, so a slow machine fails none.
settings.register_profile("latentcache", deadline=None)
settings.load_profile("latentcache")

#: Each of several test processes computes in one thread: more threads than cores wait for one another, and
#: three times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

#: Decoding processes do not look for modules in the folder that they start in, and tests bring their own.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)

WHOLE_SYSTEMS = Path(__file__).parent / "system"
SLOW_MODULE = re.compile(r"^pytestmark = .*pytest\.mark\.(slow|long)\b", re.MULTILINE)
#: Fixtures that are servers: a test that has one, or another fixture that has, is slow.
SERVERS = {"s3_server"}
#: What begins another process or a server, as (owner, name).
STARTS = [
    (subprocess.Popen, "__init__"),
    (multiprocessing.process.BaseProcess, "start"),
    (os, "fork"),
    (socket.socket, "listen"),
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every",
        type=int,
        default=1,
        help="long tests of storage that fails try one in this many of the places where a fault can strike",
    )


@pytest.fixture(scope="session")
def every(request: pytest.FixtureRequest) -> int:
    """One in how many places is tried."""
    return int(request.config.getoption("--every"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what has no quick test where only those are asked for: imports take most of the time."""
    is_asked = config.option.markexpr == "quick" and collection_path.suffix == ".py"
    return True if is_asked and is_slow_module(collection_path) else None


def is_slow_module(path: Path) -> bool:
    """Return whether no test of a module is quick."""
    return WHOLE_SYSTEMS in path.parents or bool(SLOW_MODULE.search(path.read_text()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_quick(item):
            item.add_marker(pytest.mark.quick)


def is_quick(item: pytest.Item) -> bool:
    marked = item.get_closest_marker("slow") or item.get_closest_marker("long")
    served = SERVERS & set(getattr(item, "fixturenames", ()))
    return not (marked or served or WHOLE_SYSTEMS in item.path.parents)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with starts_refused() if item.get_closest_marker("quick") else contextlib.nullcontext():
        return (yield)


@contextlib.contextmanager
def starts_refused() -> Iterator[None]:
    """Fail what starts a process or a server within, in a test or in its fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STARTS:
            patch.setattr(owner, name, refuse)
        yield


def refuse(*_: object, **__: object) -> NoReturn:
    pytest.fail("This test starts a process or a server, so it is not quick: mark it slow.")


@pytest.fixture(scope="module")
def kept_pools() -> Iterator[None]:
    """Let the runs of a module in this process hand on their decoding processes."""
    from tests.tools import kept_pools as tools

    with tools.kept_pools():
        yield


@pytest.fixture(name="counted")
def counted_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that has a line per text that was encoded."""
    path = tmp_path / "texts"
    monkeypatch.setenv(COUNTED, str(path))
    return path
