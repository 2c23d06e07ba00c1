from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.contracts.encoder_cases import Case
from tests.tools.tiny_models import save


def _hunyuan(folder: Path) -> dict[str, Any]:
    """Tiles in space and time: one to four of each clip of the suite."""
    save("hunyuan", folder)
    return {
        "kind": "diffusers_video",
        "model": str(folder),
        "dtype": "float32",
        "store": "moments",
        "tiling": {
            "tile": [16, 16],
            "overlap": [8, 8],
            "frames": 9,
            "frame_overlap": 5,
            "batch": 2,
        },
    }


CASES = (
    Case(
        name="hunyuan tiled",
        kind="diffusers_video",
        raw=_hunyuan,
        frames=(1, 5, 17, 21),
        illegal_frames={3: "1 or 5", 8: "5 or 9", 82: "81 or 85"},
    ),
)
