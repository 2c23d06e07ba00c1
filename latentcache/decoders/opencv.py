"""OpenCV's two resize filters that trainers use, bit for bit, without OpenCV.

Both follow the order of its additions in 32 bits: `resizeArea_` and `ResizeAreaFast` of INTER_AREA, and the
fixed point of INTER_LINEAR for 8 bits. Tests compare them with OpenCV 4.11 and 5.0.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
_Table = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]

#: Parts of a source pixel below this do not count.
_AREA_EPSILON = 1e-3
#: Weights of INTER_LINEAR are in units of 1 / 2048.
_LINEAR_UNIT = np.float32(2048)


def area(frame: Frame, size: tuple[int, int]) -> Frame:
    """Reduce a frame [h, w, 3] to `size` (height, width), as cv2.resize with INTER_AREA does."""
    source_y, source_x = frame.shape[:2]
    scales = (1 / (size[0] / source_y), 1 / (size[1] / source_x))
    whole = [round(scale) for scale in scales]
    epsilon = np.finfo(np.float64).eps
    if all(abs(scale - n) < epsilon for scale, n in zip(scales, whole, strict=True)):
        return _area_of_blocks(frame, size, *whole)
    columns = _weighted_rows(frame.transpose(1, 0, 2), _area_table(source_x, size[1]))
    rows = _weighted_rows(columns.transpose(1, 0, 2), _area_table(source_y, size[0]))
    return np.rint(rows).clip(0, 255).astype(np.uint8)


def _area_of_blocks(frame: Frame, size: tuple[int, int], rows: int, columns: int) -> Frame:
    height, width = size
    cut = frame[: rows * height, : columns * width].astype(np.int32)
    sums = cut.reshape(height, rows, width, columns, -1).sum((1, 3))
    if rows == columns == 2:
        mean = (sums + 2) >> 2
    else:
        mean = np.rint(sums.astype(np.float32) * np.float32(1 / (rows * columns)))
    return np.asarray(mean, np.uint8)


def _area_table(source: int, target: int) -> _Table:
    """Return, tap after tap, the index and the weight for each of the target's pixels."""
    scale = 1 / (target / source)
    taps = [_area_taps(scale, at, source) for at in range(target)]
    table = []
    for number in range(max(map(len, taps))):
        some = [t[number] if number < len(t) else (0, 0.0) for t in taps]
        index, weight = zip(*some, strict=True)
        table.append((np.array(index, np.int64), np.array(weight, np.float32)))
    return table


def _area_taps(scale: float, at: int, source: int) -> list[tuple[int, float]]:
    first = at * scale
    last = first + scale
    cell = min(scale, source - first)
    end = min(math.floor(last), source - 1)
    start = min(math.ceil(first), end)
    taps = []
    if start - first > _AREA_EPSILON:
        taps.append((start - 1, (start - first) / cell))
    taps += [(index, 1 / cell) for index in range(start, end)]
    if last - end > _AREA_EPSILON:
        taps.append((end, min(last - end, 1.0, cell) / cell))
    return taps


def _weighted_rows(pixels: npt.NDArray[np.generic], table: _Table) -> npt.NDArray[np.float32]:
    """Return the weighted sums of rows: fetching whole rows is several times as fast."""
    flat = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1)
    out = np.zeros((len(table[0][0]), flat.shape[1]), np.float32)
    part = np.empty_like(out)
    for index, weight in table:
        np.multiply(flat[index], weight[:, None], out=part, dtype=np.float32, casting="unsafe")
        out += part
    return out.reshape(len(out), *pixels.shape[1:])


def linear(frame: Frame, size: tuple[int, int]) -> Frame:
    """Resize a frame [h, w, 3] to `size` (height, width), as cv2.resize with INTER_LINEAR does."""
    source_y, source_x = frame.shape[:2]
    if source_y == 2 * size[0] and source_x == 2 * size[1]:
        return _area_of_blocks(frame, size, 2, 2)
    index, weight = _linear_table(source_x, size[1], is_cut=True)
    columns = np.ascontiguousarray(frame.transpose(1, 0, 2)).astype(np.int32)
    low, high = (columns[i] * w[:, None, None] for i, w in zip(index, weight, strict=True))
    rows = np.ascontiguousarray((low + high).transpose(1, 0, 2)) >> 4
    index, weight = _linear_table(source_y, size[0], is_cut=False)
    low, high = ((rows[i] * w[:, None, None]) >> 16 for i, w in zip(index, weight, strict=True))
    return ((low + high + 2) >> 2).clip(0, 255).astype(np.uint8)


def _linear_table(
    source: int, target: int, *, is_cut: bool
) -> tuple[tuple[npt.NDArray[np.int64], ...], tuple[npt.NDArray[np.int32], ...]]:
    """Return two indices and two weights per pixel. is_cut: beyond the border, one weighs all."""
    scale = 1 / (target / source)
    at = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    part = (at - first).astype(np.float32)
    if is_cut:
        part[(first < 0) | (first >= source - 1)] = 0
    weights = ((np.float32(1) - part) * _LINEAR_UNIT, part * _LINEAR_UNIT)
    low, high = (np.rint(weight).astype(np.int32) for weight in weights)
    return (first.clip(0, source - 1), (first + 1).clip(0, source - 1)), (low, high)
