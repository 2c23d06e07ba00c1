"""Trainers' own rules, restated from their code: buckets, the sizes that they are cut out of, and frames.

Of musubi-tuner 30c658c, finetrainers f476c37, FastVideo 2f3d407, SimpleTuner bc8e6ab and diffusion-pipe
8f83dbf. Each docstring names the functions. Sizes are (width, height), as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Size = tuple[int, int]
#: Shapes of sources: usual ones, odd, tall and tiny ones, and squares or nearly so.
SOURCES: list[Size] = [
    *((w, h) for w in (17, 131, 480, 641, 720, 1080, 1920) for h in (16, 97, 481, 720, 854, 1080, 1280)),
    (1280, 720), (640, 360), (854, 480), (368, 240), (576, 1024), (1920, 817), (1998, 1080), (1080, 1350),
    (1080, 1080), (500, 510), (510, 500), (704, 768), (1000, 1004), (999, 1000), (3, 100), (100, 3),
]  # fmt: skip


def musubi_buckets(resolution: Size) -> list[Size]:
    """BucketSelector.__init__, with buckets and steps of 16."""
    area = resolution[0] * resolution[1]
    edge = int(math.sqrt(area))
    sizes = set()
    for width in range(edge // 2 - edge // 2 % 16, edge + 16, 16):
        height = area // width - area // width % 16
        sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def musubi_bucket(resolution: Size, source: Size) -> Size:
    """BucketSelector.get_bucket_resolution."""
    sizes = musubi_buckets(resolution)
    ratios = np.array([w / h for w, h in sizes])
    return sizes[int(np.abs(ratios - source[0] / source[1]).argmin())]


def musubi_covering(source: Size, bucket: Size) -> Size:
    """resize_image_to_bucket: the size before the crop."""
    scale = max(bucket[0] / source[0], bucket[1] / source[1])
    return int(source[0] * scale + 0.5), int(source[1] * scale + 0.5)


def musubi_sampled(frames: int, source_fps: float, target_fps: float) -> list[int]:
    """load_video with a source_fps: frames are dropped as the rates' quotient adds up."""
    kept, total, before = [], 0.0, -1
    for frame in range(frames):
        number = int(total)
        total += target_fps / source_fps
        if number != before:
            before = number
            kept.append(frame)
    return kept


def finetrainers_bucket(
    buckets: Sequence[tuple[int, int, int]], frames: int, source: Size
) -> tuple[int, int, int]:
    """find_nearest_video_resolution, of a video that is long enough: of those as near, the largest."""
    longest = max(bucket[0] for bucket in buckets if bucket[0] <= frames)
    ratio = source[0] / source[1]
    return min(
        (bucket for bucket in buckets if bucket[0] == longest),
        key=lambda bucket: (abs(bucket[2] / bucket[1] - ratio), -bucket[1], -bucket[2]),
    )


def fastvideo_box(source: Size, height: int, width: int) -> tuple[int, int, int, int]:
    """center_crop_th_tw without top_crop: (top, left, height, width)."""
    ratio = height / width
    is_tall = source[1] / source[0] > ratio
    h, w = (int(source[0] * ratio), source[0]) if is_tall else (source[1], int(source[1] / ratio))
    return round((source[1] - h) / 2.0), round((source[0] - w) / 2.0), h, w


def fastvideo_sampled(frames: int, fps: float, train_fps: float, count: int) -> list[int]:
    """VideoTransformStage.forward, without temporal sampling."""
    sampled: list[int] = np.arange(0, frames, fps / train_fps).astype(int)[:count].tolist()
    return sampled


#: TrainingSample._set_resolution: the sides of squares near these megapixels.
SIMPLETUNER_SQUARES = {0.25: 512, 0.5: 768, 1.0: 1024, 2.0: 1536, 4.0: 2048}


def simpletuner_sizes(megapixels: float, alignment: int, source: Size) -> tuple[Size, Size]:
    """TrainingSample.calculate_target_size without crop: the size that is cut out, and of what.

    By MultiaspectImage.calculate_new_size_by_pixel_area, for the first source of its ratio, and
    TrainingSample.correct_intermediary_square_size.
    """

    def aligned(value: float) -> int:
        return max(alignment, int(round(value / alignment) * alignment))

    named = [side for near, side in SIMPLETUNER_SQUARES.items() if abs(megapixels - near) < 0.05]
    square = aligned(named[0] if named else math.sqrt(megapixels * 1e6))
    edge = aligned(int(math.sqrt(megapixels * 1e6)))
    ratio, rounded = source[0] / source[1], round(source[0] / source[1], 2)
    width, height = aligned(edge * math.sqrt(rounded)), aligned(edge / math.sqrt(rounded))
    covering = [width, int(width / ratio)] if width < height else [int(height * ratio), height]
    if (more := width - covering[0]) > 0:
        covering = [covering[0] + more, covering[1] + int(more / ratio)]
    elif (more := height - covering[1]) > 0:
        covering = [covering[0] + int(more * ratio), covering[1] + more]
    if round(width / height, 2) == 1.0:
        width = height = square
        if covering[0] < square:
            covering = [square, square]
    return (width, height), (covering[0], covering[1])


def diffusion_pipe_ratios(settings: dict[str, Any]) -> list[float]:
    """DirectoryDataset.__init__ and dedup_and_sort: the ratios of the buckets, to 3 decimals."""
    if not settings.get("enable_ar_bucket"):
        return [1.0]
    if given := settings.get("ar_buckets"):
        ratios = [r[0] / r[1] if isinstance(r, list) else r for r in given]
    else:
        number = settings["num_ar_buckets"]
        ratios = list(np.geomspace(settings["min_ar"], settings["max_ar"], num=number))
    return sorted({round(ratio, 3) for ratio in ratios})


def diffusion_pipe_size(settings: dict[str, Any], source: Size, multiple: int = 16) -> Size:
    """DirectoryDataset._find_closest_ar_bucket, and the size by ARBucketDataset.cache_latents."""
    (given,) = settings["resolutions"]
    edge = round(math.sqrt(given[0] * given[1]) if isinstance(given, list) else given, 3)
    ratios = np.array(diffusion_pipe_ratios(settings))
    ratio = ratios[np.argmin(np.abs(np.log(source[0] / source[1]) - np.log(ratios)))]
    area = edge**2
    width = math.sqrt(area * ratio)
    return round(width / multiple) * multiple, round(area / width / multiple) * multiple


def diffusion_pipe_frames(
    frame_buckets: list[int], frames: int, fps: float, framerate: float, mode: str
) -> list[int] | None:
    """The frames that a video's clip samples; None if it is left out.

    DirectoryDataset._find_closest_ar_bucket, then convert_framerate, align_frames and extract_clips of
    PreprocessMediaFile.
    """
    import torch

    number = int(frames * framerate / fps)
    fitting = [bucket for bucket in {1, *frame_buckets} if bucket <= number]
    if not fitting or max(fitting) == 1:
        return None
    count = (max(fitting) - 1) // 4 * 4 + 1
    start = int((number - count) / 2) if mode == "single_middle" else 0
    sampled: list[int] = torch.linspace(0, frames - 1, number).to(torch.int32).tolist()
    return sampled[start : start + count]
