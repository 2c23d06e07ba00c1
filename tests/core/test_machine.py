"""Versions and install commands: from one place each."""

from __future__ import annotations

import platform
import resource
import threading
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import latentcache
from latentcache.core import machine
from latentcache.format.manifest import CREATED_BY

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


def test_the_version_is_said_once() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    found = PROJECT["tool"]["setuptools"]["dynamic"]["version"]
    assert found == {"attr": "latentcache.__version__"}
    assert f"latentcache {latentcache.__version__}" == CREATED_BY
    assert machine.versions()["latentcache"] == latentcache.__version__


@pytest.mark.parametrize("extra", ["s3", "gcs", "diffusers", "report", "demo", "magvit2", "text"])
def test_an_extra_is_installed_by_its_packages(extra: str) -> None:
    command = machine.install_command(extra)
    for package in PROJECT["project"]["optional-dependencies"][extra]:
        assert package.split("=")[0].split(">")[0] in command
    assert "latentcache" not in command


def test_in_a_checkout_that_is_not_installed_it_is_the_checkouts_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine, "requires", refuse)
    assert machine.install_command("s3") == "pip install -e '.[s3]'"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_a_thread_has_freed_is_given_back() -> None:
    """glibc keeps it for the thread: the last block, which is in use, is above all others."""
    kept: list[object] = []

    def work() -> None:
        blocks = [b"1" * (100_000 + n) for n in range(1000)]
        kept.append(blocks[-1])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = resident_bytes()
    machine.trim_memory()
    assert resident_bytes() < before - 50_000_000


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
