"""Fields of other files than the clips' sources: control videos, masks and references, matched by time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import latentcache
from jobs.cli import SOME_FAILED
from latentcache.config.fields import parse_field
from latentcache.errors import ConfigError
from tests.tools.caches import make_config, run_inline
from tests.tools.fields import write_fields
from tests.tools.videos import moving_pattern, read_with_pyav, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

FRAMES, SIZE = 24, (32, 48)
VARIABLE = np.cumsum([0, *([20, 70, 33, 41, 50] * FRAMES)])[:FRAMES].tolist()
FIELDS: dict[str, dict[str, Any]] = {
    "pixels": {"kind": "raw", "of": "clip", "column": "control"},
    "depth": {"kind": "visual", "column": "control", "encoder": "latents"},
    "reference": {"kind": "raw", "of": "first", "column": "control", "same_shape": False},
    "own": {"kind": "raw", "of": "clip"},
}


def write_corpus(folder: Path) -> dict[str, str | None]:
    """Sources, each with another kind of control file; returns these by the names of the sources."""
    (folder / "control").mkdir(parents=True)
    controls: dict[str, str | None] = {
        "same.mp4": "same.mp4",
        "slow.mp4": "control/slow.mp4",
        "variable.mkv": "control/variable.mkv",
        "turned.mp4": "control/turned.mp4",
        "short.mp4": "control/short.mp4",
        "wide.mp4": "control/wide.mp4",
        "picture.mp4": "control/picture.png",
        "gone.mp4": "control/gone.mp4",
        "none.mp4": None,
    }
    for n, name in enumerate(controls):
        pts = VARIABLE if name == "variable.mkv" else None
        write_video(folder / name, moving_pattern(FRAMES, *SIZE, seed=n), pts=pts)
    control = folder / "control"
    write_video(control / "slow.mp4", moving_pattern(FRAMES // 2, 64, 96, seed=30), fps=12)
    write_video(control / "variable.mkv", moving_pattern(60, *SIZE, seed=31), fps=50)
    write_turned(control / "turned.mp4", moving_pattern(FRAMES, *SIZE[::-1], seed=35))
    write_video(control / "short.mp4", moving_pattern(8, *SIZE, seed=32))
    write_video(control / "wide.mp4", moving_pattern(FRAMES, 32, 96, seed=33))
    Image.fromarray(moving_pattern(1, *SIZE, seed=34)[0]).save(control / "picture.png")
    table = {"video": list(controls), "control": list(controls.values())}
    pq.write_table(pa.table(table), folder / "table.parquet")
    return controls


def write_turned(path: Path, pixels: Any) -> None:
    """Write a video that is shown turned by a quarter."""
    coded = write_video(path.with_name("coded.mp4"), pixels)
    with av.open(str(coded)) as read, av.open(str(path), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        stream.set_display_rotation(90)
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    coded.unlink()


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    write_corpus(folder / "corpus")
    config = make_config(
        folder,
        folder / "corpus/table.parquet",
        str(folder / "cache"),
        corpus={"keep": ["control"]},
        clips={"frames": 5, "select": "all", "size": list(SIZE)},
        cache={"dtype": "float32", "shard_clips": 8},
    )
    assert run_inline("precompute", config)[0] == 0
    path = write_fields(folder, **FIELDS)
    words = ("run.runner=local", "run.decode_processes=1")
    status, printed = run_inline("add_field", folder / "cache", path, *words)
    assert status == SOME_FAILED, printed
    return folder


def nearest(wanted_s: list[float], times_s: list[float]) -> list[int]:
    """The frames that are nearest in time, the earlier of two as near."""
    times = range(len(times_s))
    return [min(times, key=lambda k: (round(abs(times_s[k] - w), 6), k)) for w in wanted_s]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "control", "times_s", "fps"),
    [
        ("same.mp4", "same.mp4", [t / 24 for t in range(FRAMES)], 24),
        ("variable.mkv", "control/variable.mkv", [t / 1000 for t in VARIABLE], 50),
        ("turned.mp4", "control/turned.mp4", [t / 24 for t in range(FRAMES)], 24),
    ],
)
def test_frames_of_another_file_are_those_nearest_in_time(
    folder: Path, source: str, control: str, times_s: list[float], fps: int
) -> None:
    cache, pixels = (
        latentcache.open_cache(str(folder / "cache")),
        read_with_pyav(folder / "corpus" / control),
    )
    rows = [row for row in cache.table().to_pylist() if row["source"] == source]
    assert len(rows) == FRAMES // 5
    for row in rows:
        wanted = times_s[row["start"] : row["start"] + 5]
        found = nearest(wanted, [k / fps for k in range(len(pixels))])
        assert np.array_equal(cache[row["key"]]["pixels"].numpy(), pixels[found])


@pytest.mark.slow
def test_a_slower_file_repeats_its_frames(folder: Path) -> None:
    sample = latentcache.open_cache(str(folder / "cache"))["slow.mp4#0"]["pixels"]
    assert torch.equal(sample[0], sample[1])
    assert not torch.equal(sample[1], sample[2])
    assert sample.shape == (5, *SIZE, 3)


@pytest.mark.slow
def test_latents_of_a_file_are_those_that_its_clip_has(folder: Path) -> None:
    cache = latentcache.open_cache(str(folder / "cache"))
    for n in range(FRAMES // 5):
        sample = cache[f"same.mp4#{n}"]
        assert torch.equal(sample["depth"], sample["latents"])


@pytest.mark.slow
def test_all_frames_of_the_clip_itself(folder: Path) -> None:
    cache = latentcache.open_cache(str(folder / "cache"))
    pixels = read_with_pyav(folder / "corpus/slow.mp4")
    assert np.array_equal(cache["slow.mp4#2"]["own"].numpy(), pixels[10:15])


@pytest.mark.slow
def test_a_file_that_does_not_fit_is_a_row_with_a_reason(folder: Path) -> None:
    found: dict[str, dict[str, str]] = {}
    for name in ("pixels", "reference"):
        tables = sorted((folder / f"cache/fields/{name}/samples").rglob("*.parquet"))
        rows = [row for path in tables for row in pq.read_table(path).to_pylist()]
        found[name] = {row["key"]: row["reason"] for row in rows if row["status"] == "failed"}
    expected = {
        "wide.mp4#0": "other_shape",
        "gone.mp4#0": "missing",
        "none.mp4#0": "missing_input",
        "picture.mp4#0": "input_too_short",
        "short.mp4#1": "input_too_short",
    }
    assert expected.items() <= found["pixels"].items()
    assert "short.mp4#0" not in found["pixels"]
    assert {"gone.mp4#0", "none.mp4#0"} <= found["reference"].keys()
    assert not {"wide.mp4#0", "picture.mp4#0", "picture.mp4#1"} & found["reference"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("control", ["same.mp4", "control/half.mp4"])
def test_frames_of_another_file_follow_frames_that_are_spread(tmp_path: Path, control: str) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "control").mkdir(parents=True)
    write_video(corpus / "same.mp4", moving_pattern(FRAMES, *SIZE, seed=1))
    half = moving_pattern(FRAMES // 2, *SIZE, seed=2)
    write_video(corpus / "control/half.mp4", half, fps=12)
    pq.write_table(pa.table({"video": ["same.mp4"], "control": [control]}), corpus / "t.parquet")
    config = make_config(
        tmp_path,
        corpus / "t.parquet",
        str(tmp_path / "cache"),
        corpus={"keep": ["control"]},
        clips={"frames": 5, "sampling": "spread", "select": "first", "size": list(SIZE)},
    )
    assert run_inline("precompute", config)[0] == 0
    path = write_fields(tmp_path, pixels=FIELDS["pixels"])
    assert run_inline("add_field", tmp_path / "cache", path, "run.runner=local")[0] == 0
    spread = torch.linspace(0, FRAMES - 1, 5).long().tolist()
    fps = 24 if control == "same.mp4" else 12
    pixels = read_with_pyav(corpus / control)
    found = nearest([n / 24 for n in spread], [k / fps for k in range(len(pixels))])
    sample = latentcache.open_cache(str(tmp_path / "cache"))[0]["pixels"]
    assert np.array_equal(sample.numpy(), pixels[found])


@pytest.mark.slow
@pytest.mark.long
def test_another_path_is_taken_in(folder: Path) -> None:
    table = folder / "corpus/table.parquet"
    rows = pq.read_table(table).to_pylist()
    rows[-1]["control"] = "same.mp4"
    pq.write_table(pa.Table.from_pylist(rows), table)
    assert run_inline("precompute", folder / "config.yaml")[0] == 0
    words = ("run.runner=local", "run.decode_processes=1")
    _, printed = run_inline("resume", folder / "cache", "--field", "pixels", *words)
    assert f"changed  {FRAMES // 5} clips" in printed
    cache = latentcache.open_cache(str(folder / "cache"))
    assert torch.equal(cache["none.mp4#1"]["pixels"], cache["same.mp4#1"]["pixels"])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="these are the latents themselves"):
        parse_field("x", {"kind": "visual"})
    with pytest.raises(ConfigError, match="image towers"):
        parse_field("x", {"kind": "visual", "column": "c", "encoder": {"family": "siglip"}})
