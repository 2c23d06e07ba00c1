from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tests.contracts.encoder_cases import Case, Model
from tests.contracts.encoder_cases_diffusers_image import TESTED, published
from tests.tools.tiny_models import save


def _raw(name: str, store: str, folder: Path) -> dict[str, Any]:
    save(name, folder)
    return {
        "kind": "diffusers_video",
        "model": str(folder),
        "dtype": "float32",
        "store": store,
    }


def _case(
    name: str,
    frames: tuple[int, ...],
    *models: Model,
    store: str = "moments",
    chunking: str = "whole",
    **fields: Any,
) -> Case:
    return Case(
        name=name,
        kind="diffusers_video",
        raw=functools.partial(_raw, name, store),
        frames=frames,
        models=models,
        chunking=chunking,
        tested=TESTED,
        **fields,
    )


#: Of what config.json holds, where it is not the class's default: the published values.
_video = functools.partial(published, kind="diffusers_video")
_STATISTICS_48: dict[str, Any] = {
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}  # made up, and not shown
IN_GROUPS_OF_4 = "1, 4, 4, … frames, past carried over"
WHOLE_ALONE = "whole, one clip at a time"
LTX_095: dict[str, Any] = {
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"],
    "spatio_temporal_scaling": [True] * 4,
}
SVD_BLOCKS = [128, 256, 512, 512]
BY_4 = {3: "1 or 5", 8: "5 or 9", 82: "81 or 85"}
BY_6 = {2: "1 or 7", 12: "7 or 13", 84: "79 or 85"}
BY_8 = {5: "1 or 9", 16: "9 or 17", 120: "113 or 121"}
CASES = (
    _case(
        "wan",
        (1, 5, 13),
        _video("Wan 2.1, Wan 2.2 14B", "AutoencoderKLWan"),
        chunking=IN_GROUPS_OF_4,
        illegal_frames=BY_4,
    ),
    _case(
        "wan22",
        (1, 5, 13),
        _video(
            "Wan 2.2 5B",
            "AutoencoderKLWan",
            z_dim=48,
            patch_size=2,
            is_residual=True,
            **_STATISTICS_48,
        ),
        chunking=IN_GROUPS_OF_4,
        illegal_frames=BY_4,
    ),
    _case(
        "qwenimage",
        (1, 5, 13),
        _video("Qwen-Image", "AutoencoderKLQwenImage"),
        chunking=IN_GROUPS_OF_4,
        illegal_frames=BY_4,
    ),
    _case(
        "cogvideox",
        (1, 8, 9, 16, 17),
        _video("CogVideoX 2B", "AutoencoderKLCogVideoX"),
        _video("CogVideoX 5B and 1.5", "AutoencoderKLCogVideoX", scaling_factor=0.7),
        chunking="8 (first: 9), 8, … frames, past carried over; each has its own group norm",
        illegal_frames={2: "1 or 8", 12: "9 or 16", 50: "49 or 56"},
    ),
    _case(
        "hunyuan",
        (1, 5, 17, 21),
        _video("HunyuanVideo", "AutoencoderKLHunyuanVideo"),
        illegal_frames=BY_4,
    ),
    _case(
        "hunyuan15",
        (1, 5, 13),
        _video("HunyuanVideo 1.5", "AutoencoderKLHunyuanVideo15"),
        chunking=WHOLE_ALONE,
        illegal_frames=BY_4,
    ),
    _case(
        "ltx",
        (1, 9, 25),
        _video("LTX-Video 0.9", "AutoencoderKLLTXVideo", buffers=128),
        illegal_frames=BY_8,
    ),
    _case(
        "ltx095",
        (1, 9, 25),
        _video("LTX-Video 0.9.5 and later", "AutoencoderKLLTXVideo", buffers=128, **LTX_095),
        illegal_frames=BY_8,
    ),
    _case(
        "ltx2",
        (1, 9, 25),
        _video("LTX-2", "AutoencoderKLLTX2Video", buffers=128),
        illegal_frames=BY_8,
    ),
    _case("mochi", (1, 7, 13), _video("Mochi 1", "AutoencoderKLMochi"), illegal_frames=BY_6),
    _case(
        "allegro",
        (24, 40),
        _video("Allegro", "AutoencoderKLAllegro"),
        chunking="its own tiles of 24x320x320, one clip at a time",
        illegal_frames={1: "24", 23: "24", 25: "24 or 40", 88 + 4: "88 or 104"},
        grids=((16, 16), (17, 16)),
    ),
    _case(
        "magvit",
        (1, 5, 13),
        _video("EasyAnimate", "AutoencoderKLMagvit"),
        chunking=IN_GROUPS_OF_4,
        illegal_frames=BY_4,
    ),
    _case(
        "cosmos",
        (1, 9, 25),
        _video("Cosmos 1.0 CV8x8x8", "AutoencoderKLCosmos"),
        store="mean",
        illegal_frames={**BY_8, 129: "121", 122: "121"},
    ),
    _case(
        "kvae",
        (1, 5, 17, 25),
        _video("KVAE 3D 1.0", "AutoencoderKLKVAEVideo"),
        store="mean",
        chunking="17, 16, 16, … frames, one clip at a time; each has its own group norm",
        illegal_frames=BY_4,
    ),
    _case(
        "svd",
        (1, 2, 5),
        _video(
            "Stable Video Diffusion", "AutoencoderKLTemporalDecoder", block_out_channels=SVD_BLOCKS
        ),
        chunking="frame by frame",
    ),
    _case(
        "vidtok",
        (1, 5, 13),
        _video("VidTok KL, causal, 4 channels", "AutoencoderVidTok"),
        illegal_frames=BY_4,
        chunking="whole, 3 copies of frame 0 in front",
    ),
    _case(
        "vidtok_fsq",
        (1, 5, 13),
        _video(  # 8 levels of each of 6 channels
            "VidTok FSQ, causal, 262,144 codes",
            "AutoencoderVidTok",
            store="ids",
            z_channels=6,
            double_z=False,
            regularizer="fsq",
            codebook_size=8**6,
        ),
        store="ids",
        illegal_frames=BY_4,
        chunking="whole, 3 copies of frame 0 in front",
    ),
    _case(
        "vidtok_noncausal",
        (16, 32),
        _video("VidTok KL, not causal, 4 channels", "AutoencoderVidTok", is_causal=False),
        illegal_frames={1: "16", 17: "16 or 32", 47: "32 or 48"},
    ),
)
