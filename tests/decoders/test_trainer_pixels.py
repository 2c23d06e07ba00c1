"""Presets give the pixels that trainers would encode: each trainer's rule, done with its own libraries."""

from __future__ import annotations

import math
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


def musubi_frame(frame: Frame, bucket: tuple[int, int]) -> Frame:
    """Resize as musubi-tuner's resize_image_to_bucket. bucket: (width, height)."""
    height, width = frame.shape[:2]
    if bucket == (width, height):
        return frame
    scale = max(bucket[0] / width, bucket[1] / height)
    width, height = int(width * scale + 0.5), int(height * scale + 0.5)
    if scale > 1:
        image = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
        frame = np.array(image)
    else:
        frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    left, top = (width - bucket[0]) // 2, (height - bucket[1]) // 2
    return frame[top : top + bucket[1], left : left + bucket[0]]


def musubi_bucket(resolution: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    area = resolution[0] * resolution[1]
    edge = int(math.sqrt(area))
    sizes = set()
    for width in range(edge // 2 - edge // 2 % 16, edge + 16, 16):
        height = area // width - area // width % 16
        sizes |= {(width, height), (height, width)}
    ordered = sorted(sizes)
    ratios = np.array([w / h for w, h in ordered])
    return ordered[int(np.abs(ratios - size[0] / size[1]).argmin())]


def musubi_sampled(video: Video, source_fps: float, target_fps: float) -> Video:
    kept, total, before = [], 0.0, -1
    for frame in video:
        number = int(total)
        total += target_fps / source_fps
        if number != before:
            before = number
            kept.append(frame)
    return kept


def musubi_rule(resolution: tuple[int, int], count: int, source_fps: float | None) -> Rule:
    def rule(video: Video, _: float) -> list[np.ndarray[Any, Any]]:
        sampled = video if source_fps is None else musubi_sampled(video, source_fps, 16.0)
        height, width = sampled[0].shape[:2]
        bucket = musubi_bucket(resolution, (width, height))
        starts = np.linspace(0, len(sampled) - count, 2, dtype=int)
        return [np.stack([musubi_frame(f, bucket) for f in sampled[s : s + count]]) for s in starts]

    return rule


def finetrainers_rule(buckets: list[tuple[int, int, int]], mode: str) -> Rule:
    def rule(video: Video, _: float) -> list[np.ndarray[Any, Any]]:
        pixels = torch.from_numpy(np.stack(video)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        n, _, height, width = pixels.shape
        frames = max(b[0] for b in buckets if b[0] <= n)
        near = min(
            (b for b in buckets if b[0] == frames), key=lambda b: abs(b[2] / b[1] - width / height)
        )
        pixels = pixels[torch.linspace(0, n - 1, frames).long()]
        if mode == "bicubic":
            pixels = torch.nn.functional.interpolate(
                pixels, size=near[1:], mode="bicubic", align_corners=False
            )
        else:
            scale = max(near[1] / height, near[2] / width)
            size = (int(height * scale), int(width * scale))
            pixels = torch.nn.functional.interpolate(
                pixels, size=size, mode="bilinear", align_corners=False
            )
            top, left = (size[0] - near[1]) // 2, (size[1] - near[2]) // 2
            pixels = pixels[:, :, top : top + near[1], left : left + near[2]]
        return [((pixels + 1) * 127.5).permute(0, 2, 3, 1).numpy()]

    return rule


def fastvideo_rule(count: int, size: tuple[int, int], train_fps: float) -> Rule:
    def rule(video: Video, fps: float) -> list[np.ndarray[Any, Any]]:
        indices = np.arange(0, len(video), fps / train_fps).astype(int)[:count]
        pixels = torch.from_numpy(np.stack([video[i] for i in indices])).permute(0, 3, 1, 2)
        height, width = pixels.shape[-2:]
        ratio = size[0] / size[1]
        is_tall = height / width > ratio
        new = (int(width * ratio), width) if is_tall else (height, int(height / ratio))
        top, left = round((height - new[0]) / 2.0), round((width - new[1]) / 2.0)
        resized = torch.nn.functional.interpolate(
            pixels[..., top : top + new[0], left : left + new[1]],
            size=size, mode="bilinear", align_corners=True, antialias=True,
        )  # fmt: skip
        return [resized.permute(0, 2, 3, 1).numpy()]

    return rule


def simpletuner_rule(edge: int, alignment: int, count: int) -> Rule:
    def rule(video: Video, _: float) -> list[np.ndarray[Any, Any]]:
        def rounded(value: float) -> int:
            return max(alignment, int(round(value / alignment) * alignment))

        height, width = video[0].shape[:2]
        aspect = round(width / height, 2)
        side = rounded(int(math.sqrt(edge**2 / 1e6 * 1e6)))
        target_w, target_h = rounded(side * math.sqrt(aspect)), rounded(side / math.sqrt(aspect))
        if target_w < target_h:
            w, h = target_w, int(target_w / aspect)
        else:
            w, h = int(target_h * aspect), target_h
        if target_w > w:
            more = target_w - w
            w, h = w + more, h + int(more / aspect)
        elif target_h > h:
            more = target_h - h
            w, h = w + int(more * aspect), h + more
        left, top = max(0, int((w - target_w) / 2)), max(0, int((h - target_h) / 2))
        frames = [cv2.resize(f, (w, h), interpolation=cv2.INTER_LINEAR) for f in video[:count]]
        return [np.stack(frames)[:, top : top + target_h, left : left + target_w]]

    return rule


def diffusion_pipe_rule(area: int, ratios: list[float], count: int, mode: str) -> Rule:
    def rule(video: Video, fps: float) -> list[np.ndarray[Any, Any]]:
        number = int(len(video) * 16 / fps)
        indices = torch.linspace(0, len(video) - 1, number).to(torch.int32).tolist()
        height, width = video[0].shape[:2]
        logs = np.log(np.array(ratios))
        ratio = ratios[int(np.argmin(np.abs(np.log(width / height) - logs)))]
        w = math.sqrt(area * ratio)
        size = (round(w / 16) * 16, round(area / w / 16) * 16)
        start = int((number - count) / 2) if mode == "single_middle" else 0
        chosen = [video[i] for i in indices[start : start + count]]
        return [np.stack([np.array(ImageOps.fit(Image.fromarray(f), size)) for f in chosen])]

    return rule


RATIOS = np.geomspace(0.5, 2.0, num=7).tolist()
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
        simpletuner_rule(250, 16, 9), 0,
    ),
    "simpletuner more": (
        {"preset": "simpletuner", "resolution": 900, "num_frames": 5}, simpletuner_rule(900, 64, 5), 0,
    ),
    **{
        f"diffusion-pipe {edge}": (
            {"preset": "diffusion-pipe", "resolutions": [edge], "enable_ar_bucket": True, "min_ar": 0.5,
             "max_ar": 2.0, "num_ar_buckets": 7, "frame_buckets": [1, 9], "video_clip_mode": mode},
            diffusion_pipe_rule(edge * edge, RATIOS, 9, mode), 0,
        )
        for edge, mode in ((200, "single_middle"), (850, "single_beginning"))
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
    count = next(n for n in clips.frame_counts if n <= available)
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
