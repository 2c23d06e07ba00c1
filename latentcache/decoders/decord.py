"""decord: the default decoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import decord
import numpy as np
import numpy.typing as npt

from latentcache.decoders.complaints import Complaints
from latentcache.decoders.frames import Frame
from latentcache.decoders.index import PacketIndex

NAME = "decord"
decord.logging.set_level(decord.logging.QUIET)

#: What decord raises for files that it cannot open or decode.
Error: tuple[type[Exception], ...] = (decord.DECORDError, RuntimeError)


class Reader:
    """An open video; decord rotates it as shown.

    `times_s` [N] and `end_s` are its presentation times from the packets' headers: decord's own are
    rounded to float32. Raises one of `Error` where decord's own index is another one.
    """

    name = NAME

    def __init__(self, path: str, index: PacketIndex) -> None:
        self._complaints = Complaints()
        self._complaints.__enter__()  # until `close`: decord decodes ahead in a thread of its own
        decord.logging.set_level(decord.logging.INFO)  # at which FFmpeg says that it conceals
        self._reader: Any = None
        try:
            self._reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
            self._check(index)
        except Error:
            self.close()
            raise
        self.times_s, self.end_s = index.times_s, index.end_s
        self.facts, self.packets = index.facts, index.packets
        self._next = 0

    def _check(self, index: PacketIndex) -> None:
        """Raise RuntimeError where decord's index differs: it counts by it, seeks by it and skips by it.

        Its FFmpeg reads some headers otherwise, such as those of fragments that begin within a group.
        """
        count = len(index.times_s)
        if len(self._reader) != count:
            raise RuntimeError(f"decord counts {len(self._reader)} frames, not {count}")
        if self._reader.get_key_indices() != index.key_frames():
            raise RuntimeError("decord would seek to other frames than those that stand alone")
        if not _are_alike(self._reader.get_frame_timestamp(range(count))[:, 0], index.times_s):
            raise RuntimeError("decord has other times, and would take frames for others")

    def close(self) -> None:
        """Close the video, and leave standard error as it was."""
        self._reader = None
        decord.logging.set_level(decord.logging.QUIET)
        self._complaints.__exit__()

    def frames(self, indices: npt.NDArray[np.int64]) -> Iterator[Frame]:
        """Yield the frames [h, w, 3] at ascending `indices`, each distinct one once.

        Consecutive frames are read one after the other, 1.1 to 1.3 times as fast as decord's get_batch.
        Raises RuntimeError from the first sign of damage on: decord conceals it, and what it has
        decoded refers to it.
        """
        for index in np.unique(indices).tolist():
            frame = self._read(index)
            if complaint := self._complaints.first():
                raise RuntimeError(complaint)
            yield frame

    def _read(self, index: int) -> Frame:
        if index != self._next:
            self._reader.seek_accurate(index)
        self._next = -1  # unknown until the read succeeds
        frame: Frame = self._reader.next().asnumpy()
        if frame.shape[2:] != (3,):
            raise RuntimeError(f"decord returns {frame.shape}, which is no picture in RGB")
        self._next = index + 1
        return frame


def _are_alike(decords_s: npt.NDArray[np.float32], times_s: npt.NDArray[np.float64]) -> bool:
    """Tell whether decord's times, which are rounded, are nearest to those of the same frames.

    decord's count from where the file starts by what is read when it is opened. If that is not the first
    frame, times change as more is read, and after a seek decord takes frames for others.
    """
    smallest_gap_s = np.diff(times_s).min(initial=np.inf)
    return bool((np.abs(decords_s - (times_s - times_s[0])) < smallest_gap_s / 2).all())
