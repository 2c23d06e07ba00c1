from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tests.contracts.encoder_cases import Case
from tests.tiny_models import save


def _raw(name: str, store: str, folder: Path) -> dict[str, Any]:
    save(name, folder)
    return {
        "kind": "diffusers_video",
        "model": str(folder),
        "dtype": "float32",
        "store": store,
    }


def _case(name: str, frames: tuple[int, ...], *, store: str = "moments", **fields: Any) -> Case:
    return Case(
        name=name,
        kind="diffusers_video",
        raw=functools.partial(_raw, name, store),
        frames=frames,
        **fields,
    )


BY_4 = {3: "1 or 5", 8: "5 or 9", 82: "81 or 85"}
BY_6 = {2: "1 or 7", 12: "7 or 13", 84: "79 or 85"}
BY_8 = {5: "1 or 9", 16: "9 or 17", 120: "113 or 121"}
CASES = (
    _case("wan", (1, 5, 13), illegal_frames=BY_4),
    _case("wan22", (1, 5, 13), illegal_frames=BY_4),
    _case("qwenimage", (1, 5, 13), illegal_frames=BY_4),
    _case(
        "cogvideox", (1, 8, 9, 16, 17), illegal_frames={2: "1 or 8", 12: "9 or 16", 50: "49 or 56"}
    ),
    _case("hunyuan", (1, 5, 17, 21), illegal_frames=BY_4),
    _case("hunyuan15", (1, 5, 13), illegal_frames=BY_4),
    _case("ltx", (1, 9, 25), illegal_frames=BY_8),
    _case("ltx095", (1, 9, 25), illegal_frames=BY_8),
    _case("ltx2", (1, 9, 25), illegal_frames=BY_8),
    _case("mochi", (1, 7, 13), illegal_frames=BY_6),
    _case(
        "allegro",
        (24, 40),
        illegal_frames={1: "24", 23: "24", 25: "24 or 40", 88 + 4: "88 or 104"},
        grids=((16, 16), (17, 16)),
    ),
    _case("magvit", (1, 5, 13), illegal_frames=BY_4),
    _case("cosmos", (1, 9, 25), store="mean", illegal_frames={**BY_8, 129: "121", 122: "121"}),
    _case("kvae", (1, 5, 17, 25), store="mean", illegal_frames=BY_4),
    _case("svd", (1, 2, 5)),
    _case("vidtok", (1, 5, 13), illegal_frames=BY_4),
    _case("vidtok_fsq", (1, 5, 13), store="ids", illegal_frames=BY_4),
    _case("vidtok_noncausal", (16, 32), illegal_frames={1: "16", 17: "16 or 32", 47: "32 or 48"}),
)
