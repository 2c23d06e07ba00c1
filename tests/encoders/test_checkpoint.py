from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latentcache.encoders.checkpoint import Checkpoint, locate
from latentcache.errors import ConfigError, EncoderError

CPU = torch.device("cpu")


def load(path: Path, model: nn.Module | None = None) -> nn.Module:
    return locate(str(path), "encoder.checkpoint").load_into(
        model or empty(), dtype=torch.float32, device=CPU, name="a layer"
    )


def empty() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(3, 2)


def tensors() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([7.0, 8.0])}


class Mark:
    """What an attacker would pickle: loading it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_tensors_are_read_from_every_form(tmp_path: Path, form: str) -> None:
    path = tmp_path / "file.anything"
    if form == "safetensors":
        save_file(tensors(), path)
    else:
        torch.save(tensors(), path, _use_new_zipfile_serialization=form == "zip")
    model = load(path)
    assert {name: value.tolist() for name, value in model.state_dict().items()} == {
        name: value.tolist() for name, value in tensors().items()
    }
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    shapes = Checkpoint(key="encoder.checkpoint", path=path).shapes()
    assert shapes == {"weight": (2, 3), "bias": (2,)}


def test_half_precision_files_are_loaded_in_the_configured_dtype(tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in tensors().items()}
    torch.save(halves, tmp_path / "halves.pth")
    assert {p.dtype for p in load(tmp_path / "halves.pth").parameters()} == {torch.float32}


def test_absent_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder.checkpoint: there is no file .*absent.pth"):
        locate(str(tmp_path / "absent.pth"), "encoder.checkpoint")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\n<!DOCTYPE html><html>blob</html>", "is a web page, saved .*Download the raw file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "pointer of Git LFS.*git lfs pull",
        ),
        (b"\x00\x01\x02 nothing known", "neither a PyTorch file nor safetensors"),
        (b"", "neither a PyTorch file nor safetensors"),
        (b"PK\x03\x04 cut short", "cannot be read .*damaged or cut short"),
        (b"\x80\x02 cut short", "cannot be read"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{ cut short", "cannot be read .*damaged or cut short"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"encoder.checkpoint: .*model.pth .*{told}"):
        load(path)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    path, folder = tmp_path / "model.pth", tmp_path / "made_by_the_pickle"
    if form == "torch":
        torch.save({"weight": Mark(folder)}, path)
    else:
        path.write_bytes(pickle.dumps(Mark(folder), protocol=2))
    with pytest.raises(ConfigError, match=r"can run any code\. Save only its state_dict"):
        load(path)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"state_dict": tensors(), "epoch": 3}, "holds epoch, state_dict beside floating-point"),
        ({**tensors(), "weight": torch.zeros(2, 3, dtype=torch.int8)}, "holds weight beside"),
        (torch.zeros(3), "holds a Tensor, not tensors by name"),
        ({}, "holds nothing beside"),
    ],
)
def test_what_is_not_tensors_by_name_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ConfigError, match=told):
        load(tmp_path / "model.pth")


def test_every_kind_of_misfit_is_told_at_once(tmp_path: Path) -> None:
    found = {f"layer{i}": torch.zeros(1) for i in range(5)} | {"weight": torch.zeros(3, 2)}
    torch.save(found, tmp_path / "model.pth")
    with pytest.raises(EncoderError) as caught:
        load(tmp_path / "model.pth")
    message = str(caught.value)
    assert (
        "it lacks bias; it has, and should not have, layer0, layer1, layer2 and 2 more" in message
    )
    assert "; it has in another shape weight ([3, 2], not [2, 3])" in message
