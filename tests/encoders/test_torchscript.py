"""TorchScript is a program: it runs only where the configuration says so, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from latentcache.encoders import resolve
from latentcache.encoders.checkpoint import Checkpoint
from latentcache.encoders.diffusers import weights
from latentcache.encoders.tokenizers import trainer_checkpoint
from latentcache.errors import ConfigError, EncoderError
from tests.tools.discrete_models import save_cosmos

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*TorchScript archive.*:UserWarning"),
]
CPU = torch.device("cpu")


@pytest.fixture
def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> NoReturn:
        pytest.fail("a program was loaded")

    monkeypatch.setattr(torch.jit, "load", load)


def test_cosmos_is_not_run_unless_the_configuration_says_so(
    tmp_path: Path, never_run: None
) -> None:
    raw = save_cosmos(tmp_path)
    module, trusted = resolve(raw)
    spec = module.describe(trusted, dtype="bfloat16")
    for untrusted in ({**raw, "trust_torchscript": False}, without_trust(raw)):
        _, config = resolve(untrusted)
        with pytest.raises(ConfigError, match=r"Nothing was run.*trust_torchscript=true"):
            module.describe(config, dtype="bfloat16")
        with pytest.raises(ConfigError, match=r"Nothing was run.*trust_torchscript=true"):
            module.build(config, spec=spec, device=CPU)
        assert module.identity(config) == module.identity(trusted)


def without_trust(raw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key != "trust_torchscript"}


READERS: dict[str, Callable[[Path], object]] = {
    "tensors": lambda path: Checkpoint(key="encoder.checkpoint", path=path).shapes(),
    "trainer": lambda path: trainer_checkpoint.read(Checkpoint(key="encoder.model", path=path)),
    "diffusers": lambda path: weights._read_tensor(path, "weight"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_program_in_the_place_of_weights_is_refused(
    tmp_path: Path, reader: str, never_run: None
) -> None:
    path = tmp_path / "model.pth"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises((ConfigError, EncoderError), match="is TorchScript, which is a program"):
        READERS[reader](path)
