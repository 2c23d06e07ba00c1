from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.contracts.encoder_cases import Case
from tests.discrete_models import (
    save_cosmos,
    save_magvit2,
    save_open_magvit2,
    save_var,
    save_videogpt,
    save_vqgan,
)


def _magvit2(folder: Path) -> dict[str, Any]:
    pytest.importorskip("magvit2_pytorch", reason="the extra magvit2 is not installed")
    return save_magvit2(folder)


#: The share of ids that may be near a tie.
TIES = 0.01
CASES = (
    Case(
        name="videogpt",
        kind="videogpt",
        raw=save_videogpt,
        frames=(4, 8, 16),
        illegal_frames={1: "4", 6: "4 or 8", 17: "16 or 20"},
        grids=((4, 6), (2, 3), (3, 2)),
        rounding=TIES,
    ),
    Case(
        name="vqgan",
        kind="vqgan",
        raw=save_vqgan,
        frames=(1, 2, 5, 17),
        grids=((4, 6), (2, 3), (3, 2)),
        rounding=TIES,
    ),
    Case(
        name="var",
        kind="var",
        raw=save_var,
        frames=(1, 1),
        illegal_frames={2: "1", 17: "1"},
        rounding=TIES,
    ),
    Case(
        name="open_magvit2",
        kind="open_magvit2",
        raw=save_open_magvit2,
        frames=(1, 5, 17),
        illegal_frames={2: "1 or 5", 16: "13 or 17"},
        rounding=TIES,
    ),
    Case(
        name="cosmos_dv",
        kind="cosmos_tokenizer",
        raw=save_cosmos,
        frames=(1, 5, 17),
        illegal_frames={2: "1 or 5", 16: "13 or 17", 34: "33 or 37"},
        rounding=TIES,
        is_network=False,  # TorchScript's inner modules call no hooks
    ),
    Case(
        name="cosmos_cv",
        kind="cosmos_tokenizer",
        raw=lambda folder: save_cosmos(folder, "CV4x8x8"),
        frames=(1, 5, 17),
        illegal_frames={2: "1 or 5", 16: "13 or 17"},
        is_network=False,
    ),
    Case(
        name="magvit2",
        kind="magvit2",
        raw=_magvit2,
        frames=(1, 3, 9),
        rounding=TIES,
    ),
)
