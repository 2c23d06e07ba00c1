from __future__ import annotations

from tests.contracts.encoder_cases import Case, Model

CASES = (
    Case(
        name="dct",
        kind="dct",
        raw=lambda _: {"kind": "dct", "store": "moments"},
        frames=(1, 5, 13),
        illegal_frames={3: "1 or 5", 8: "5 or 9", 82: "81 or 85"},
        rounding=0.0,
        is_network=False,
        models=(Model(name="3-D DCT, for demos and tests", raw=lambda _: {"kind": "dct"}),),
        chunking="1, 4, 4, … frames, each on its own",
        tested="its own definition: there is no other code",
    ),
)
