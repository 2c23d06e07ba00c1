from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.contracts.encoder_cases import Case
from tests.tiny_models import save_cogvideox, save_wan, save_wan22


def _raw(save: Callable[[Path], Path], folder: Path) -> dict[str, Any]:
    save(folder)
    return {
        "kind": "diffusers_video",
        "model": str(folder),
        "dtype": "float32",
        "store": "moments",
    }


WAN_ILLEGAL = {3: "1 or 5", 8: "5 or 9", 82: "81 or 85"}
CASES = (
    Case(
        name="wan",
        kind="diffusers_video",
        raw=functools.partial(_raw, save_wan),
        frames=(1, 5, 13),
        illegal_frames=WAN_ILLEGAL,
    ),
    Case(
        name="wan22",
        kind="diffusers_video",
        raw=functools.partial(_raw, save_wan22),
        frames=(1, 5, 13),
        illegal_frames=WAN_ILLEGAL,
    ),
    Case(
        name="cogvideox",
        kind="diffusers_video",
        raw=functools.partial(_raw, save_cogvideox),
        frames=(1, 8, 9, 16, 17),
        illegal_frames={2: "1 or 8", 12: "9 or 16", 50: "49 or 56"},
    ),
)
