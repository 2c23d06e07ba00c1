"""Encoders outside the project; the contract suite has the page's example as a case."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentcache.encoders import resolve
from latentcache.errors import ConfigError
from tests.contracts.encoder_cases_plugin import example


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the page's example where it can be imported, under a name of this test's own."""
    name = f"package_{abs(hash(tmp_path))}"
    (tmp_path / name).mkdir()
    code = example() + (
        "\n\ndef build_coarse(config, *, spec, device):\n"
        "    encoder = build(config, spec=spec, device=device)\n"
        "    encoder.levels = 1\n"
        "    return encoder\n"
        "\n\nclass Other:\n"
        "    Config, describe, identity, build = Config, describe, identity, build\n"
        "    describe = staticmethod(describe)\n"
        "\n\nother = Other()\nnumber = 3\n"
    )
    (tmp_path / name / "grey.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{name}.grey"


def encode(kind: str) -> torch.Tensor:
    module, config = resolve({"kind": kind, "levels": 8})
    spec = module.describe(config, dtype="bfloat16")
    encoder = module.build(config, spec=spec, device=torch.device("cpu"))
    pixels = torch.full((1, 1, 8, 16, 3), 200, dtype=torch.uint8)
    pixels[:, :, :, :8] = 10
    return encoder.encode(pixels)


def test_the_example_has_thirty_lines_or_a_few_more() -> None:
    lines = [line for line in example().splitlines() if line.strip()]
    assert 25 <= len(lines) <= 35


def test_a_module_and_its_own_build_are_the_same(package: str) -> None:
    expected = torch.tensor([[[[0, 6]]]])
    assert torch.equal(encode(package), expected)
    assert torch.equal(encode(f"{package}:build"), expected)


def test_a_function_takes_the_place_of_build(package: str) -> None:
    assert torch.equal(encode(f"{package}:build_coarse"), torch.tensor([[[[0, 0]]]]))


def test_an_object_of_a_module_is_an_encoder(package: str) -> None:
    assert torch.equal(encode(f"{package}:other"), torch.tensor([[[[0, 6]]]]))


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("buidl", r"has no 'buidl'\. Did you mean 'build'\?"),
        ("number", r"'number' of the module .* is not an encoder: it exposes no Config, describe"),
        ("", "has no ''"),
    ],
)
def test_what_a_module_does_not_hold_is_told(package: str, attribute: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve({"kind": f"{package}:{attribute}", "levels": 8})


@pytest.mark.parametrize("kind", ["dct:build", ":build", ".grey", "..grey:build"])
def test_what_is_no_module_is_told(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.kind: "):
        resolve({"kind": kind})
