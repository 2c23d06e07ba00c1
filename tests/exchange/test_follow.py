"""The example data sets give, straight from a cache, what each trainer reads of an export."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import latentcache
from latentcache.errors import ConfigError
from tests.exchange import test_fastvideo, test_finetrainers, test_musubi, test_simpletuner
from tests.exchange.conftest import LENGTH
from tests.tools.caches import ROOT
from tests.tools.encoders.hashed_text import states
from tests.tools.exchange import NAMES, export


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clips_of(data: Any, cache: latentcache.Cache) -> dict[str, Any]:
    assert len(data) == len(cache)
    return {key: data[n] for n, key in enumerate(cache.keys())}


def test_musubi_s_data_set(wan: latentcache.Cache, tmp_path: Path) -> None:
    export(wan, tmp_path / "out", "musubi", "--text", "umt5")
    files = test_musubi.read(tmp_path / "out")
    found = clips_of(example("follow_musubi").MusubiClips(wan.storage.url, "umt5"), wan)
    for source in NAMES:
        record, item = found[f"{source}#0"], files[Path(source).stem, 0]
        assert torch.equal(record["latents"], item["latents"])
        (text,) = load_file(item["text"]).items()
        assert text[0] == "varlen_t5_bfloat16"
        assert torch.equal(record["t5"], text[1])
        own = torch.from_numpy(states(wan[f"{source}#0"]["caption"] or "", 24).copy())
        assert torch.equal(record["t5"], own.bfloat16())


def test_finetrainers_data_set(wan: latentcache.Cache, tmp_path: Path) -> None:
    export(wan, tmp_path / "out", "finetrainers", "--text", "umt5")
    data = example("follow_finetrainers").FinetrainersClips(wan.storage.url, "umt5")
    found = {test_finetrainers.bits(r["latents"]): r for r in clips_of(data, wan).values()}
    for item in test_finetrainers.read(tmp_path / "out", len(wan)):
        record = found.pop(test_finetrainers.bits(item["latents"]))
        assert record.keys() == item.keys()
        assert all(torch.equal(record[name], item[name]) for name in item)
    assert not found


def test_fastvideo_s_data_set(wan: latentcache.Cache, tmp_path: Path) -> None:
    export(wan, tmp_path / "out", "fastvideo", "--text", "umt5")
    data = example("follow_fastvideo").FastVideoClips(wan.storage.url, "umt5")
    files = test_fastvideo.read(tmp_path / "out")
    for key, record in clips_of(data, wan).items():
        for name, value in record.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(value, files[key][name]), name


def test_simpletuner_s_data_set(wan: latentcache.Cache, tmp_path: Path) -> None:
    export(wan, tmp_path / "out", "simpletuner")
    found = clips_of(example("follow_simpletuner").SimpleTunerClips(wan.storage.url), wan)
    for source in NAMES:
        latents = test_simpletuner.read(tmp_path / "out", source)
        assert torch.equal(found[f"{source}#0"], latents)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("follow_musubi", "MusubiClips"),
        ("follow_finetrainers", "FinetrainersClips"),
        ("follow_fastvideo", "FastVideoClips"),
    ],
)
def test_clips_whose_text_is_not_encoded_yet_are_left_out(
    name: str, kind: str, wan: latentcache.Cache
) -> None:
    data = getattr(example(name), kind)(wan.storage.url, "lacking")
    assert len(data) == len(wan) - 1
    assert len([data[n] for n in range(len(data))]) == len(data)


def test_a_data_set_gives_only_clips_that_have_the_fields(wan: latentcache.Cache) -> None:
    data = wan.dataset(fields=["lacking"], where="caption != 'a cat'")
    chosen = [clip["key"] for clip in wan[:] if clip["caption"] not in ("a cat", None)]
    assert data.keys() == chosen
    assert [data[n]["key"] for n in range(len(data))] == chosen
    assert [data[n]["lacking"].shape[0] for n in range(len(data))] == [LENGTH] * len(chosen)
    assert wan.dataset().keys() == wan.keys()
    with pytest.raises(ConfigError, match="lackin"):
        wan.dataset(fields=["lackin"])
