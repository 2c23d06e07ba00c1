"""A lint of the Dockerfile that needs no docker: it is parsed, and held against the checkout."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.tools.doc_blocks import ROOT

KNOWN = {
    *("FROM", "ARG", "ENV", "LABEL", "RUN", "COPY", "ADD", "WORKDIR", "USER", "EXPOSE", "VOLUME"),
    *("CMD", "ENTRYPOINT", "HEALTHCHECK", "SHELL", "STOPSIGNAL"),
}
#: A tag that names a minor version at least, or a digest.
PINNED = re.compile(r"^\S+(:\d+\.\d+\S*|@sha256:[0-9a-f]{64})$")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword as written, and the rest of its line with continuations joined."""

    keyword: str
    rest: str


def instructions(text: str) -> Iterator[Instruction]:
    """The instructions of a Dockerfile, without comments and blank lines."""
    lines = [
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        keyword, _, rest = line.strip().partition(" ")
        yield Instruction(keyword, rest.strip())


def problems(text: str, root: Path = ROOT) -> list[str]:
    """What is wrong with a Dockerfile that builds an image from a checkout; empty where nothing is."""
    found = list(instructions(text))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return [
        *(f"unknown instruction {each.keyword}" for each in found if each.keyword not in KNOWN),
        *_base_problems(found),
        *_copy_problems(found, root),
        *_install_problems(found, project),
        *_user_problems(found),
        *_command_problems(found),
    ]


def _base_problems(found: list[Instruction]) -> Iterator[str]:
    bases = [each.rest.split()[0] for each in found if each.keyword == "FROM"]
    if not bases or next(each.keyword for each in found if each.keyword != "ARG") != "FROM":
        yield "it does not start with FROM"
    yield from (f"the base image {base} is not pinned" for base in bases if not PINNED.match(base))


def _sources(instruction: Instruction) -> list[str]:
    """What a COPY or ADD takes from the checkout."""
    words = [word for word in shlex.split(instruction.rest) if not word.startswith("--")]
    return words[:-1]


def _copied(found: list[Instruction]) -> list[str]:
    return [
        source
        for each in found
        if each.keyword in ("COPY", "ADD") and "--from=" not in each.rest
        for source in _sources(each)
    ]


def _copy_problems(found: list[Instruction], root: Path) -> Iterator[str]:
    for source in _copied(found):
        if not list(root.glob(source)):
            yield f"there is no {source} to copy"


def _install_problems(found: list[Instruction], project: dict[str, Any]) -> Iterator[str]:
    """The checkout is installed, with extras that exist, once all that its build reads is there."""
    known = project["project"]["optional-dependencies"].keys()
    installs = [i for i, each in enumerate(found) if _checkout_extras(each) is not None]
    if not installs:
        yield "pip does not install the checkout"
        return
    extras = _checkout_extras(found[installs[0]]) or set()
    yield from (f"there is no extra {extra}" for extra in sorted(extras - known))
    copied = {source.rstrip("/") for source in _copied(found[: installs[0]])}
    folders = project["tool"]["setuptools"]["package-dir"].values()
    for needed in ("pyproject.toml", project["project"]["readme"], *folders):
        if needed not in copied:
            yield f"{needed} is not copied before the install"
    for each in found:
        if re.search(r"pip3? install.*\blatentcache\b", each.rest):
            yield "pip installs latentcache by its name and not from the checkout"


def _checkout_extras(instruction: Instruction) -> set[str] | None:
    """The extras that a RUN installs the checkout with; None where it does not install it."""
    if instruction.keyword != "RUN" or "pip install" not in instruction.rest:
        return None
    for word in shlex.split(instruction.rest):
        if match := re.fullmatch(r"\.(?:\[([\w,-]+)\])?", word):
            return set(filter(None, (match[1] or "").split(",")))
    return None


def _user_problems(found: list[Instruction]) -> Iterator[str]:
    users = [each.rest for each in found if each.keyword == "USER"]
    if not users or users[-1].partition(":")[0] in ("root", "0"):
        yield "it runs as root"


def _command_problems(found: list[Instruction]) -> Iterator[str]:
    """A command in the shell form runs below a shell, which does not pass signals on."""
    for each in found:
        if each.keyword in ("CMD", "ENTRYPOINT"):
            try:
                json.loads(each.rest)
            except json.JSONDecodeError:
                yield f"{each.keyword} is not a JSON list"


def test_the_dockerfile_has_no_problems() -> None:
    assert problems(DOCKERFILE) == []


def test_the_base_image_has_a_python_that_the_project_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = re.fullmatch(r">=3\.(\d+)", project["requires-python"])
    base = re.search(r"^FROM python:3\.(\d+)-slim", DOCKERFILE, re.MULTILINE)
    assert lowest is not None
    assert base is not None
    assert int(base[1]) >= int(lowest[1])


def test_the_cluster_page_builds_the_image_that_it_runs() -> None:
    page = (ROOT / "docs" / "ray-cluster.md").read_text(encoding="utf-8")
    built = set(re.findall(r"docker build .*-t (\S+) \.", page))
    assert built == set(re.findall(r"image: (\S+)", page))
    assert built == set(re.findall(r"docker build .*-t (\S+) \.", DOCKERFILE))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("USER ray", "USR ray", "unknown instruction USR"),
        ("FROM python:3.11-slim-bookworm", "FROM python", "base image python is not pinned"),
        ("python:3.11-slim-bookworm", "python:latest", "base image python:latest is not pinned"),
        ("FROM", "RUN true\nFROM", "it does not start with FROM"),
        ("COPY configs configs/", "COPY confgs configs/", "there is no confgs to copy"),
        ("COPY jobs jobs/\n", "", "jobs is not copied before the install"),
        ("README.md ", "", "README.md is not copied before the install"),
        ("s3,diffusers", "s4,diffusers", "there is no extra s4"),
        ("'.[s3,diffusers]'", "'latentcache[s3]'", "pip does not install the checkout"),
        ("'ray[default]'", "latentcache", "by its name"),
        ("USER ray", "USER root", "it runs as root"),
        ("USER ray\n", "", "it runs as root"),
        ('CMD ["latentcache", "--help"]', "CMD latentcache --help", "CMD is not a JSON list"),
    ],
)
def test_a_problem_is_found(old: str, new: str, problem: str) -> None:
    assert old in DOCKERFILE
    found = problems(DOCKERFILE.replace(old, new))
    assert any(problem in each for each in found), found
