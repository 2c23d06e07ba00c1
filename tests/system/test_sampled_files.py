"""Files of fields are matched to the frames that a clip samples, whatever the rule that samples them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import latentcache
from tests.tools.caches import make_config, run_inline
from tests.tools.fields import write_fields
from tests.tools.videos import moving_pattern, read_with_pyav, write_video

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_pools")]

FRAMES, SIZE, CLIP = 40, (32, 48), 5
VARIABLE = np.cumsum([0, *([20, 70, 33, 41, 50] * FRAMES)])[:FRAMES].tolist()
#: Every rule that picks frames.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "every": {},
    "nearest": {"fps": 10},
    "accumulate": {"fps": 10, "sampling": "accumulate"},
    "floor": {"fps": 10, "sampling": "floor"},
    "linspace": {"fps": 10, "sampling": "linspace"},
    "stated rate": {"fps": 10, "sampling": "accumulate", "source_fps": 30},
    "spread": {"sampling": "spread", "select": "first"},
}


@pytest.mark.parametrize(
    "clips",
    [
        pytest.param(clips, id=name, marks=[] if name == "accumulate" else [pytest.mark.long])
        for name, clips in SAMPLINGS.items()
    ],
)
def test_a_file_that_is_the_source_itself_gives_the_clips_own_frames(
    tmp_path: Path, clips: dict[str, Any]
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    pixels = moving_pattern(FRAMES, *SIZE)
    write_video(corpus / "even.mp4", pixels)
    write_video(corpus / "uneven.mkv", pixels, pts=VARIABLE)
    names = ["even.mp4", "uneven.mkv"]
    pq.write_table(pa.table({"video": names, "control": names}), corpus / "table.parquet")
    config = make_config(
        tmp_path,
        corpus / "table.parquet",
        str(tmp_path / "cache"),
        corpus={"keep": ["control"]},
        clips={"frames": CLIP, "select": "all", "size": list(SIZE), **clips},
        cache={"dtype": "float32"},
        fields={
            "own": {"kind": "raw", "of": "clip"},
            **{
                f"control_{of}": {"kind": "raw", "of": of, "column": "control"}
                for of in ("clip", "first", "last")
            },
        },
    )
    status, printed = run_inline("precompute", config)
    assert status == 0, printed
    cache = latentcache.open_cache(str(tmp_path / "cache"))
    assert {row["source"] for row in cache.table().to_pylist()} == set(names)
    for n in range(len(cache)):
        sample = cache[n]
        own = sample["own"].numpy()
        assert np.array_equal(sample["control_clip"].numpy(), own)
        assert np.array_equal(sample["control_first"].numpy(), own[:1])
        assert np.array_equal(sample["control_last"].numpy(), own[-1:])


def test_spread_frames_of_a_file_of_another_rate_are_those_nearest_in_time(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_video(corpus / "v.mp4", moving_pattern(FRAMES, *SIZE))
    write_video(corpus / "slow.mp4", moving_pattern(FRAMES // 2, *SIZE, seed=1), fps=12)
    table = pa.table({"video": ["v.mp4"], "control": ["slow.mp4"]})
    pq.write_table(table, corpus / "table.parquet")
    config = make_config(
        tmp_path,
        corpus / "table.parquet",
        str(tmp_path / "cache"),
        corpus={"keep": ["control"]},
        clips={"frames": CLIP, "size": list(SIZE), "sampling": "spread", "select": "first"},
    )
    assert run_inline("precompute", config)[0] == 0
    path = write_fields(tmp_path, depth={"kind": "raw", "of": "clip", "column": "control"})
    assert run_inline("add_field", tmp_path / "cache", path, "run.runner=local")[0] == 0
    spread = np.linspace(0, FRAMES - 1, CLIP).astype(int)
    found = latentcache.open_cache(str(tmp_path / "cache"))[0]["depth"].numpy()
    assert np.array_equal(found, read_with_pyav(corpus / "slow.mp4")[spread // 2])
