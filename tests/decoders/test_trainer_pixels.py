"""Presets give the pixels that trainers would encode: each trainer's rule, done with its own libraries.

Sizes and frames are those of `tests.tools.trainer_rules`; test_trainer_sizes.py compares these over grids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from latentcache.config.clips import ClipsConfig
from latentcache.decoders import opencv, pyav
from latentcache.decoders.clip import decode_clip
from latentcache.decoders.frames import Frame, fit_frame
from latentcache.decoders.resize import resize_frame
from latentcache.decoders.source import Source
from latentcache.planning.plan import num_available, select_starts
from tests.tools import trainer_rules
from tests.tools.videos import SHARED_VIDEOS, needs_shared_videos

cv2 = pytest.importorskip("cv2", reason="opencv-python-headless is not installed")

Video = list[Frame]
Rule = Callable[[Video, float], list[np.ndarray[Any, Any]]]


def noise(height: int, width: int, seed: int = 0) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("source", "target"),
    [((97, 131), (40, 61)), ((64, 96), (32, 48)), ((90, 60), (30, 20)), ((50, 50), (49, 50))],
)  # fmt: skip
def test_area_is_opencvs_to_the_last_bit(source: tuple[int, int], target: tuple[int, int]) -> None:
    frame = noise(*source)
    theirs = cv2.resize(frame, target[::-1], interpolation=cv2.INTER_AREA)
    assert np.array_equal(opencv.area(frame, target), theirs)


@pytest.mark.parametrize(
    ("source", "target"),
    [((97, 131), (40, 61)), ((64, 96), (32, 48)), ((33, 21), (71, 90)), ((4, 247), (130, 417))],
)  # fmt: skip
def test_linear_is_opencvs_to_the_last_bit(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    frame = noise(*source)
    theirs = cv2.resize(frame, target[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(opencv.linear(frame, target), theirs)


@pytest.mark.long
def test_both_filters_are_opencvs_at_a_thousand_sizes() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        height, width = map(int, rng.integers(1, 300, 2))
        frame = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        less = (int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1)))
        theirs = cv2.resize(frame, less[::-1], interpolation=cv2.INTER_AREA)
        assert np.array_equal(opencv.area(frame, less), theirs), (frame.shape, less)
        size = (int(rng.integers(1, 400)), int(rng.integers(1, 400)))
        theirs = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(opencv.linear(frame, size), theirs), (frame.shape, size)


def cut(frame: Any, size: tuple[int, int]) -> Any:
    """Cut the centre [..., h, w, 3] of (width, height), rounded down to the left and up."""
    top, left = (frame.shape[-3] - size[1]) // 2, (frame.shape[-2] - size[0]) // 2
    return frame[..., top : top + size[1], left : left + size[0], :]


def musubi_frame(frame: Frame, bucket: tuple[int, int]) -> Frame:
    """resize_image_to_bucket of musubi-tuner. bucket: (width, height)."""
    source = (frame.shape[1], frame.shape[0])
    if bucket == source:
        return frame
    size = trainer_rules.musubi_covering(source, bucket)
    if max(b / s for b, s in zip(bucket, source, strict=True)) > 1:
        resized = np.array(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
    else:
        resized = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cut(resized, bucket))


def musubi_rule(resolution: tuple[int, int], count: int, source_fps: float | None) -> Rule:
    """load_video, then VideoDataset.retrieve_latent_cache_batches with "uniform" of musubi-tuner."""

    def rule(video: Video, _: float) -> list[np.ndarray[Any, Any]]:
        sampled = video
        if source_fps is not None:
            sampled = [video[i] for i in trainer_rules.musubi_sampled(len(video), source_fps, 16.0)]
        height, width = sampled[0].shape[:2]
        bucket = trainer_rules.musubi_bucket(resolution, (width, height))
        starts = np.linspace(0, len(sampled) - count, 2, dtype=int)
        return [np.stack([musubi_frame(f, bucket) for f in sampled[s : s + count]]) for s in starts]

    return rule


def finetrainers_rule(buckets: list[tuple[int, int, int]], mode: str) -> Rule:
    """resize_to_nearest_bucket_video of finetrainers."""

    def rule(video: Video, _: float) -> list[np.ndarray[Any, Any]]:
        pixels = torch.from_numpy(np.stack(video)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        n, _, height, width = pixels.shape
        frames, *near = trainer_rules.finetrainers_bucket(buckets, n, (width, height))
        pixels = pixels[torch.linspace(0, n - 1, frames).long()]
        scale = max(near[0] / height, near[1] / width)
        size = tuple(near) if mode == "bicubic" else (int(height * scale), int(width * scale))
        filtered = "bicubic" if mode == "bicubic" else "bilinear"
        pixels = torch.nn.functional.interpolate(
            pixels, size=size, mode=filtered, align_corners=False
        )
        whole = ((pixels + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        return [cut(whole, (near[1], near[0]))]

    return rule


def fastvideo_rule(count: int, size: tuple[int, int], train_fps: float) -> Rule:
    """VideoTransformStage.forward and CenterCropResizeVideo of FastVideo."""

    def rule(video: Video, fps: float) -> list[np.ndarray[Any, Any]]:
        indices = trainer_rules.fastvideo_sampled(len(video), fps, train_fps, count)
        pixels = torch.from_numpy(np.stack([video[i] for i in indices])).permute(0, 3, 1, 2)
        box = trainer_rules.fastvideo_box((pixels.shape[-1], pixels.shape[-2]), *size)
        top, left, height, width = box
        resized = torch.nn.functional.interpolate(
            pixels[..., top : top + height, left : left + width],
            size=size, mode="bilinear", align_corners=True, antialias=True,
        )  # fmt: skip
        return [resized.permute(0, 2, 3, 1).numpy()]

    return rule


def simpletuner_rule(megapixels: float, alignment: int, count: int) -> Rule:
    """VAECache._process_images_in_batch of SimpleTuner.

    BatchedTrainingSamples.process_aspect_grouped_images stretches a video to its target size, and
    TrainingSample.resize resizes that to the intermediary one, out of which CenterCropping.crop cuts.
    """

    def rule(video: Video, _: float) -> list[np.ndarray[Any, Any]]:
        height, width = video[0].shape[:2]
        target, whole = trainer_rules.simpletuner_sizes(megapixels, alignment, (width, height))
        frames = []
        for frame in video[:count]:
            stretched = cv2.resize(frame, target, interpolation=cv2.INTER_LINEAR)
            frames.append(cv2.resize(stretched, whole, interpolation=cv2.INTER_LINEAR))
        return [cut(np.stack(frames), target)]

    return rule


def diffusion_pipe_rule(settings: dict[str, Any], buckets: list[int], mode: str) -> Rule:
    """PreprocessMediaFile.__call__ and convert_crop_and_resize of diffusion-pipe."""

    def rule(video: Video, fps: float) -> list[np.ndarray[Any, Any]]:
        height, width = video[0].shape[:2]
        size = trainer_rules.diffusion_pipe_size(settings, (width, height))
        indices = trainer_rules.diffusion_pipe_frames(buckets, len(video), fps, 16.0, mode)
        assert indices is not None
        chosen = [Image.fromarray(video[i]) for i in indices]
        return [np.stack([np.array(ImageOps.fit(image, size)) for image in chosen])]

    return rule


def spaced_ratios(edge: int) -> dict[str, Any]:
    return {
        "resolutions": [edge], "enable_ar_bucket": True, "min_ar": 0.5, "max_ar": 2.0, "num_ar_buckets": 9
    }  # fmt: skip


#: The preset, the trainer's rule, and by how many levels they may differ.
CASES: Mapping[str, tuple[dict[str, Any], Rule, float]] = {
    **{
        f"musubi {w}x{h} {fps}": (
            {"preset": "musubi", "resolution": [w, h], "target_frames": [5],
             "frame_extraction": "uniform", "frame_sample": 2, "source_fps": fps},
            musubi_rule((w, h), 5, fps), 0,
        )
        for w, h, fps in ((240, 135, None), (240, 135, 30.0), (1111, 640, 25.0))
    },
    "finetrainers bicubic": (
        {"preset": "finetrainers",
         "video_resolution_buckets": ["5x128x208", "5x208x128", "9x128x208", "9x208x128"]},
        finetrainers_rule([(5, 128, 208), (5, 208, 128), (9, 128, 208), (9, 208, 128)], "bicubic"), 0.5,
    ),
    "finetrainers as near": (
        {"preset": "finetrainers", "video_resolution_buckets": ["9x64x64", "9x128x128"]},
        finetrainers_rule([(9, 64, 64), (9, 128, 128)], "bicubic"), 0.5,
    ),
    "finetrainers resize_crop": (
        {"preset": "finetrainers", "video_resolution_buckets": [[9, 160, 96]],
         "reshape_mode": "resize_crop"},
        finetrainers_rule([(9, 160, 96)], "resize_crop"), 0.5,
    ),
    "fastvideo less": (
        {"preset": "fastvideo", "num_frames": 9, "max_height": 112, "max_width": 208, "train_fps": 12},
        fastvideo_rule(9, (112, 208), 12), 0,
    ),
    "fastvideo more": (
        {"preset": "fastvideo", "num_frames": 5, "max_height": 720, "max_width": 1360, "train_fps": 16},
        fastvideo_rule(5, (720, 1360), 16), 0,
    ),
    "simpletuner less": (
        {"preset": "simpletuner", "resolution": 250, "aspect_bucket_alignment": 16, "num_frames": 9},
        simpletuner_rule(0.0625, 16, 9), 0,
    ),
    "simpletuner more": (
        {"preset": "simpletuner", "resolution": 900, "num_frames": 5}, simpletuner_rule(0.81, 64, 5), 0,
    ),
    "simpletuner squares of another area": (
        {"preset": "simpletuner", "resolution": 0.52, "resolution_type": "area", "num_frames": 5},
        simpletuner_rule(0.52, 64, 5), 0,
    ),
    **{
        f"diffusion-pipe {edge}": (
            {"preset": "diffusion-pipe", **spaced_ratios(edge), "frame_buckets": [1, 11],
             "video_clip_mode": mode},
            diffusion_pipe_rule(spaced_ratios(edge), [11], mode), 0,
        )
        for edge, mode in ((176, "single_middle"), (512, "single_beginning"))
    },
}  # fmt: skip
NAMES = ("cogvideo_1.mp4", "hiker_tiny.mp4", "nasa_audio.mp4", "horse.mp4", "vidtok_256.mp4")


def opened(name: str) -> Source:
    return Source(str(SHARED_VIDEOS / name), "video", {}, None, lambda: None)


def clips_of(clips: ClipsConfig, source: Source) -> Iterator[Frame]:
    """Yield the pixels of every clip, planned and decoded as in a run."""
    facts = vars(pyav.probe(source.path))
    height, width = clips.size_of(facts["height"], facts["width"])
    available = num_available(clips, facts)
    count = clips.counts_that_fit(available)[0]
    for start in select_starts(clips, available, count, "a", facts["frames"]):
        out = np.zeros((count, height, width, 3), np.uint8)
        request = {"start": int(start), "frames": count, "fps": clips.fps, **clips.pixel_rules()}
        decode_clip(source.reader(), request, out)
        yield out


def check(case: str, name: str) -> None:
    settings, rule, levels = CASES[case]
    source = opened(name)
    try:
        reader = source.reader()
        with av.open(source.path) as container:  # as the trainers that look at it
            stream: Any = container.streams.best("video")
            rate = float(stream.average_rate)
        video = [f.copy() for f in reader.frames(np.arange(len(reader.times_s)))][:400]
        theirs = rule(video, rate)
        ours = list(clips_of(ClipsConfig.model_validate(settings), source))
    finally:
        source.close()
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        kept = np.asarray(other, np.float32).clip(0, 255)
        assert np.abs(mine.astype(np.float32) - kept).max() <= levels + (1e-3 if levels else 0)


@needs_shared_videos
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_preset_gives_the_trainers_pixels(case: str) -> None:
    check(case, NAMES[1])


@needs_shared_videos
@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_a_preset_gives_the_trainers_pixels_of_every_video(case: str, name: str) -> None:
    check(case, name)


@pytest.mark.parametrize("fit", ["cover", "stretch", "crop_first"])
def test_odd_sizes_and_narrow_pictures_fill_the_bucket(fit: str) -> None:
    clips = ClipsConfig.model_validate(
        {"frames": 1, "size": [31, 17], "resize": {"filter": "bilinear", "fit": fit}}
    )
    assert clips.resize is not None
    for shape in ((1, 1), (3, 200), (200, 3), (31, 17), (30, 18)):
        frame, out = np.full((*shape, 3), 77, np.uint8), np.zeros((31, 17, 3), np.uint8)
        resize_frame(clips.resize, frame, out)
        assert (out == 77).all()


def test_resize_with_its_defaults_is_what_there_was_before() -> None:
    frame = noise(97, 131)
    old, new = np.zeros((48, 80, 3), np.uint8), np.zeros((48, 80, 3), np.uint8)
    rules = ClipsConfig.model_validate({"frames": 1, "size": [48, 80], "resize": {}}).resize
    assert rules is not None
    fit_frame(frame, old, "bicubic")
    resize_frame(rules, frame, new)
    assert np.array_equal(old, new)
