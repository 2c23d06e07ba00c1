"""A clip from an open source: which frames it samples, their pixels, and what was done to them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from latentcache.config.geometry import ResizeConfig
from latentcache.decoders.facts import VideoFacts, display_size
from latentcache.decoders.frames import Frame, cover_and_crop, fit_frame, frames_at, select_frames
from latentcache.decoders.resize import geometry, resize_frame, rules_of
from latentcache.decoders.sampling import Indices, clip_frames
from latentcache.decoders.source import Reader
from latentcache.errors import ClipError


def decode_clip(reader: Reader, request: Mapping[str, Any], out: Frame) -> dict[str, Any]:
    """Write a clip's frames into `out` [T, H, W, 3] and return its presentation times."""
    indices = indices_of(reader, request)
    rules = rules_of(request["resize"]) if request.get("resize") else None
    row, shape, aspect = 0, (0, 0), 1.0
    with contextlib.closing(reader.frames(indices)) as frames:
        for index in np.unique(indices).tolist():
            frame = next(frames, None)
            if frame is None:
                raise ClipError("truncated", f"the stream ends before frame {index}")
            if row and frame.shape[:2] != shape:
                raise _size_changed(index, shape, frame.shape)
            first, shape = row, frame.shape[:2]
            aspect = reader.facts.shown_aspect(shape)
            if rules is None:
                fit_frame(frame, out[first], request["interpolation"], aspect)
            else:
                resize_frame(rules, frame, out[first], aspect)
            row += int((indices == index).sum())
            out[first + 1 : row] = out[first]
    start_s, end_s = span_of(reader, indices)
    return {
        "start_s": start_s,
        "end_s": end_s,
        "source_height": shape[0],
        "source_width": shape[1],
        "picture": _picture(reader.facts, shape, out.shape[1:3], aspect, rules),
        "decoder": reader.name,
        "frame_numbers": indices.tolist(),
    }


def span_of(reader: Reader, indices: Indices) -> tuple[float, float]:
    """Return when the first of some frames begins to be shown, and when the last one ends."""
    ends_s = np.append(reader.times_s[1:], reader.end_s)
    return float(reader.times_s[indices[0]]), float(ends_s[int(indices[-1])])


def indices_of(reader: Reader, request: Mapping[str, Any]) -> Indices:
    """Return the source's frames that a clip samples, in order."""
    times_s, end_s = reader.times_s, reader.end_s
    if request.get("times_s") is not None:
        return frames_at(times_s, end_s, np.array(request["times_s"], np.float64))
    start, count, fps = request["start"], request["frames"], request["fps"]
    sampling = request.get("sampling") or "nearest"
    if sampling == "nearest":
        return select_frames(times_s, end_s, start, count, fps)
    duration_s = end_s - float(times_s[0])
    source_fps = request.get("source_fps") or reader.facts.fps
    return clip_frames(sampling, times_s, duration_s, start, count, fps, source_fps)


def wanted_s(request: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return between which times, since the first frame, a clip's are; None if its frames are counted."""
    if request.get("counts_frames"):
        return None
    if request.get("times_s") is not None:
        return min(request["times_s"]), max(request["times_s"])
    fps = request["fps"]
    if fps is None or (request.get("sampling") or "nearest") != "nearest":
        return None
    return request["start"] / fps, (request["start"] + request["frames"] - 1) / fps


def _size_changed(index: int, before: tuple[int, ...], now: tuple[int, ...]) -> ClipError:
    return ClipError(
        "size_changed",
        f"frame {index} is {now[1]} x {now[0]}, and those before it are {before[1]} x {before[0]}: a clip "
        "of both would jump. Encode the file again in one size, or cut it there",
    )


def _picture(
    facts: VideoFacts,
    shape: tuple[int, int],
    target: tuple[int, int],
    aspect: float,
    rules: ResizeConfig | None,
) -> dict[str, Any]:
    """Return the fields of PictureFacts."""
    display = display_size(shape, aspect)
    if rules is None:
        resized, crop = cover_and_crop(shape, target, aspect)
    else:
        resized, crop = geometry(rules, shape, target, aspect).of_whole(shape)
    return {
        "source_fps": facts.fps,
        "display_height": display[0],
        "display_width": display[1],
        "interlaced": facts.interlaced,
        "transfer": facts.transfer,
        "resized_height": resized[0],
        "resized_width": resized[1],
        "crop_top": crop[0],
        "crop_left": crop[1],
    }
