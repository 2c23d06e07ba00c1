"""What is no checkpoint of an encoder is one message, for every kind that reads a file of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from latentcache.encoders import resolve
from latentcache.encoders.checkpoint import locate
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.errors import ConfigError, EncoderError
from tests.contracts.encoder_cases import Case, all_cases

KINDS = (
    *("cosmos_tokenizer", "ivvae", "llamagen", "magvit2", "open_magvit2", "taehv"),
    *("taesd", "var", "videogpt", "vqgan"),
)
CPU = torch.device("cpu")


def first_case(kind: str) -> Case:
    return next(case for case in all_cases() if case.kind == kind)


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """Return copies of a file's tensors: it is about to be replaced, and torch may have mapped it."""
    if path.suffix == ".jit":  # TorchScript, whose tensors have no part in what follows
        return {"weight": torch.ones(2, 3)}
    if path.suffix == ".safetensors":
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    found = trainer_checkpoint.read(locate(str(path), "encoder.checkpoint"), keys=["model"])
    return {name: tensor.clone() for name, tensor in found.tensors.items()}


def bare(path: Path) -> None:
    torch.save({"encoder.weight": torch.ones(3, 2), "codebook.weight": torch.ones(8, 2)}, path)


def flat(path: Path) -> None:
    torch.save({name: tensor.flatten()[:1].clone() for name, tensor in loaded(path).items()}, path)


def small(path: Path) -> None:
    torch.save({name: torch.ones([3] * t.ndim) for name, t in loaded(path).items()}, path)


def hollow(path: Path) -> None:
    torch.save({name: torch.ones([0] * t.ndim) for name, t in loaded(path).items()}, path)


def some(path: Path) -> None:
    """Keep the tensors at both ends, without the levels between, and without the last one."""
    kept = {name: t for name, t in loaded(path).items() if ".down." not in name}
    torch.save(dict([*kept.items()][:-1]), path)


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def rewritten(data: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        if isinstance(data, bytes):
            path.write_bytes(data)
        else:
            torch.save(data, path)

    return write


SPOILT: dict[str, Callable[[Path], None]] = {
    "empty": rewritten(b""),
    "text": rewritten(b"not a checkpoint at all"),
    "page": rewritten(b"<!DOCTYPE html><html>404</html>"),
    "zip": rewritten(b"PK\x03\x04" + b"\0" * 600),
    "list": rewritten([torch.ones(1)]),
    "nested list": rewritten({"state_dict": [torch.ones(1)]}),
    "numbers as names": rewritten({0: torch.ones(1), 1: torch.ones(1)}),
    "no tensors": rewritten({"state_dict": {}}),
    "bare": bare,
    "flat": flat,
    "small": small,
    "hollow": hollow,
    "some": some,
    "truncated": truncated,
}
NO_TENSORS = [*SPOILT][1 : [*SPOILT].index("bare")]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Write each kind's own checkpoint once; returns its section of the configuration."""
    made: dict[str, dict[str, Any]] = {}

    def write(kind: str) -> dict[str, Any]:
        if kind not in made:
            made[kind] = dict(first_case(kind).raw(tmp_path_factory.mktemp(kind)))
        return made[kind]

    return write


def checkpoint_of(raw: dict[str, Any]) -> Path:
    if raw["kind"] == "cosmos_tokenizer":
        return Path(raw["model"]) / "encoder.jit"
    return Path(raw["encoder"] if raw["kind"] == "taesd" else raw["checkpoint"])


@contextlib.contextmanager
def spoilt(path: Path, how: str) -> Any:
    whole = path.read_bytes()
    try:
        SPOILT[how](path)
        yield
    finally:
        path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        # What is no checkpoint at all is found by what all kinds share, so one kind shows it.
        pytest.param(kind, how, marks=[pytest.mark.long] if shared and kind != "vqgan" else [])
        for kind in KINDS
        for how, shared in ((how, how in NO_TENSORS) for how in SPOILT)
    ],
)
def test_it_is_one_message(written: Callable[[str], dict[str, Any]], kind: str, how: str) -> None:
    raw = written(kind)
    module, config = resolve(raw)
    good = module.describe(config, dtype="float32")
    path = checkpoint_of(raw)
    with spoilt(path, how):
        steps: list[Callable[[], object]] = [
            lambda: module.identity(config),
            lambda: module.describe(config, dtype="float32"),
            lambda: module.build(config, spec=same_file(good, path), device=CPU),
        ]
        refused = []
        for step in steps:
            try:
                step()
            except (ConfigError, EncoderError) as error:
                refused.append(str(error))
    assert refused
    assert all("encoder." in message for message in refused)


def same_file(spec: Any, path: Path) -> Any:
    """Return the spec of a cache that was planned with this very file, so that `build` reads it."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return dataclasses.replace(spec, weights_sha256=digest)


@pytest.mark.slow
def test_a_bare_state_dict_of_another_model_is_told_what_was_expected(
    written: Callable[[str], dict[str, Any]],
) -> None:
    raw = written("vqgan")
    module, config = resolve(raw)
    with (
        spoilt(checkpoint_of(raw), "some"),
        pytest.raises(EncoderError, match=r"holds no tensor 'encoder\.down\.0\.block\.0\.conv1"),
    ):
        module.describe(config, dtype="float32")
