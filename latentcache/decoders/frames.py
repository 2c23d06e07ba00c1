"""Which frames a clip samples, and how a frame becomes the bucket's size. Pure but for torch's resize."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from latentcache.errors import ClipError

Frame = npt.NDArray[np.uint8]

#: Sampling instants within a microsecond after the last frame's end do not count as frames.
TIME_TOLERANCE_S = 1e-6


def num_sampled_frames(frames: int, duration_s: float, fps: float | None) -> int:
    """Return how many frames a source gives: all of them, or one every 1/fps s of its duration."""
    if fps is None or frames == 0:
        return frames
    return max(1, math.ceil((duration_s - TIME_TOLERANCE_S) * fps))


def select_frames(
    times_s: npt.NDArray[np.float64], end_s: float, start: int, frames: int, fps: float | None
) -> npt.NDArray[np.int64]:
    """Return the indices [frames] of the source frames that a clip samples, in order.

    times_s: presentation times of the source's frames, ascending. Sampled frame j is the frame whose
    presentation time is nearest to times_s[0] + j / fps (the earlier of two as near), or frame j where
    fps is None. Raises ClipError("truncated") where the source ends before the clip does.
    """
    available = num_sampled_frames(len(times_s), end_s - float(times_s[0]), fps)
    if start + frames > available:
        raise ClipError(
            "truncated",
            f"the clip needs sampled frames {start} to {start + frames}, and the file has {available}",
        )
    return nearest_frames(times_s, start, frames, fps)


def nearest_frames(
    times_s: npt.NDArray[np.float64], start: int, frames: int, fps: float | None
) -> npt.NDArray[np.int64]:
    """Return what `select_frames` does of a source that is long enough."""
    steps = np.arange(start, start + frames, dtype=np.int64)
    if fps is None:
        return steps
    return _nearest(times_s, times_s[0] + steps / fps)


def _nearest(
    times_s: npt.NDArray[np.float64], wanted_s: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    if len(times_s) == 1:
        return np.zeros(len(wanted_s), dtype=np.int64)
    after = np.searchsorted(times_s, wanted_s).clip(1, len(times_s) - 1)
    before = after - 1
    nearer_before = wanted_s - times_s[before] <= times_s[after] - wanted_s + TIME_TOLERANCE_S
    nearest: npt.NDArray[np.int64] = np.where(nearer_before, before, after)
    return nearest


def frames_at(
    times_s: npt.NDArray[np.float64], end_s: float, wanted_s: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Return the frames [T] nearest to some times since the first frame, the earlier of two as near.

    Raises ClipError("input_too_short") where the file ends before.
    """
    duration_s = end_s - float(times_s[0])
    if wanted_s.max() > 0 and wanted_s.max() > duration_s - TIME_TOLERANCE_S:
        raise ClipError(
            "input_too_short",
            f"the file lasts {duration_s:.3f} s, and the clip needs a frame at {wanted_s.max():.3f} s",
        )
    return _nearest(times_s, times_s[0] + wanted_s)


def cover_and_crop(
    source: tuple[int, int], target: tuple[int, int], aspect: float = 1.0
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the (height, width) to resize to and the (top, left) of the centre crop.

    The resized frame is the smallest of the source's shape, as shown, that covers the target. aspect: width
    over height of a pixel of the source.
    """
    shown_width = source[1] * aspect
    scale = max(target[0] / source[0], target[1] / shown_width)
    height = max(target[0], round(source[0] * scale))
    width = max(target[1], round(shown_width * scale))
    return (height, width), ((height - target[0]) // 2, (width - target[1]) // 2)


def fit_frame(frame: Frame, out: Frame, interpolation: str, aspect: float = 1.0) -> None:
    """Resize (antialiased) and centre-crop one frame [h, w, 3] into `out` [H, W, 3].

    aspect: width over height of a pixel; out's are square.
    """
    resized, (top, left) = cover_and_crop(frame.shape[:2], out.shape[:2], aspect)
    if resized != frame.shape[:2]:
        frame = _resize(frame, resized, interpolation)
    out[:] = frame[top : top + out.shape[0], left : left + out.shape[1]]


def _resize(frame: Frame, size: tuple[int, int], interpolation: str) -> Any:
    import torch  # imported on first use: a decoding process that never resizes starts faster

    pixels_BCHW = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    try:
        resized = torch.nn.functional.interpolate(
            pixels_BCHW, size=size, mode=interpolation, antialias=True, align_corners=False
        )
    except RuntimeError as error:  # torch has no other name for it on the CPU
        raise MemoryError(f"a frame cannot be resized: {error}") from error
    return resized[0].permute(1, 2, 0).numpy()
