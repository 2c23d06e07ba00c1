"""decord: the default decoder."""

from __future__ import annotations

from collections.abc import Iterator

import decord
import numpy as np
import numpy.typing as npt

from latentcache.decoders.frames import Frame

NAME = "decord"
decord.logging.set_level(decord.logging.QUIET)

#: What decord raises for files that it cannot open or decode.
Error: tuple[type[Exception], ...] = (decord.DECORDError, RuntimeError)


class Reader:
    """An open video; decord rotates it as shown.

    `times_s` [N] and `end_s` are its presentation times from the packets' headers: decord's own are
    rounded to float32, and a file on whose number of frames it does not agree is not for decord.
    """

    name = NAME

    def __init__(self, path: str, times_s: npt.NDArray[np.float64], end_s: float) -> None:
        self._reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        if len(self._reader) != len(times_s):
            raise RuntimeError(f"decord counts {len(self._reader)} frames, not {len(times_s)}")
        self.times_s, self.end_s = times_s, end_s
        self._next = 0

    def frames(self, indices: npt.NDArray[np.int64]) -> Iterator[Frame]:
        """Yield the frames [h, w, 3] at ascending `indices`, each distinct one once.

        Consecutive frames are read one after the other, 1.1 to 1.3 times as fast as decord's get_batch.
        """
        for index in np.unique(indices).tolist():
            if index != self._next:
                self._reader.seek_accurate(index)
            self._next = -1  # unknown until the read succeeds
            frame: Frame = self._reader.next().asnumpy()
            self._next = index + 1
            yield frame
