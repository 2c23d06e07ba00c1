"""What a text encoder says of itself, and what its bits depend on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentcache.encoders.text import FAMILIES, build_text_encoder, describe_text_encoder
from tests.tools.texts.references import CASES

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def raw(name: str, model: Path, **changes: Any) -> dict[str, Any]:
    return {**CASES[name].raw, "model": str(model), "dtype": "float32", **changes}


@pytest.mark.parametrize("name", CASES)
def test_a_description_is_that_of_the_built_encoder(made: Callable[[str], Path], name: str) -> None:
    settings = raw(name, made(name))
    described, built = describe_text_encoder(settings), build_text_encoder(settings, CPU)
    assert described == (built.arrays, built.recipe())
    assert json.loads(json.dumps(described.recipe)) == described.recipe


def test_a_recipe_holds_no_place(made: Callable[[str], Path], tmp_path: Path) -> None:
    model = made("flux")
    moved = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    recipe = describe_text_encoder(raw("flux", model)).recipe
    assert describe_text_encoder(raw("flux", moved)).recipe == recipe
    by_part = {part.name: str(part) for part in model.iterdir() if part.is_dir()}
    folders = {"family": "flux", "dtype": "float32", "folders": by_part}
    assert describe_text_encoder(folders).recipe == recipe
    assert str(model) not in json.dumps(recipe)


def test_every_file_is_part_of_the_recipe(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Weights, config and tokenizer files of each part: one changed byte changes the recipe."""
    model = Path(shutil.copytree(made("ltx2"), tmp_path / "model"))
    seen = [describe_text_encoder(raw("ltx2", model)).recipe]
    for path in sorted(model.glob("*/*")):
        if path.parent.name == "connectors" or path.name == "generation_config.json":
            continue
        if path.suffix == ".safetensors":
            _add_one(path)
        elif path.name == "config.json":
            path.write_text(json.dumps({**json.loads(path.read_text()), "a_note": "new"}))
        else:
            path.write_text(path.read_text() + "\n")
        seen.append(describe_text_encoder(raw("ltx2", model)).recipe)
    _add_one(model / "connectors/diffusion_pytorch_model.safetensors", "text_proj_in.weight")
    seen.append(describe_text_encoder(raw("ltx2", model)).recipe)
    assert len(seen) > 5
    assert all(recipe not in seen[:i] for i, recipe in enumerate(seen))


def _add_one(path: Path, name: str | None = None) -> None:
    tensors = load_file(path)
    tensors[name or min(tensors)] += 1
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_text_gives_the_same_bits_whatever_went_before(made: Callable[[str], Path]) -> None:
    encoder = build_text_encoder(raw("hunyuan_video", made("hunyuan_video")), CPU)
    first = encoder.encode("a red fox")
    encoder.encode("x" * 5000)
    again = encoder.encode("a red fox")
    assert all(torch.equal(first.arrays[name], again.arrays[name]) for name in encoder.arrays)


@pytest.mark.parametrize("name", CASES)
def test_lost_tokens_are_counted(made: Callable[[str], Path], name: str) -> None:
    """No token is lost or counted twice: what is kept and what is lost is one per word."""
    encoder: Any = build_text_encoder(raw(name, made(name)), CPU)
    few, many = 3, 5000
    short, long = (encoder.encode("dogs " * (count - 1) + "dogs") for count in (few, many))
    first = next(iter(encoder.arrays.values()))
    assert short.lost_tokens == 0
    assert long.lost_tokens > 0
    a_word, rest = divmod(long.tokens + long.lost_tokens - short.tokens, many - few)
    assert (a_word >= 1, rest) == (True, 0)
    if first.ragged:
        states = next(iter(short.arrays.values()))
        assert len(states) == short.tokens < first.shape[0]


def test_weights_in_several_files_and_variants_are_read(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(made("wan"), tmp_path / "model"))
    expected = build_text_encoder(raw("wan", model), CPU).encode("two dogs").arrays["states"]
    whole = model / "text_encoder/model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    half = len(tensors) // 2
    names = list(tensors)
    files = {"model-1.fp16.safetensors": names[:half], "model-2.fp16.safetensors": names[half:]}
    for file, keys in files.items():
        part = {key: tensors[key] for key in keys}
        save_file(part, model / "text_encoder" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: f for f, keys in files.items() for key in keys}}
    (model / "text_encoder/model.safetensors.index.fp16.json").write_text(json.dumps(index))
    settings = raw("wan", model, variant="fp16")
    assert torch.equal(
        build_text_encoder(settings, CPU).encode("two dogs").arrays["states"], expected
    )


def test_transformers_is_imported_only_when_a_model_is() -> None:
    code = (
        "import sys; from latentcache.encoders import text, towers; "
        "from latentcache.encoders.text.registry import FAMILIES, family_module; "
        "[family_module(family) for family in FAMILIES]; "
        "assert not {'transformers', 'diffusers', 'ftfy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_every_family_names_its_source() -> None:
    from latentcache.encoders.text.registry import family_module

    assert all(family_module(family).Encoder.source for family in FAMILIES)
