"""Windows that go on in the next clip of their source, and never across a segment."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentcache.errors import CacheError, ConfigError
from latentcache.format.shards import get_format
from latentcache.reading.cache import open_cache
from latentcache.reading.loader.loader import LatentLoader
from latentcache.reading.views.window import Window
from tests.tools.synthetic import Synthetic, write_cache

#: Three sources: of 3, 3 and 2 clips of 8 frames.
BUCKET, FRAMES, PER_SOURCE = "8x16x16", 8, 3
BUCKETS = {BUCKET: 8}


def segment(source: int, frame: int) -> int:
    """Return the scene of a frame: the first source has cuts at 5 and 16, and the others none."""
    return sum(frame >= cut for cut in (5, 16)) if source == 0 else 7


def write(url: Path, **options: Any) -> Synthetic:
    defaults = {"by_frame": True, "per_source": PER_SOURCE, "shard_clips": 2, "buckets": BUCKETS}
    return write_cache(str(url), **{**defaults, **options})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write(tmp_path_factory.mktemp("plain"), stored="moments")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Synthetic:
    return write(tmp_path_factory.mktemp("scenes"), segment=segment)


def at_of(key: str) -> tuple[int, int]:
    """Return the source of a clip, and its first frame there."""
    source, clip = divmod(int(key[-4:]), PER_SOURCE)
    return source, clip * FRAMES


def wholes(cache: Synthetic, epoch: int = 0) -> dict[int, torch.Tensor]:
    """Return the latents of whole sources, as slices of a loader's must be."""
    whole = open_cache(cache.url).dataset()
    whole.set_epoch(epoch)
    keys = sorted(cache.arrays)
    sources = itertools.groupby(keys, lambda key: at_of(key)[0])
    return {n: torch.cat([whole[key]["latents"] for key in of], dim=1) for n, of in sources}


def windows(cache: Synthetic, view: Window, **options: Any) -> list[tuple[int, tuple[int, ...]]]:
    """Return (source, frames of it) of each sample, whose latents are those of the whole source."""
    found, expected = [], wholes(cache)
    for batch in LatentLoader(cache.url, batch_size=3, view=view, **options):
        for n, key in enumerate(batch["key"]):
            source, first = at_of(key)
            frames = [first + frame for frame in batch["frame_indices"][n].tolist()]
            assert torch.equal(batch["latents"][n], expected[source][:, frames])
            assert batch["frame_indices"][n, 0] < FRAMES
            if "at" in batch:
                assert batch["at"][n].tolist() == frames
            found.append((source, tuple(frames)))
    return found


def expected_windows(lengths: list[int], frames: int, step: int = 1) -> list[Any]:
    span = (frames - 1) * step + 1
    return [
        (source, tuple(range(start, start + span, step)))
        for source, length in enumerate(lengths)
        for start in range(length - span + 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "step"), [(4, 1), (8, 1), (9, 1), (20, 1), (5, 3), (1, 1)])
def test_all_windows_of_whole_sources_come_once_each(
    frames: int, step: int, plain: Synthetic
) -> None:
    found = windows(plain, Window(frames, step=step, start="all"))
    lengths = [FRAMES * 3, FRAMES * 3, FRAMES * 2]
    assert sorted(found) == expected_windows(lengths, frames, step)


@pytest.mark.slow
def test_windows_stay_within_clips_if_told_so(plain: Synthetic) -> None:
    found = windows(plain, Window(4, start="all", run_on=False))
    assert len(found) == len(plain.arrays) * (FRAMES - 3)
    with pytest.raises(ConfigError, match=r"9 latent frames.*have only 8"):
        LatentLoader(plain.url, view=Window(9, run_on=False))


@pytest.mark.slow
def test_random_windows_begin_in_each_clip_that_they_fit_into(plain: Synthetic) -> None:
    found = windows(plain, Window(10, per_clip=2))
    begun = [(source, frames[0] // FRAMES) for source, frames in found]
    fitting = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert sorted(begun) == sorted(fitting * 2)
    assert any(frames[0] % FRAMES for _, frames in found)


@pytest.mark.slow
def test_a_failed_clip_ends_a_source_and_so_does_one_that_is_not_chosen(tmp_path: Path) -> None:
    cache = write(tmp_path, failed=[(BUCKET, 1)])
    view = Window(4, start="all")
    found = [f for batch in LatentLoader(cache.url, view=view) for f in batch["key"]]
    assert found.count(f"{BUCKET}-0000") == FRAMES - 3
    assert found.count(f"{BUCKET}-0003") == FRAMES
    chosen = [
        key
        for batch in LatentLoader(cache.url, view=view, where=f"key != '{BUCKET}-0004'")
        for key in batch["key"]
    ]
    assert chosen.count(f"{BUCKET}-0003") == FRAMES - 3


@pytest.mark.slow
def test_windows_never_go_across_a_segment(scenes: Synthetic) -> None:
    found = windows(scenes, Window(4, start="all"))
    expected = [
        (source, frames)
        for source, frames in expected_windows([24, 24, 16], 4)
        if len({segment(source, frame) for frame in frames}) == 1
    ]
    assert sorted(found) == expected
    inside = windows(scenes, Window(4, start="all", run_on=False))
    assert sorted(inside) == [
        (source, frames) for source, frames in expected if frames[0] // 8 == frames[-1] // 8
    ]
    across = windows(scenes, Window(4, start="all", segment=None))
    assert sorted(across) == expected_windows([24, 24, 16], 4)


@pytest.mark.slow
def test_first_windows_are_left_out_where_a_segment_ends_in_them(scenes: Synthetic) -> None:
    found = windows(scenes, Window(6, start="first"))
    clips = [(source, first) for source in range(3) for first in (0, 8, 16)][:-1]
    expected = [c for c in clips if c != (0, 0)]
    assert sorted((source, frames[0]) for source, frames in found) == expected


@pytest.mark.slow
def test_causal_latents_are_refused_unless_wanted(tmp_path: Path) -> None:
    cache = write(tmp_path, by_frame=False, buckets={"9x16x16": 8}, segment=lambda _, f: f // 20)
    for view in (Window(2, run_on=True), Window(3, run_on=True, start="all")):
        with pytest.raises(ConfigError, match=r"of two clips.*the frames before.*middle=True"):
            LatentLoader(cache.url, view=view)
    view = Window(3, start="all", run_on=True, middle=True)
    found = []
    for batch in LatentLoader(cache.url, view=view):
        for key, frames in zip(batch["key"], batch["frame_indices"].tolist(), strict=True):
            source, clip = divmod(int(key[-4:]), PER_SOURCE)
            found.append((source, clip * 3 + frames[0]))
    # Of each source 27 frames, whose segments end at 20: latent frames of 1, 4, 4, 1, 4, 4, 1, 4, 4.
    ends = np.cumsum([1, 4, 4] * 3)
    starts = [0, *ends[:-1].tolist()]
    lengths = [9, 9, 6]
    expected = [
        (source, n)
        for source, length in enumerate(lengths)
        for n in range(length - 2)
        if starts[n] // 20 == (ends[n + 2] - 1) // 20
    ]
    assert sorted(found) == expected


def test_a_state_says_whether_windows_go_on(plain: Synthetic) -> None:
    state = LatentLoader(plain.url, view=Window(4)).state_dict()
    assert "run_on" not in state["view"]["settings"]  # as older states have it
    LatentLoader(plain.url, view=Window(4)).load_state_dict(state)
    with pytest.raises(CacheError, match="view"):
        LatentLoader(plain.url, view=Window(4, run_on=False)).load_state_dict(state)


@pytest.mark.slow
def test_a_damaged_clip_costs_the_windows_that_reach_into_it(tmp_path: Path) -> None:
    cache = write(tmp_path, shard_clips=1, codec="none")
    place = tmp_path / get_format("zarr").path(cache.manifest.layouts()[BUCKET], 1)
    data = bytearray(place.read_bytes())
    data[3] ^= 1
    place.write_bytes(data)
    loader = LatentLoader(cache.url, batch_size=1, view=Window(4, start="all"), on_damaged="skip")
    found = [key for batch in loader for key in batch["key"]]
    assert loader.stats.num_skipped == 3 + FRAMES
    assert found


def test_what_ends_segments_must_be_a_number_per_frame(tmp_path: Path, plain: Synthetic) -> None:
    with pytest.raises(ConfigError, match=r"segment 'scene' is none.*corpus\.per_frame"):
        LatentLoader(plain.url, view=Window(4, segment="scene"))
    kept = write(tmp_path, actions=True)
    with pytest.raises(ConfigError, match="segment 'actions' is kept as it is"):
        LatentLoader(kept.url, view=Window(4, segment="actions"))
    with pytest.raises(ConfigError, match="run_on 'yes'"):
        Window(4, run_on="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("bare", [1, 2])
def test_clips_planned_without_segments_are_refused_or_left_out(bare: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"segment": lambda _, frame: frame // 4, "first_shards": 1}
    cache = write(tmp_path, bare=bare, **options)
    view = Window(4, start="all", run_on=False)
    with pytest.raises(ConfigError, match=r"segment: \d+ clips have no values.*where="):
        LatentLoader(cache.url, view=view)
    found = windows(cache, view, where="per_frame is not null")
    assert found
    assert all(frames[0] // 4 == frames[-1] // 4 for _, frames in found)


def test_segments_that_leave_no_window_are_said(tmp_path: Path) -> None:
    cache = write(tmp_path, segment=lambda _, frame: frame // 2)
    with pytest.raises(ConfigError, match=r"3 latent frames.*in one segment"):
        LatentLoader(cache.url, view=Window(3))


@pytest.mark.slow
def test_windows_of_clips_with_weights_stay_within_their_clips(plain: Synthetic) -> None:
    found = windows(plain, Window(4, start="all"), clip_weight="row")
    assert all(frames[-1] // FRAMES == frames[0] // FRAMES for _, frames in found)
    assert found
    with pytest.raises(ConfigError, match=r"by their weights.*run_on=False"):
        LatentLoader(plain.url, view=Window(4, run_on=True), clip_weight="row")
    with pytest.raises(ConfigError, match="9 latent frames"):
        LatentLoader(plain.url, view=Window(9), clip_weight="row")
