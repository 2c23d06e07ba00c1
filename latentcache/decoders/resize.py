"""How a frame gets its bucket's size: which part of it, resized to what, by whose arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from latentcache.config.geometry import ResizeConfig
from latentcache.decoders import opencv
from latentcache.decoders.frames import Frame

Size = tuple[int, int]

_PILLOW = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_ROUND: Mapping[str, Callable[[float], int]] = {
    "nearest": round,
    "half_up": lambda x: int(x + 0.5),
    "floor": int,
}


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What becomes of a frame.

    box: the part of it (top, left, height, width, in its pixels) that is resized to `size`; the bucket
    is cut out of that at `crop` (top, left).
    """

    box: tuple[float, float, float, float]
    size: Size
    crop: Size

    def of_whole(self, shape: Size) -> tuple[Size, Size]:
        """Return (size, crop) as if the whole frame had been resized and the bucket cut out of it."""
        top, left, height, width = self.box
        scales = (self.size[0] / height, self.size[1] / width)
        whole = (round(shape[0] * scales[0]), round(shape[1] * scales[1]))
        return whole, (
            self.crop[0] + round(top * scales[0]),
            self.crop[1] + round(left * scales[1]),
        )


def geometry(rules: ResizeConfig, shape: Size, target: Size, aspect: float = 1.0) -> Geometry:
    """Return what becomes of a frame of `shape`. aspect: width over height of one of its pixels."""
    whole = (0.0, 0.0, float(shape[0]), float(shape[1]))
    if rules.fit == "stretch":
        return Geometry(box=whole, size=target, crop=(0, 0))
    if rules.fit == "crop_first":
        return Geometry(box=_whole_pixel_box(shape, target, aspect), size=target, crop=(0, 0))
    if rules.fit == "box":
        return Geometry(box=_exact_box(shape, target, aspect), size=target, crop=(0, 0))
    if rules.fit == "twice":
        size = _cover_in_steps(shape, target, aspect, rules.square)
    else:
        size = _cover(shape, target, aspect, _ROUND[rules.rounding])
    return Geometry(
        box=whole, size=size, crop=((size[0] - target[0]) // 2, (size[1] - target[1]) // 2)
    )


def _cover(shape: Size, target: Size, aspect: float, rounded: Callable[[float], int]) -> Size:
    shown_width = shape[1] * aspect
    scale = max(target[0] / shape[0], target[1] / shown_width)
    return max(target[0], rounded(shape[0] * scale)), max(target[1], rounded(shown_width * scale))


def _cover_in_steps(shape: Size, target: Size, aspect: float, square: int | None) -> Size:
    """Cover the target as SimpleTuner does. square: the side that is covered in place of a square's."""
    ratio = shape[1] * aspect / shape[0]
    if square is None or target[0] != target[1]:
        return _steps(target, ratio)
    height, width = _steps((square, square), ratio)
    if width < target[1]:
        return target
    return max(target[0], height), width


def _steps(target: Size, ratio: float) -> Size:
    """Return a size of this width over height that covers the target: the shorter side first, then more."""
    if target[1] < target[0]:
        height, width = int(target[1] / ratio), target[1]
    else:
        height, width = target[0], int(target[0] * ratio)
    if width < target[1]:
        more = (int((target[1] - width) / ratio), target[1] - width)
    elif height < target[0]:
        more = (target[0] - height, int((target[0] - height) * ratio))
    else:
        more = (0, 0)
    return max(target[0], height + more[0]), max(target[1], width + more[1])


def _whole_pixel_box(shape: Size, target: Size, aspect: float) -> tuple[float, float, float, float]:
    """Return the largest centred part of the target's shape, in whole pixels as FastVideo rounds them."""
    height, width = shape
    ratio = target[0] / target[1] * aspect
    if height / width > ratio:
        height = max(1, int(width * ratio))
    else:
        width = max(1, int(height / ratio))
    top, left = round((shape[0] - height) / 2), round((shape[1] - width) / 2)
    return float(top), float(left), float(height), float(width)


def _exact_box(shape: Size, target: Size, aspect: float) -> tuple[float, float, float, float]:
    """Return the same part to fractions of a pixel, in the arithmetic of Pillow's ImageOps.fit."""
    height, width = float(shape[0]), float(shape[1])
    ratio, wanted = width / height, target[1] / target[0] / aspect
    if ratio > wanted:
        width = wanted * height
    elif ratio < wanted:
        height = width / wanted
    return (shape[0] - height) * 0.5, (shape[1] - width) * 0.5, height, width


def resize_frame(rules: ResizeConfig, frame: Frame, out: Frame, aspect: float = 1.0) -> None:
    """Write a frame [h, w, 3] into `out` [H, W, 3] by the rules. Raises MemoryError."""
    shape = frame.shape[:2]
    plan = geometry(rules, shape, out.shape[:2], aspect)
    enlarges = plan.size[0] * plan.size[1] > plan.box[2] * plan.box[3]
    name = rules.enlarge if rules.enlarge and enlarges else rules.filter
    if rules.fit == "box":
        resized = _by_pillow(name, frame, plan)
    else:
        top, left, height, width = map(int, plan.box)
        part = frame[top : top + height, left : left + width]
        if rules.fit == "twice":
            part = _resized(rules, name, part, out.shape[:2])
        resized = _resized(rules, name, part, plan.size)
    top, left = plan.crop
    out[:] = resized[top : top + out.shape[0], left : left + out.shape[1]]


def _resized(rules: ResizeConfig, name: Any, frame: Frame, size: Size) -> Frame:
    return frame if frame.shape[:2] == size else _by(rules, name, frame, size)


def _by(rules: ResizeConfig, name: Any, frame: Frame, size: Size) -> Frame:
    library = rules.library_of(name)
    if library == "opencv":
        return opencv.area(frame, size) if name == "area" else opencv.linear(frame, size)
    if library == "pillow":
        image = Image.fromarray(np.ascontiguousarray(frame))
        return np.asarray(image.resize((size[1], size[0]), _PILLOW[name]))
    return _by_torch(rules, name, frame, size)


def _by_pillow(name: str, frame: Frame, plan: Geometry) -> Frame:
    top, left, height, width = plan.box
    box = (left, top, left + width, top + height)
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize((plan.size[1], plan.size[0]), _PILLOW[name], box=box))


def _by_torch(rules: ResizeConfig, name: str, frame: Frame, size: Size) -> Frame:
    """Resize with torch: in 8 bits if antialiased, as torchvision does; else in float32, then rounded."""
    import torch  # imported on first use, as in `frames`

    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None]
    given = pixels if rules.antialias else pixels.float()
    try:
        resized = torch.nn.functional.interpolate(
            given,
            size=size,
            mode=name,
            antialias=rules.antialias,
            align_corners=rules.align_corners,
        )
    except RuntimeError as error:  # torch has no other name for it on the CPU
        raise MemoryError(f"a frame cannot be resized: {error}") from error
    if not rules.antialias:
        resized = resized.round().clamp(0, 255).to(torch.uint8)
    return np.asarray(resized[0].permute(1, 2, 0).numpy())


@functools.lru_cache(maxsize=8)
def _rules_of(items: tuple[tuple[str, Any], ...]) -> ResizeConfig:
    return ResizeConfig(**dict(items))


def rules_of(plain: Mapping[str, Any]) -> ResizeConfig:
    """Return the rules that a request carries as plain values."""
    return _rules_of(tuple(sorted(plain.items())))
