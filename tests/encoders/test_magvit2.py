from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentcache.encoders import resolve
from latentcache.errors import ConfigError, EncoderError, GeometryError
from tests.tools.discrete_models import save_magvit2
from tests.tools.published import pixels

pytestmark = pytest.mark.slow

pytest.importorskip("magvit2_pytorch", reason="the extra magvit2 is not installed")
CPU = torch.device("cpu")
IN_TIME = ["residual", ["compress_space", 16], ["compress_time", 16], ["compress_time", 16]]


def test_ids_are_the_package_s_own(tmp_path: Path) -> None:
    from magvit2_pytorch import VideoTokenizer

    raw = save_magvit2(tmp_path)
    module, config = resolve(raw)
    spec = module.describe(config, dtype="bfloat16")
    assert (spec.ids.bit_order, spec.dtype, spec.fixed_size) == ("msb_first", "uint8", (32, 32))
    encoder = module.build(config, spec=spec, device=CPU)
    layers = tuple(x if isinstance(x, str) else tuple(x) for x in raw["settings"]["layers"])
    settings = {**raw["settings"], "layers": layers, "perceptual_loss_weight": 0.0}
    tokenizer = VideoTokenizer(**settings, use_gan=False)
    tokenizer.load_state_dict(torch.load(raw["checkpoint"], weights_only=True)["model_state_dict"])
    video = pixels(1, 5, 32, 32)
    expected = tokenizer.tokenize(video.permute(0, 4, 1, 2, 3).float() / 255)
    assert torch.equal(encoder.encode(video), expected)


def test_the_last_frames_reach_no_id_and_single_frames_are_refused(tmp_path: Path) -> None:
    """Fails once the package fixes its time compression: then take the refusal out."""
    module, config = resolve(save_magvit2(tmp_path, layers=IN_TIME))
    spec = module.describe(config, dtype="bfloat16")
    encoder = module.build(config, spec=spec, device=CPU)
    video = pixels(1, 9, 32, 32)
    changed = video.clone()
    changed[:, 6:] = 255 - changed[:, 6:]
    assert torch.equal(encoder.encode(changed), encoder.encode(video))
    changed[:, 5] = 255 - changed[:, 5]
    assert not torch.equal(encoder.encode(changed), encoder.encode(video))
    with pytest.raises(GeometryError, match=r"Set clips.frames to 5\."):
        encoder.encode(video[:, :1])


def test_settings_of_another_model_are_refused(tmp_path: Path) -> None:
    raw = save_magvit2(tmp_path)
    other = {**raw, "settings": {**raw["settings"], "layers": IN_TIME}}
    module, config = resolve(other)
    spec = module.describe(config, dtype="bfloat16")
    with pytest.raises(EncoderError, match=r"Give the settings that it was trained with"):
        module.build(config, spec=spec, device=CPU)
    module, config = resolve({**raw, "settings": {"image_size": 32}})
    with pytest.raises(ConfigError, match=r"settings\.codebook_size: required"):
        module.describe(config, dtype="bfloat16")
