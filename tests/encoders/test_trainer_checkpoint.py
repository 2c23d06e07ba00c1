from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latentcache.encoders.checkpoint import locate
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.errors import EncoderError
from tests.tools.discrete_models import Callback, save_videogpt


def read(path: Path, contents: Any, **options: Any) -> trainer_checkpoint.TrainerCheckpoint:
    torch.save(contents, path)
    return trainer_checkpoint.read(locate(str(path), "encoder.checkpoint"), **options)


class Runs:
    """Unpickled, this would run a command."""

    def __init__(self, command: Callable[..., object], *arguments: Any) -> None:
        self.command, self.arguments = command, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.command, self.arguments


def test_classes_of_the_trainer_are_not_needed_and_not_run(tmp_path: Path) -> None:
    save_videogpt(tmp_path)
    with pytest.raises(AssertionError, match="was run"):
        torch.load(tmp_path / "ucf101.ckpt", weights_only=False)
    file = locate(str(tmp_path / "ucf101.ckpt"), "encoder.checkpoint")
    loaded = trainer_checkpoint.read(file)
    assert loaded.settings["downsample"] == [4, 4, 4]
    assert loaded.settings["n_codes"] == 64
    assert loaded.shape("codebook.embeddings", 2) == (64, 8)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", None])
def test_tensors_are_found_where_trainers_keep_them(tmp_path: Path, key: str | None) -> None:
    tensors = {"a.0.weight": torch.ones(2, 3), "a.1.weight": torch.ones(4), "b": torch.ones(1)}
    loaded = read(tmp_path / "x.ckpt", {key: tensors, "step": 3} if key else tensors)
    assert loaded.tensors.keys() == tensors.keys()
    assert loaded.count("a.{}.") == 2
    assert loaded.select("a.").tensors.keys() == {"a.0.weight", "a.1.weight"}
    assert loaded.shape("a.0.weight", 2) == (2, 3)
    with pytest.raises(EncoderError, match=r"x\.ckpt holds no tensor 'c'.* such as a\.0\.weight"):
        loaded.shape("c", 2)


def test_shapes_are_read_without_the_values(tmp_path: Path) -> None:
    loaded = read(tmp_path / "x.ckpt", {"state_dict": {"a": torch.ones(5)}}, only_shapes=True)
    assert loaded.tensors["a"].is_meta
    assert loaded.shape("a", 1) == (5,)


def test_functions_that_a_file_names_are_not_called(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    contents = {"state_dict": {"a": torch.ones(1)}, "callbacks": Runs(shutil.rmtree, str(victim))}
    loaded = read(tmp_path / "x.ckpt", contents)
    assert loaded.tensors.keys() == {"a"}
    assert victim.exists()


@pytest.mark.parametrize("command", [os.system, eval])
def test_a_file_that_calls_dangerous_functions_never_runs_them(
    tmp_path: Path, command: Callable[..., object]
) -> None:
    marker = tmp_path / "marker"
    text = f"open({str(marker)!r}, 'w')" if command is eval else f"touch {marker}"
    with contextlib.suppress(EncoderError):  # refused, or read without running it
        read(tmp_path / "x.ckpt", {"state_dict": {}, "callbacks": Runs(command, text)})
    assert not marker.exists()


def test_a_refusal_says_what_was_refused_and_not_to_load_it_unsafely(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"posix is blocked.* save its state dict again") as told:
        read(tmp_path / "x.ckpt", {"callbacks": Runs(os.system, "true")})
    assert "weights_only" not in str(told.value)


def test_a_list_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="it holds a list, not tensors by name"):
        read(tmp_path / "x.ckpt", [torch.ones(1)])


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", b"PK\x03\x04 and no more"])
def test_what_is_no_checkpoint_is_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(data)
    with pytest.raises(EncoderError, match=r"x\.ckpt cannot be read as plain weights"):
        trainer_checkpoint.read(locate(str(path), "encoder.checkpoint"))


def test_loading_takes_every_tensor_and_no_other(tmp_path: Path) -> None:
    state = {"weight": torch.ones(2, 3, dtype=torch.float16), "bias": torch.ones(2)}
    with torch.device("meta"):
        module = nn.Linear(3, 2)
    trainer_checkpoint.load_into(module, read(tmp_path / "x.ckpt", state))
    assert module.weight.dtype == torch.float32
    assert not module.training
    assert not module.weight.requires_grad
    for wrong in ({"weight": torch.ones(2, 3)}, {**state, "more": torch.ones(1)}):
        with pytest.raises(EncoderError, match=r"bias|more"):
            trainer_checkpoint.load_into(module, read(tmp_path / "y.ckpt", wrong))


def test_a_class_used_as_a_key_and_its_instances_load(tmp_path: Path) -> None:
    contents = {"state_dict": {"a": torch.ones(1)}, "callbacks": {Callback: Callback()}}
    assert read(tmp_path / "x.ckpt", contents).tensors["a"] == 1
