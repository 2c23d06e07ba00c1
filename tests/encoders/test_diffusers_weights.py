from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from latentcache.encoders import resolve
from latentcache.encoders.diffusers.loading import load_class
from latentcache.errors import ConfigError, EncoderError
from tests.tools.diffusers_tools import CPU, built, described, pixels, reference, section
from tests.tools.tiny_models import save, save_wan

pytestmark = pytest.mark.slow


def test_weights_in_several_files_are_loaded_and_hashed(tmp_path: Path) -> None:
    model = save_wan(tmp_path / "whole")
    reference(model).save_pretrained(str(tmp_path / "split"), max_shard_size="20KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 1
    clip = pixels(5)
    assert torch.equal(built(tmp_path / "split").encode(clip), built(model).encode(clip))
    next((tmp_path / "split").glob("*-00002-of-*")).unlink()
    with pytest.raises(ConfigError, match="the download is incomplete"):
        described(tmp_path / "split")


def test_weights_that_differ_from_the_specs_are_refused(tmp_path: Path) -> None:
    module, config = resolve(section(save_wan(tmp_path)))
    spec = module.describe(config, dtype="float32")
    save_wan(tmp_path, seed=1)
    with pytest.raises(EncoderError, match="latents of two models would be mixed"):
        module.build(config, spec=spec, device=CPU)


def test_weights_that_lack_tensors_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = save_wan(tmp_path)
    path = str(model / "diffusion_pytorch_model.safetensors")
    tensors = load_file(path)
    del tensors["quant_conv.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"lack 1 tensors .* quant_conv.bias.*stay random"):
        built(model)


def test_a_config_that_leaves_out_layers_of_the_weights_is_refused(tmp_path: Path) -> None:
    config = save("kl", tmp_path, layers_per_block=2) / "config.json"
    assert load_class(tmp_path, "AutoencoderKL", torch.float32) is not None
    config.write_text(json.dumps({**json.loads(config.read_text()), "layers_per_block": 1}))
    with pytest.raises(
        EncoderError, match=r"leaves out \d+ .* decoder\.up_blocks\.0\.resnets\.2\."
    ):
        load_class(tmp_path, "AutoencoderKL", torch.float32)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    model = save_wan(tmp_path)
    (model / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(EncoderError, match=r"cannot be loaded.*download it again"):
        built(model)


def test_pipeline_folder_without_subfolder_says_which(tmp_path: Path) -> None:
    save_wan(tmp_path / "vae")
    with pytest.raises(ConfigError, match=r"holds no config.json.*set encoder.subfolder: vae"):
        described(tmp_path)
    with pytest.raises(ConfigError, match=r"Correct encoder.subfolder, which is 'vea'"):
        described(tmp_path, subfolder="vea")
    assert described(tmp_path, subfolder="vae").channels == 16


def test_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (save_wan(tmp_path) / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no diffusion_pytorch_model.safetensors"):
        described(tmp_path)


def test_path_that_is_not_there_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder"):
        described(tmp_path / "nothing")


def test_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"remove encoder.revision"):
        described(save_wan(tmp_path), revision="main")


def test_hub_id_is_fetched_and_read_as_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(repo: str, name: str, *, subfolder: str | None, revision: str | None) -> str:
        asked.append((repo, name, subfolder, revision))
        path = tmp_path / (subfolder or "") / name
        if not path.exists():
            raise EntryNotFoundError(f"404: {name}")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    local = save_wan(tmp_path / "vae")
    spec = described("someone/some-wan", subfolder="vae", revision="abc")
    assert spec.weights_sha256 == described(local).weights_sha256
    assert asked == [
        ("someone/some-wan", "config.json", "vae", "abc"),
        ("someone/some-wan", "diffusion_pytorch_model.safetensors", "vae", "abc"),
    ]
    with pytest.raises(ConfigError, match=r"someone/some-wan holds no config.json.*subfolder: vae"):
        described("someone/some-wan")


def test_hub_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline mode is on")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    with pytest.raises(ConfigError, match=r"offline mode is on.*set encoder.model to the folder"):
        described("someone/some-wan")


def test_single_tensors_are_read_from_any_form_of_weights(tmp_path: Path) -> None:
    """LTX's normaliser is in its weights: safetensors, several of them, or a PyTorch file."""
    spec = described(save("ltx", tmp_path / "whole"))
    assert spec.normaliser.kind == "channel"
    vae = reference(tmp_path / "whole")
    vae.save_pretrained(str(tmp_path / "split"), max_shard_size="20KB")
    vae.save_pretrained(str(tmp_path / "pickle"), safe_serialization=False)
    assert list((tmp_path / "pickle").glob("*.bin"))
    assert described(tmp_path / "split").normaliser == spec.normaliser
    assert described(tmp_path / "pickle").normaliser == spec.normaliser


def test_weights_without_the_normaliser_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = str(save("flux2", tmp_path) / "diffusion_pytorch_model.safetensors")
    tensors = load_file(path)
    del tensors["bn.running_var"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"hold no bn.running_var, which normalises the latents"):
        described(tmp_path, "flux2")


def test_damaged_weights_are_told_when_only_described(tmp_path: Path) -> None:
    (save("ltx", tmp_path) / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(EncoderError, match=r"cannot be read.*Download the model again"):
        described(tmp_path)
