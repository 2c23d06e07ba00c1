"""Presets give the sizes and frames of the trainers' own rules, over grids of sources and settings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from latentcache.config.clips import ClipsConfig
from latentcache.decoders.resize import geometry
from latentcache.decoders.sampling import clip_frames
from latentcache.planning.plan import num_available, select_starts
from tests.tools import trainer_rules
from tests.tools.trainer_rules import SOURCES

Size = tuple[int, int]
#: Of videos, in frames per second.
RATES = (8.0, 16.0, 23.976023976, 25.0, 29.97002997, 60.0)
LENGTHS = (*range(1, 60), 77, 81, 100, 131, 250)


def preset(name: str, **settings: Any) -> ClipsConfig:
    return ClipsConfig.model_validate({"preset": name, **settings})


def bucket(clips: ClipsConfig, source: Size) -> Size:
    """Return the (width, height) of a source's clips."""
    height, width = clips.size_of(source[1], source[0])
    return width, height


def covering(clips: ClipsConfig, source: Size) -> tuple[Size, Size]:
    """Return the (width, height) out of which the clip is cut, and where (left, top)."""
    assert clips.resize is not None
    plan = geometry(clips.resize, source[::-1], clips.size_of(source[1], source[0]))
    return (plan.size[1], plan.size[0]), (plan.crop[1], plan.crop[0])


def sampled(clips: ClipsConfig, frames: int, fps: float) -> list[list[int]]:
    """Return which frames the clips of a video of so many sample."""
    source = {"frames": frames, "fps": fps, "duration_s": frames / fps}
    available = num_available(clips, source)
    fitting = clips.counts_that_fit(available)
    times_s = np.arange(frames) / fps
    return [
        clip_frames(
            clips.sampling, times_s, frames / fps, int(start), count, clips.fps, clips.source_fps or fps
        ).tolist()
        for count in (fitting if clips.lengths == "each" else fitting[:1])
        for start in select_starts(clips, available, count, "a", frames)
    ]  # fmt: skip


RESOLUTIONS = [
    *(("pixel_area", edge) for edge in (100, 200, 240, 256, 300, 480, 512, 544, 576, 640, 700, 704, 720)),
    *(("pixel_area", edge) for edge in (768, 800, 960, 1000, 1024, 1280, 1400, 1440, 2000, 2048)),
    *(("area", mp) for mp in (0.1, 0.2, 0.25, 0.29, 0.2965, 0.46, 0.5, 0.52, 0.549, 0.56, 1.0, 1.04)),
    *(("area", mp) for mp in (1.1, 1.96, 2.0, 2.3, 4.0)),
]  # fmt: skip


@pytest.mark.parametrize("alignment", [16, 32, 64])
def test_simpletuner_cuts_the_same_part_of_the_same_size(alignment: int) -> None:
    for kind, resolution in RESOLUTIONS:
        clips = preset(
            "simpletuner", resolution=resolution, resolution_type=kind, num_frames=5,
            aspect_bucket_alignment=alignment,
        )  # fmt: skip
        megapixels = resolution**2 / 1e6 if kind == "pixel_area" else resolution
        for source in SOURCES:
            target, whole = trainer_rules.simpletuner_sizes(megapixels, alignment, source)
            where = (kind, resolution, source)
            crop = tuple(max(0, (w - t) // 2) for w, t in zip(whole, target, strict=True))
            assert bucket(clips, source) == target, where
            assert covering(clips, source) == (whole, crop), where


BUCKETS: list[list[tuple[int, int, int]]] = [
    [(49, 256, 256), (49, 512, 512)],
    [(49, 320, 480), (49, 480, 720)],
    [(49, 512, 512), (49, 480, 832), (49, 1024, 1024)],
    [(5, 256, 384), (5, 384, 256), (5, 512, 768), (5, 768, 512)],
    [(17, 480, 832), (17, 832, 480), (49, 832, 480), (49, 480, 832)],
]


@pytest.mark.parametrize("buckets", BUCKETS, ids=str)
def test_finetrainers_takes_the_largest_of_buckets_as_near(
    buckets: list[tuple[int, int, int]],
) -> None:
    clips = preset("finetrainers", video_resolution_buckets=buckets)
    for source, frames in itertools.product(SOURCES, (5, 16, 17, 48, 49, 100)):
        if frames < min(bucket[0] for bucket in buckets):
            continue
        theirs = trainer_rules.finetrainers_bucket(buckets, frames, source)
        ours = clips.size_of(source[1], source[0])
        assert (clips.counts_that_fit(frames)[0], *ours) == theirs, (source, frames)


SPACED = [
    {"enable_ar_bucket": True, "min_ar": low, "max_ar": high, "num_ar_buckets": number}
    for low, high in ((0.5, 2.0), (0.4, 2.5), (0.25, 4.0), (0.75, 1.333))
    for number in (1, 4, 5, 7, 9)
]
LISTED = [
    {"enable_ar_bucket": True, "ar_buckets": ratios}
    for ratios in ([[16, 9]], [[4, 3], [16, 9], [21, 9], [9, 16]], [1.778, 0.5625], [1.0, 1.0004])
]


@pytest.mark.parametrize("multiple", [16, 32])
def test_diffusion_pipe_has_the_same_buckets(multiple: int) -> None:
    pairs = [[1280, 720], [960, 544], [832, 480], [848, 480]]
    resolutions = [*range(256, 1281, 16), *pairs]
    for resolution, ratios in itertools.product(resolutions, [{}, *SPACED, *LISTED]):
        settings = {"resolutions": [resolution], **ratios}
        clips = preset(
            "diffusion-pipe", frame_buckets=[33], pixels_round_to_multiple=multiple, **settings
        )
        for source in SOURCES[::5]:
            theirs = trainer_rules.diffusion_pipe_size(settings, source, multiple)
            assert bucket(clips, source) == theirs, (settings, source)


@pytest.mark.parametrize("mode", ["single_beginning", "single_middle"])
@pytest.mark.parametrize(
    "frame_buckets", [[1, 33], [36], [20, 36, 50], [33, 36], [34, 36], [5, 17, 49]], ids=str
)
def test_diffusion_pipe_samples_the_same_frames(frame_buckets: list[int], mode: str) -> None:
    for rate in (16, 24):
        clips = preset(
            "diffusion-pipe", resolutions=[512], frame_buckets=frame_buckets, video_clip_mode=mode,
            framerate=rate,
        )  # fmt: skip
        for frames, fps in itertools.product(LENGTHS, RATES):
            theirs = trainer_rules.diffusion_pipe_frames(frame_buckets, frames, fps, rate, mode)
            expected = [] if theirs is None else [theirs]
            assert sampled(clips, frames, fps) == expected, (frames, fps, rate)


@pytest.mark.parametrize("resolution", [(960, 544), (240, 135), (1111, 640), (512, 512), (64, 48)])
def test_musubi_cuts_the_same_part_of_the_same_size(resolution: Size) -> None:
    clips = preset("musubi", resolution=resolution)
    for source in SOURCES:
        theirs = trainer_rules.musubi_bucket(resolution, source)
        whole = trainer_rules.musubi_covering(source, theirs)
        crop = tuple((w - t) // 2 for w, t in zip(whole, theirs, strict=True))
        assert bucket(clips, source) == theirs, source
        assert covering(clips, source) == (whole, crop), source


@pytest.mark.parametrize("source_fps", [None, 25.0, 30.0, 60.0])
@pytest.mark.parametrize(
    "extraction",
    [
        {"frame_extraction": "head"},
        {"frame_extraction": "chunk"},
        {"frame_extraction": "slide", "frame_stride": 3},
        {"frame_extraction": "uniform", "frame_sample": 1},
        {"frame_extraction": "uniform", "frame_sample": 4},
    ],
    ids=str,
)
def test_musubi_samples_the_same_frames(
    extraction: Mapping[str, Any], source_fps: float | None
) -> None:
    """load_video and VideoDataset.retrieve_latent_cache_batches."""
    rate = {} if source_fps is None else {"source_fps": source_fps}
    clips = preset("musubi", target_frames=[1, 7, 26], **extraction, **rate)
    for frames in LENGTHS:
        kept = list(range(frames))
        if source_fps is not None:
            kept = trainer_rules.musubi_sampled(frames, source_fps, 16.0)
        theirs = []
        for count in (1, 5, 25):
            last = len(kept) - count
            if last < 0:
                continue
            starts = {
                "head": [0],
                "chunk": range(0, last + 1, count),
                "slide": range(0, last + 1, extraction.get("frame_stride", 1)),
                "uniform": np.linspace(0, last, extraction.get("frame_sample", 1), dtype=int),
            }[extraction["frame_extraction"]]
            theirs += [kept[s : s + count] for s in starts]
        unique = sorted({tuple(clip) for clip in theirs})
        assert sorted(map(tuple, sampled(clips, frames, 30.0))) == unique, frames


@pytest.mark.parametrize("size", [(480, 832), (720, 1280), (256, 256), (832, 480), (481, 833)])
def test_fastvideo_crops_the_same_part(size: Size) -> None:
    clips = preset("fastvideo", num_frames=5, max_height=size[0], max_width=size[1])
    assert clips.resize is not None
    for source in SOURCES:
        theirs = trainer_rules.fastvideo_box(source, *size)
        assert geometry(clips.resize, source[::-1], size).box == theirs, source


@pytest.mark.parametrize("train_fps", [8, 12, 16, 24, 30])
def test_fastvideo_samples_the_same_frames(train_fps: int) -> None:
    clips = preset("fastvideo", num_frames=17, max_height=64, max_width=64, train_fps=train_fps)
    for frames, fps in itertools.product(LENGTHS, RATES):
        theirs = trainer_rules.fastvideo_sampled(frames, fps, train_fps, 17)
        expected = [theirs] if len(theirs) == 17 else []
        assert sampled(clips, frames, fps) == expected, (frames, fps)
