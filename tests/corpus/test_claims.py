"""Tables that claim more than a file can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from latentcache.corpus.claims import implausible
from latentcache.corpus.probe import probe_sources
from latentcache.decoders.pool import DecodePool
from latentcache.format.schemas import SOURCE_SCHEMA
from tests.tools.videos import moving_pattern, write_video

FACTS = {"identity": "1000-abcd", "frames": 900, "fps": 25.0, "duration_s": 36.0}


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"frames": 1001}, "1001 frames, and the file has 1000 bytes"),
        ({"frames": 2**31 - 1, "identity": None, "duration_s": 2.0**31}, "more than a week"),
        ({"fps": 1e-300, "duration_s": float("inf")}, "more than a week"),
        ({"fps": 5e-324, "duration_s": float("nan")}, "more than a week"),
    ],
)
def test_what_no_file_holds_is_told(claim: dict[str, Any], message: str) -> None:
    told = implausible({**FACTS, **claim})
    assert told["reason"] == "corrupt"
    assert message in told["message"]


@pytest.mark.parametrize("claim", [{}, {"frames": 1000}, {"duration_s": 7 * 86400.0}])
def test_what_can_be_is_trusted(claim: dict[str, Any]) -> None:
    assert not implausible({**FACTS, **claim})


@pytest.mark.slow
@pytest.mark.parametrize("height", [64, None], ids=["trusted", "probed"])
def test_a_row_cannot_make_millions_of_clips_of_a_small_file(
    tmp_path: Path, height: int | None
) -> None:
    write_video(tmp_path / "a.mp4", moving_pattern(6, 64, 96, seed=0))
    row = {"name": "a", "url": str(tmp_path / "a.mp4"), "kind": "video", "frames": 2**31 - 1}
    row |= {"fps": 30000.0, "height": height, "width": height and 96}
    sources = pa.Table.from_pylist([row], schema=SOURCE_SCHEMA)
    with DecodePool(num_processes=1, num_buffers=1, timeout_s=60) as pool:
        (found,) = probe_sources(sources, pool).to_pylist()
    assert found["reason"] == "corrupt"
    assert "2147483647 frames, and the file has" in found["message"]
