"""A source's sound, decoded and resampled by FFmpeg: a clip has what is heard while its frames are shown.

The rule: the stream that FFmpeg plays is decoded from its start and resampled once, as a whole; a clip's
samples are a slice of that. So neighbouring clips fit together, and no bit depends on where reading began.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from latentcache.decoders.streams import DEMUX_ERRORS, failure, open_any
from latentcache.errors import ClipError

Samples = npt.NDArray[np.float32]
#: Times of packets are rounded. A frame that is further off than this stands after a gap, or an overlap.
MAX_DRIFT_S = 0.1
#: Silence is made in pieces of so many samples: a header may claim a gap of hours.
_PIECE = 1 << 16


class SoundReader:
    """The sound of one file as samples [n, channels] at one rate.

    It is read forward, and once more from the start if a span lies before what it holds. Raises
    ClipError("no_sound") if there is none, and others as decoders of pictures do.
    """

    def __init__(self, path: str, rate: int, channels: int) -> None:
        self._path, self.rate, self.channels = path, rate, channels
        self._pieces: Iterator[tuple[int, Samples]] = iter(())
        self._closing = contextlib.ExitStack()
        self._rewind()

    def _rewind(self) -> None:
        self.close()
        self._pieces = self._read()
        self._t0 = 0.0
        self._kept: list[Samples] = []
        #: Numbers of the first sample that is kept, and of the one after the last.
        self._first = self._end = 0
        self._ended = False

    def close(self) -> None:
        """Close the file."""
        self._closing.close()

    def span(self, start_s: float, end_s: float, max_samples: int) -> tuple[Samples, int]:
        """Return the samples [n, channels] of a span of the file's time, and how many more there would be.

        n = round((end_s - start_s) * rate), `max_samples` at most. Before the sound begins, and after it
        ends, there is silence. Raises ClipError("no_sound") if the span has none of it.
        """
        count = round((end_s - start_s) * self.rate)
        wanted = max(0, min(count, max_samples))
        if not self._end and not self._pull():
            raise ClipError("no_sound", "the file has a sound stream, and nothing in it")
        first = round((start_s - self._t0) * self.rate)
        if max(0, first) < self._first:
            self._rewind()
            self._pull()
        while self._end < first + wanted and self._pull():
            self._forget(first)
        out = np.zeros((wanted, self.channels), np.float32)
        if not self._fill(out, first):
            raise ClipError(
                "no_sound",
                f"the sound is heard from {self._t0:.3f} to {self._t0 + self._end / self.rate:.3f} s, and "
                f"the clip is shown from {start_s:.3f} to {end_s:.3f} s",
            )
        return out, count - wanted

    def _fill(self, out: Samples, first: int) -> bool:
        """Put what is kept where it belongs; returns whether there was any."""
        at, is_any = self._first, False
        for piece in self._kept:
            low, high = max(at, first), min(at + len(piece), first + len(out))
            if low < high:
                out[low - first : high - first] = piece[low - at : high - at]
                is_any = True
            at += len(piece)
        return is_any

    def _forget(self, first: int) -> None:
        """Drop pieces that end before a sample."""
        while len(self._kept) > 1 and self._first + len(self._kept[0]) <= first:
            self._first += len(self._kept.pop(0))

    def _pull(self) -> bool:
        """Read one piece more; False at the end."""
        start, piece = next(self._pieces, (0, None))
        if piece is None:
            return False
        for gap in range(self._end, start, _PIECE):  # silence
            self._append(np.zeros((min(_PIECE, start - gap), self.channels), np.float32))
        self._append(piece[max(0, self._end - start) :])
        return True

    def _append(self, piece: Samples) -> None:
        self._kept.append(piece)
        self._end += len(piece)

    def _read(self) -> Iterator[tuple[int, Samples]]:
        """Yield pieces with the number of their first sample, in order; they may overlap."""
        container = self._closing.enter_context(open_any(self._path))
        stream = container.streams.best("audio")
        if stream is None:
            raise ClipError("no_sound", "the file has no sound")
        if stream.codec_context is None:
            raise ClipError("unreadable", "FFmpeg has no decoder for the sound")
        run = _Run(self.rate)
        t0: float | None = None
        for frame in _decoded(container, stream):
            if t0 is None:
                t0 = self._t0 = _time_of(frame, 0.0)
            if not run.fits(frame):
                yield from self._mixed(run, run.finish())
                run = _Run(self.rate, round((_time_of(frame, run.next_s) - t0) * self.rate))
            yield from self._mixed(run, run.add(frame))
        yield from self._mixed(run, run.finish())

    def _mixed(self, run: _Run, frames: list[Any]) -> Iterator[tuple[int, Samples]]:
        for frame in frames:
            samples = _mix(frame.to_ndarray(), self.channels)
            yield run.place(len(samples)), samples


class _Run:
    """Frames without a gap, which are resampled as one. start: the number of their first sample."""

    def __init__(self, rate: int, start: int = 0) -> None:
        self._rate, self._number = rate, start
        self._resampler: Any = None
        self._kind: tuple[str, str, int] | None = None
        self.next_s = 0.0

    def fits(self, frame: Any) -> bool:
        """Tell whether a frame goes on where the last one ended, in the same form."""
        if self._kind is None:
            return True
        is_next = abs(_time_of(frame, self.next_s) - self.next_s) <= MAX_DRIFT_S
        return is_next and self._kind == _kind_of(frame)

    def add(self, frame: Any) -> list[Any]:
        """Return what comes out of the resampler for a frame."""
        if self._resampler is None:
            self._kind = _kind_of(frame)
            layout = frame.layout.name if frame.layout.nb_channels <= 2 else "stereo"
            self._resampler = av.AudioResampler(format="fltp", layout=layout, rate=self._rate)
            self.next_s = _time_of(frame, self.next_s)
        self.next_s += frame.samples / frame.sample_rate
        return self._resample(frame)

    def finish(self) -> list[Any]:
        """Return the rest."""
        return [] if self._resampler is None else self._resample(None)

    def _resample(self, frame: Any) -> list[Any]:
        try:
            return [out for out in self._resampler.resample(frame) if out is not None]
        except (av.FFmpegError, ValueError) as error:
            raise failure("corrupt", "the sound cannot be resampled", error) from error

    def place(self, num_samples: int) -> int:
        """Return the number of the first of so many samples."""
        self._number += num_samples
        return self._number - num_samples


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    stream.thread_type = "NONE"  # decoding processes are the parallelism
    stream.codec_context.thread_count = 1
    try:
        for packet in container.demux(stream):
            yield from stream.codec_context.decode(packet if packet.size else None)
    except DEMUX_ERRORS as error:
        raise failure("corrupt", "the sound is damaged", error) from error


def _kind_of(frame: Any) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _time_of(frame: Any, otherwise: float) -> float:
    """Return when a frame is heard, in s; of one that does not say, `otherwise`."""
    return otherwise if frame.time is None else float(frame.time)


def _mix(planes: npt.NDArray[Any], channels: int) -> Samples:
    """Return planes [1 or 2, n] as samples [n, channels]: the mean of both, or one twice."""
    if len(planes) > channels:
        planes = planes.mean(axis=0, dtype=np.float32, keepdims=True)
    return np.ascontiguousarray(np.broadcast_to(planes, (channels, planes.shape[1])).T, np.float32)
