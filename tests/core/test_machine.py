"""Versions and install commands: from one place each."""

from __future__ import annotations

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
