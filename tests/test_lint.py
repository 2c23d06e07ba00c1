"""Style and types; and the import rules, each of which is broken once to see that it turns red."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lint import LINTERS, ROOT, run

pytestmark = pytest.mark.slow

RULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS = {contract["name"]: contract for contract in RULES["contracts"]}
PLANTED = "planted"


@pytest.mark.long
@pytest.mark.parametrize("name", LINTERS)
def test_linter_has_nothing_to_say(name: str) -> None:
    status, output = run(name)
    assert status == 0, output


def rooms(layer: str) -> list[str]:
    """The rooms of one layer: those that a bar parts are not to know each other."""
    return [room.strip() for room in layer.split("|")]


def forbidden_imports(contract: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every import that a contract forbids, as (room or module that imports, what it imports)."""
    if contract["type"] == "layers":
        above: list[str] = []
        for layer in map(rooms, contract["layers"]):
            for lower in layer:
                yield from ((lower, upper) for upper in [*above, *layer] if upper != lower)
            above += layer
    else:
        for source in contract["source_modules"]:
            yield from ((source, imported) for imported in contract["forbidden_modules"])


def rooms_below(module: str) -> list[str]:
    """A module, or of the whole package each of its rooms."""
    layers = next(c for c in CONTRACTS.values() if c["type"] == "layers")["layers"]
    inside = [r for layer in layers for r in rooms(layer) if r.startswith(f"{module}.")]
    return inside or [module]


def plants(contract: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (room, imported)
        for source, imported in forbidden_imports(contract)
        for room in rooms_below(source)
    ]


def planted_module(root: Path, module: str) -> str:
    """Where an import is planted: in a module of its own, if `module` is a package."""
    return f"{module}.{PLANTED}" if (root / module.replace(".", "/")).is_dir() else module


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What import-linter says of each contract, of a copy of the packages that breaks all of them."""
    root = tmp_path_factory.mktemp("packages")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in RULES["root_packages"]:
        shutil.copytree(
            ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for source, imported in {plant for each in CONTRACTS.values() for plant in plants(each)}:
        file = root / (planted_module(root, source).replace(".", "/") + ".py")
        with file.open("a") as text:
            text.write(f"import {imported}\n")
    command = [str(LINTERS["imports"][0]), "--no-cache"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    names = "|".join(map(re.escape, CONTRACTS))
    _, *parts = re.split(rf"^({names})\n-+$", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_import_that_a_contract_forbids_turns_it_red(
    name: str, broken: dict[str, str]
) -> None:
    said = re.sub(r"\s+", " ", broken[name])
    missed = [
        (module, imported)
        for module, imported in plants(CONTRACTS[name])
        if f"{planted_module(ROOT, module)} -> {imported} (l." not in said
    ]
    assert not missed


def test_every_package_and_module_is_in_a_room() -> None:
    """One that the layers do not name could import anything."""
    layers = next(c for c in CONTRACTS.values() if c["type"] == "layers")["layers"]
    found = {path.parent.name for path in (ROOT / "latentcache").glob("*/__init__.py")}
    found |= {path.stem for path in (ROOT / "latentcache").glob("*.py")} - {"__init__"}
    named = {room.removeprefix("latentcache.") for layer in layers for room in rooms(layer)}
    assert found | {"jobs"} == named


@pytest.mark.parametrize("package", ["ray", "fsspec", "decord", "zarr", "diffusers"])
def test_a_package_with_one_home_is_forbidden_in_every_room(package: str) -> None:
    forbidden = {plant for contract in CONTRACTS.values() for plant in plants(contract)}
    assert {(room, package) for room in rooms_below("latentcache")} <= forbidden
