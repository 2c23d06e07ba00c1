from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentcache.encoders import resolve
from latentcache.encoders.tokenizers import cosmos_tokenizer
from latentcache.errors import ConfigError, EncoderError
from tests.tools.discrete_models import save_cosmos
from tests.tools.published import pixels

CPU = torch.device("cpu")


def build(raw: dict[str, Any]) -> Any:
    module, config = resolve(raw)
    spec = module.describe(config, dtype="bfloat16")
    return module.build(config, spec=spec, device=CPU)


def expected(raw: dict[str, Any], video: torch.Tensor) -> torch.Tensor:
    """Do what CausalVideoTokenizer.encode does with the file, from numpy pixels on."""
    values = 2.0 * (video.numpy().transpose(0, 4, 1, 2, 3) / 255.0) - 1.0
    module = torch.jit.load(f"{raw['model']}/encoder.jit")
    with torch.no_grad():
        return module(torch.from_numpy(values).to(torch.float32))[0]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
]


@pytest.mark.parametrize("variant", ["DV4x8x8", "CV4x8x8"])
def test_latents_are_what_the_file_gives_for_the_whole_clip(tmp_path: Path, variant: str) -> None:
    raw = save_cosmos(tmp_path, variant)
    video = pixels(2, 33, 16, 24)
    encoded = build(raw).encode(video)
    assert torch.equal(encoded, expected(raw, video))
    assert encoded.shape == ((2, 9, 2, 3) if variant == "DV4x8x8" else (2, 16, 9, 2, 3))


def test_ids_are_stored_in_16_bits_and_latents_as_asked(tmp_path: Path) -> None:
    module, config = resolve(save_cosmos(tmp_path))
    spec = module.describe(config, dtype="bfloat16")
    assert (spec.dtype, spec.stored, spec.ids.codebook_size) == ("uint16", "ids", 64_000)
    module, config = resolve(save_cosmos(tmp_path, "CV4x8x8"))
    spec = module.describe(config, dtype="bfloat16")
    assert (spec.dtype, spec.stored, spec.ids, spec.channels) == ("bfloat16", "mean", None, 16)


def test_levels_are_computed_in_float64_as_published() -> None:
    x = np.arange(256, dtype=np.uint8) / 255.0
    assert torch.equal(cosmos_tokenizer.LEVELS, torch.from_numpy(2.0 * x - 1.0).float())


def test_the_variant_is_never_guessed(tmp_path: Path) -> None:
    raw = save_cosmos(tmp_path)
    folder = Path(raw["model"]).rename(tmp_path / "tokenizer")
    plain = {**raw, "model": str(folder)}
    module, config = resolve(plain)
    with pytest.raises(ConfigError, match=r"'tokenizer', does not say which.* such as DV8x16x16"):
        module.describe(config, dtype="bfloat16")
    module, config = resolve({**plain, "variant": "DV8x16x16"})
    assert module.describe(config, dtype="bfloat16").stride == (8, 16, 16)
    assert module.identity(config)["model_class"] == "Cosmos DV8x16x16"


def test_a_variant_that_the_folder_contradicts_is_refused(tmp_path: Path) -> None:
    module, config = resolve({**save_cosmos(tmp_path), "variant": "DV8x8x8"})
    with pytest.raises(ConfigError, match=r"variant is DV8x8x8, but encoder.model is .* DV4x8x8"):
        module.describe(config, dtype="bfloat16")


def test_another_stride_than_the_file_s_is_found_at_the_first_clip(tmp_path: Path) -> None:
    raw = save_cosmos(tmp_path)
    folder = Path(raw["model"]).rename(tmp_path / "tokenizer")
    encoder = build({**raw, "model": str(folder), "variant": "DV8x8x8"})
    with pytest.raises(EncoderError, match=r"returned \[1, 3, 1, 1\], but its spec says"):
        encoder.encode(pixels(1, 9, 8, 8))


def test_bfloat16_on_a_cpu_is_refused(tmp_path: Path) -> None:
    raw = {**save_cosmos(tmp_path), "dtype": "bfloat16"}
    with pytest.raises(ConfigError, match=r"Set encoder\.dtype to float32, or run on a GPU"):
        build(raw)


def test_a_folder_without_an_encoder_is_told(tmp_path: Path) -> None:
    raw = save_cosmos(tmp_path)
    (Path(raw["model"]) / "encoder.jit").unlink()
    module, config = resolve(raw)
    with pytest.raises(ConfigError, match=r"there is no file .*encoder\.jit"):
        module.describe(config, dtype="bfloat16")


def test_a_folder_without_a_decoder_encodes_and_does_not_decode(tmp_path: Path) -> None:
    raw = save_cosmos(tmp_path)
    (Path(raw["model"]) / "decoder.jit").unlink()
    encoder = build(raw)
    ids = encoder.encode(pixels(1, 5, 8, 8))
    with pytest.raises(EncoderError, match=r"a folder without decoder\.jit"):
        encoder.decode(ids)


def test_what_is_not_torchscript_is_told(tmp_path: Path) -> None:
    raw = save_cosmos(tmp_path)
    (Path(raw["model"]) / "encoder.jit").write_bytes(b"nothing")
    with pytest.raises(EncoderError, match="cannot be loaded as TorchScript"):
        build(raw)


def test_ids_outside_the_codebook_are_refused(tmp_path: Path) -> None:
    encoder = build(save_cosmos(tmp_path))
    with pytest.raises(
        EncoderError, match="the codes 0 to 63999, but these ids go from 0 to 64000"
    ):
        encoder.decode(torch.tensor([[[[0, 64_000]]]]))
