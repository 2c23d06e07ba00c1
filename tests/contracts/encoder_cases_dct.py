from __future__ import annotations

from tests.contracts.encoder_cases import Case

CASES = (
    Case(
        name="dct",
        kind="dct",
        raw=lambda _: {"kind": "dct", "store": "moments"},
        frames=(1, 5, 13),
        illegal_frames={3: "1 or 5", 8: "5 or 9", 82: "81 or 85"},
        rounding=0.0,
        is_network=False,
    ),
)
