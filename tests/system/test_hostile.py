"""What is read is not trusted: no code runs from it, and no size in it is believed before it is checked."""

from __future__ import annotations

import ast
import contextlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from latentcache.config.yaml import parse_yaml
from latentcache.encoders.checkpoint import Checkpoint
from latentcache.encoders.diffusers import weights
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.errors import ConfigError, LatentCacheError
from tests.tools import hostile
from tests.tools.caches import ROOT

#: Cases that end with another error than that of bytes which no cache has: the caches could be sound.
OTHER_ERRORS = {
    "index_huge_counts": "CacheError",
    "index_path_up": "CacheError",
    "index_columns_up": "CacheError",
    "index_columns_that_are_not_there": "CacheError",
    "index_of_a_far_generation": "CacheError",
    "index_of_a_negative_generation": "CacheError",
    "index_of_another_cache": "CacheError",
}


@pytest.fixture(name="outcomes", scope="module")
def outcomes_fixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """How each case ended, read in a process with little memory that nothing may kill."""
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.tools.hostile", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return dict(line.split("\t", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", hostile.CASES)
def test_a_hostile_cache_is_refused_within_little_memory(
    outcomes: dict[str, str], name: str
) -> None:
    json_case = name.startswith("json_")
    expected = OTHER_ERRORS.get(name, "CacheError" if json_case else "CorruptionError")
    error, _, message = outcomes[name].partition(": ")
    assert error in (expected, "CorruptionError"), outcomes[name]
    assert "memory" not in message or "would take more than" in message


@pytest.mark.parametrize("name", hostile.RANDOM)
def test_random_changes_are_refused_or_read(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name].startswith("read "), outcomes[name]


# Code.


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"a": torch.ones(1), "b": bomb}])
def test_a_checkpoint_runs_no_code(tmp_path: Path, zipped: bool, wrap: Any) -> None:
    marker = tmp_path / "exploded"
    path = tmp_path / "model.pth"
    torch.save(wrap(Bomb(marker)), path, _use_new_zipfile_serialization=zipped)
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()  # it does explode where it is unpickled
    marker.unlink()
    checkpoint = Checkpoint(key="encoder.model", path=path)
    for read in (
        checkpoint.shapes,
        lambda: trainer_checkpoint.read(checkpoint),
        lambda: weights._read_tensor(path, "a"),
    ):
        with contextlib.suppress(LatentCacheError):
            read()
        assert not marker.exists()


def test_a_configuration_runs_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        parse_yaml(f"!!python/object/apply:os.mkdir ['{marker}']")
    assert not marker.exists()


#: What runs code from data: calls by name, and arguments by name and value.
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {("pickle", "load"), ("pickle", "loads"), ("yaml", "unsafe_load"), ("yaml", "full_load")}
ARGUMENTS = {("weights_only", False), ("trust_remote_code", True), ("allow_pickle", True)}


def test_nothing_that_runs_code_from_data_is_called() -> None:
    files = [p for folder in ("latentcache", "jobs") for p in (ROOT / folder).rglob("*.py")]
    calls = [
        (path, node)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]
    assert not [where(*call) for call in calls if is_dangerous(call[1])]
    loads = [node for _, node in calls if is_method(node, {("torch", "load")})]
    assert loads
    assert all(any(arg.arg == "weights_only" for arg in node.keywords) for node in loads)


def is_dangerous(node: ast.Call) -> bool:
    if isinstance(node.func, ast.Name) and node.func.id in CALLS:
        return True
    given = {(a.arg, a.value.value) for a in node.keywords if isinstance(a.value, ast.Constant)}
    return is_method(node, METHODS) or bool(given & ARGUMENTS)


def is_method(node: ast.Call, methods: set[tuple[str, str]]) -> bool:
    function = node.func
    if not (isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)):
        return False
    return (function.value.id, function.attr) in methods


def where(path: Path, node: ast.Call) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"
