"""Columns with a value per frame of the source: cut to each clip's own frames, whatever chose these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import latentcache
from jobs.cli import SOME_FAILED
from latentcache.errors import ConfigError, CorpusError
from tests.system.test_changing_corpus import write_and_break
from tests.tools.caches import make_config, run_inline
from tests.tools.corpora import read
from tests.tools.videos import moving_pattern, write_video

pytestmark = pytest.mark.usefixtures("kept_pools")

FRAMES = 24
SIZE = (32, 48)
#: Presentation times in ms of a video of a variable rate.
VARIABLE = np.cumsum([0, *([20, 70, 33, 41, 90] * FRAMES)])[:FRAMES].tolist()


def write_corpus(
    folder: Path, pts: Mapping[str, list[int] | None], **columns: Sequence[Any]
) -> Path:
    """Videos by name, and their table. columns: of all; else `actions` [T, 2] and `segment` [T]."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, (name, times) in enumerate(pts.items()):
        write_video(folder / name, moving_pattern(FRAMES, *SIZE, seed=n), pts=times)
    numbers = range(FRAMES)
    values = {
        "video": list(pts),
        "actions": [[[n + t / 100, -t] for t in numbers] for n in range(len(pts))],
        "segment": [list(numbers)] * len(pts),
        **columns,
    }
    path = folder / "table.parquet"
    pq.write_table(pa.table(values), path)
    return path


def encode(folder: Path, table: Path, status: int = 0, **sections: Any) -> latentcache.Cache:
    corpus = {"per_frame": ["actions", "segment"], **sections.pop("corpus", {})}
    clips = {"size": list(SIZE), **sections.pop("clips", {})}
    config = make_config(
        folder, table, str(folder / "cache"), corpus=corpus, clips=clips, **sections
    )
    found, printed = run_inline("precompute", config)
    assert found == status, printed
    return latentcache.open_cache(str(folder / "cache"))


def shown(pts: Sequence[int], start: int, frames: int, fps: float | None) -> list[int]:
    """The frames of the source that a clip samples, by the rule in the documents: nearest in time."""
    if fps is None:
        return list(range(start, start + frames))
    wanted = [pts[0] + 1000 * j / fps for j in range(start, start + frames)]
    return [min(range(len(pts)), key=lambda k: (round(abs(pts[k] - w), 6), k)) for w in wanted]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fps", "select"),
    [
        (None, "all"),
        (15.0, "uniform:3"),
        pytest.param(40.0, "random:2", marks=pytest.mark.long),
        pytest.param(11.0, "all", marks=pytest.mark.long),
    ],
)
def test_clips_have_the_values_of_their_own_frames(
    tmp_path: Path, fps: float | None, select: str
) -> None:
    steady = [round(1000 * t / 24) for t in range(FRAMES)]
    pts = {"steady.mkv": steady, "variable.mkv": VARIABLE}
    table = write_corpus(tmp_path / "corpus", pts)
    cache = encode(tmp_path, table, clips={"fps": fps, "select": select, "frames": 5})
    rows = cache.table().to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert len(rows) > len(pts)
    for row in rows:
        n, sample = list(pts).index(row["source"]), cache[row["key"]]
        numbers = shown(pts[row["source"]], row["start"], 5, fps)
        assert sample["segment"].tolist() == numbers
        assert torch.equal(
            sample["actions"],
            torch.tensor([[n + t / 100, -t] for t in numbers], dtype=torch.float64),
        )
    batch = next(
        iter(latentcache.LatentLoader(str(tmp_path / "cache"), batch_size=2, shuffle=False))
    )
    assert torch.equal(batch["actions"], torch.stack([cache[n]["actions"] for n in range(2)]))
    assert batch["segment"].dtype == torch.int64
    assert "per_frame" not in batch


@pytest.mark.slow
def test_values_that_do_not_fit_their_source_are_rows_with_a_reason(tmp_path: Path) -> None:
    names = [f"{n}.mp4" for n in range(5)]
    whole = [[float(t), 0.0] for t in range(FRAMES)]
    actions = [whole, whole[:-1], None, [*whole[:-1], [1.0]], [*whole[:-1], None]]
    table = write_corpus(tmp_path / "corpus", dict.fromkeys(names), actions=actions)
    Image.fromarray(moving_pattern(1, *SIZE)[0]).save(tmp_path / "corpus/picture.png")
    data = pq.read_table(table).to_pylist()
    data.append({"video": "picture.png", "actions": [[7.0, 8.0]], "segment": [3]})
    pq.write_table(pa.Table.from_pylist(data), table)
    cache = encode(tmp_path, table, status=SOME_FAILED, clips={"frames": 5, "select": "first"})
    rows = {row["source"]: row for row in cache.table().to_pylist()}
    assert [rows[name]["reason"] for name in names] == [
        None, "per_frame", "missing_input", "per_frame", "per_frame",
    ]  # fmt: skip
    assert f"23 values, and the source has {FRAMES} frames" in rows["1.mp4"]["message"]
    assert cache["picture.png#0"]["actions"].tolist() == [[7.0, 8.0]]


@pytest.mark.slow
def test_a_table_that_is_wrong_about_its_frames_fails_the_clip(tmp_path: Path) -> None:
    table = write_corpus(
        tmp_path / "corpus", {"a.mkv": VARIABLE}, fps=[24.0], n=[FRAMES], h=[32], w=[48]
    )
    roles = {"video": "video", "fps": "fps", "frames": "n", "height": "h", "width": "w"}
    cache_of = {
        "corpus": {"columns": roles},
        "clips": {"frames": 9, "fps": 12.0, "select": "first"},
    }
    cache = encode(tmp_path, table, status=SOME_FAILED, **cache_of)
    (row,) = cache.table().to_pylist()
    assert row["reason"] == "frame_times"


@pytest.mark.slow
def test_changed_values_are_taken_in_without_encoding(tmp_path: Path) -> None:
    table = write_corpus(tmp_path / "corpus", {"a.mp4": None, "b.mp4": None})
    clips = {"frames": 5, "fps": 15.0, "select": "all"}
    before = encode(tmp_path, table, clips=clips)
    data = pq.read_table(table).to_pylist()
    data[1]["segment"] = [100 + t for t in range(FRAMES)]
    pq.write_table(pa.Table.from_pylist(data), table)
    after = encode(tmp_path, table, clips=clips)
    assert len(after) == len(before)
    for old, new in zip(before[:], after[:], strict=True):
        moved = 100 if new["source"] == "b.mp4" else 0
        assert torch.equal(new["segment"], old["segment"] + moved)
        assert torch.equal(new["actions"], old["actions"])
    assert len(list((tmp_path / "cache/plan").iterdir())) == 1
    data[0]["segment"] = [1, 2, 3]
    data[1]["segment"] = [200 + t for t in range(FRAMES)]
    pq.write_table(pa.Table.from_pylist(data), table)
    status, printed = run_inline("precompute", tmp_path / "config.yaml")
    assert status == 0, printed
    assert f"  a.mp4: segment has 3 values, and the source has {FRAMES} frames" in printed
    for old, new in zip(before[:], latentcache.open_cache(after.storage.url)[:], strict=True):
        moved = 200 if new["source"] == "b.mp4" else 0
        assert torch.equal(new["segment"], old["segment"] + moved)


@pytest.mark.slow
def test_clips_that_are_cut_have_values_that_are_cut(tmp_path: Path) -> None:
    table = write_corpus(tmp_path / "corpus", {"a.mp4": None})
    cache = encode(tmp_path, table, clips={"frames": 9, "select": "all"})
    loader = latentcache.LatentLoader(cache.storage.url, batch_size=2, shuffle=False, frames=5)
    batch = next(iter(loader))
    assert batch["segment"].tolist() == [[0, 1, 2, 3, 4], [9, 10, 11, 12, 13]]
    dataset = cache.dataset(frames=5, numpy=True)
    assert dataset[1]["segment"].tolist() == [9, 10, 11, 12, 13]
    collated = latentcache.collate([dataset[0], dataset[1]])
    assert np.array_equal(collated["segment"], batch["segment"].numpy())
    columns = latentcache.LatentLoader(cache.storage.url, columns=["segment"], batch_size=1)
    assert set(next(iter(columns))) == {"latents", "segment", "bucket"}


def test_only_lists_of_numbers_are_values_per_frame(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    for value in ("text", 3, ["a", "b"], {"x": 1}, [{"x": 1}], [[[1.0]]]):
        path.write_text(json.dumps({"video": "a.mp4", "actions": value}) + "\n")
        with pytest.raises(CorpusError, match="list of numbers"):
            read(path, per_frame=["actions"])
    path.write_text(json.dumps({"video": "a.mp4", "actions": [1]}) + "\n")
    for names in (["frame"], ["per_frame"], ["caption"], ["actions", "actions"]):
        with pytest.raises(ConfigError, match=r"corpus\.per_frame"):
            read(path, per_frame=names)
    with pytest.raises(ConfigError, match="named twice"):
        read(path, keep=["actions"], per_frame=["actions"])


def test_a_view_cuts_them_like_the_latents(tmp_path: Path) -> None:
    table = write_corpus(tmp_path / "corpus", {"a.mp4": None, "b.mp4": None})
    cache = encode(tmp_path, table, clips={"frames": 17})
    view = latentcache.Window(frames=2, start="random", middle=True, segment=None)
    for batch in latentcache.LatentLoader(cache, batch_size=2, view=view, seed=3):
        for n, frames in enumerate(batch["frame_indices"].tolist()):
            pixels = [i for t in frames for i in range(*cache.spec.pixel_frames(t, 17))]
            assert batch["segment"][n].tolist() == pixels


@pytest.mark.slow
def test_clips_that_are_spread_have_the_values_of_their_own_frames(tmp_path: Path) -> None:
    table = write_corpus(tmp_path / "corpus", {"a.mp4": None}, kept=[list(range(FRAMES))])
    clips = {"frames": 5, "sampling": "spread", "select": "first"}
    cache = encode(tmp_path, table, corpus={"keep": ["kept"]}, clips=clips)
    spread = torch.linspace(0, FRAMES - 1, 5).long()
    assert torch.equal(cache[0]["segment"], spread)
    assert torch.equal(cache[0]["actions"][:, 1], -spread.double())
    view = latentcache.Window(frames=2, per_frame="kept", segment=None)
    with pytest.raises(ConfigError, match=r"sampling: spread.*corpus\.per_frame"):
        list(latentcache.LatentLoader(cache, batch_size=1, view=view))


@pytest.mark.slow
def test_a_replaced_file_is_named_by_resume_and_taken_in_by_precompute(tmp_path: Path) -> None:
    table = write_corpus(tmp_path / "corpus", {"a.mp4": None, "b.mp4": None})
    broken = tmp_path / "corpus/b.mp4"
    whole = write_and_break(broken)
    data = pq.read_table(table).to_pylist()
    data[1] |= {"actions": [[float(t), 0.0] for t in range(33)], "segment": [*range(33)]}
    pq.write_table(pa.Table.from_pylist(data), table)
    clips = {"frames": 5, "select": "all"}
    cache = encode(tmp_path, table, status=SOME_FAILED, clips=clips)
    assert len(cache.dataset()) < cache.table().num_rows
    broken.write_bytes(whole)
    status, printed = run_inline("resume", cache.storage.url, "--retry-failed", "--skip-changed")
    assert status == SOME_FAILED
    assert "kept     1 sources whose files have changed" in printed
    assert "their clips stay: b.mp4. To take them in, run `latentcache precompute" in printed
    rows = encode(tmp_path, table, clips=clips).table().to_pylist()
    assert {row["source"]: row["status"] for row in rows} == {"a.mp4": "ok", "b.mp4": "ok"}
