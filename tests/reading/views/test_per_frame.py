"""Lists with an entry per frame, cut like the latents."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from latentcache.core.records import Bucket
from latentcache.core.spec import FrameRule, LatentSpec
from latentcache.errors import ConfigError
from latentcache.reading.views.per_frame import picked_values
from latentcache.reading.views.protocol import Pick, Record
from latentcache.reading.views.window import Window
from tests.tools.synthetic import make_spec

CAUSAL = make_spec()
BY_FRAME = dataclasses.replace(
    CAUSAL, stride=(1, 8, 8), frame_rule=FrameRule(), pixel_layout="BCHW"
)


def record(spec: LatentSpec, frames: int, **columns: Any) -> Record:
    columns = {"start": 0, "fps": None, **columns}
    num_frames = -(-frames // spec.stride[0])
    return Record(
        key="k",
        bucket=Bucket(frames=frames, height=16, width=16),
        number=0,
        num_frames=num_frames,
        spec=spec,
        read_column=columns.get,
    )


def test_entries_of_the_clips_own_frames() -> None:
    clip = record(BY_FRAME, 6, actions=[10, 11, 12, 13, 14, 15])
    assert torch.equal(clip.per_frame("actions", [1, 3]), torch.tensor([11, 13]))
    clip = record(BY_FRAME, 3, actions=["a", "b", "c"])
    assert clip.per_frame("actions", [2, 0]) == ["c", "a"]


def test_entries_of_the_sources_frames_begin_where_the_clip_does() -> None:
    clip = record(BY_FRAME, 4, actions=[float(n) for n in range(20)], start=8)
    assert torch.equal(clip.per_frame("actions", [0, 3]), torch.tensor([8.0, 11.0]))


def test_frames_that_are_spread_over_a_source_are_no_part_of_a_list() -> None:
    clip = record(BY_FRAME, 4, actions=list(range(20)))
    spread = dataclasses.replace(clip, sampling="spread")
    with pytest.raises(ConfigError, match=r"sampling: spread.* spread over .* corpus.per_frame"):
        spread.per_frame("actions", [0])
    own = dataclasses.replace(record(BY_FRAME, 4, actions=[3, 4, 5, 6]), sampling="spread")
    assert torch.equal(own.per_frame("actions", [1]), torch.tensor([4]))


def test_entries_are_grouped_by_latent_frames() -> None:
    clip = record(CAUSAL, 9, actions=list(range(9)))
    assert clip.per_frame("actions", [0, 2]) == [[0], [5, 6, 7, 8]]
    clip = record(CAUSAL, 9, actions=[0, 1, 2])  # one per latent frame
    assert torch.equal(clip.per_frame("actions", [2]), torch.tensor([2]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"actions": [1, 2]}, "2 entries, but the clip has 4 frames"),
        ({"actions": list(range(20)), "fps": 8.0}, r"clips.fps \(8.0\) leaves out"),
        ({"actions": "jump"}, "which is no list"),
        ({}, "is None, which is no list"),
    ],
)
def test_lists_that_fit_no_frames_are_refused(columns: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        record(BY_FRAME, 4, **columns).per_frame("actions", [0])


def test_a_window_cuts_columns_with_its_latents() -> None:
    clip = record(BY_FRAME, 8, actions=list(range(8)))
    view = Window(3, step=2, per_frame="actions")
    pick = view.pick(clip, torch.Generator().manual_seed(1))
    made = view.make(clip, {"latents": torch.zeros(1)}, pick)
    assert torch.equal(made["actions"], made["frame_indices"])
    assert view.make(clip, {"latents": torch.zeros(1)}, Pick(frames=[5]))["actions"].tolist() == [5]


def test_tensors_are_cut_like_lists() -> None:
    values = torch.arange(18).view(9, 2)
    clip = record(CAUSAL, 9, actions=values)
    first, last = clip.per_frame("actions", [0, 2])
    assert torch.equal(first, values[:1])
    assert torch.equal(last, values[5:9])
    picked = picked_values(clip, "actions", Pick(frames=[0, 2]))
    assert picked is not None
    assert torch.equal(picked, values[[0, 5, 6, 7, 8]])
    assert picked_values(record(CAUSAL, 9, actions=None), "actions", Pick(frames=[0])) is None
    assert picked_values(clip, "actions", Pick()) is values
    clip = record(BY_FRAME, 9, actions=values)
    assert torch.equal(clip.per_frame("actions", [3, 1]), values[[3, 1]])
