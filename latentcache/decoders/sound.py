"""A source's sound, decoded and resampled by FFmpeg: a clip has what is heard while its frames are shown.

The rule: the stream that FFmpeg plays is decoded from its start and resampled once, as a whole; a clip's
samples are a slice of that. So neighbouring clips fit together, and no bit depends on where reading began.
Of joined recordings each is decoded by itself, and heard while its own pictures are shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from latentcache.decoders.packets import PacketTable
from latentcache.decoders.sound_parts import Follower, Part, parts_of
from latentcache.decoders.streams import (
    DEMUX_ERRORS,
    best_video,
    container_failure,
    failure,
    open_any,
)
from latentcache.errors import ClipError

Samples = npt.NDArray[np.float32]
#: Times of packets are rounded. A frame that is further off than this stands after a gap, or an overlap.
MAX_DRIFT_S = 0.1


class SoundReader:
    """The sound of one file as samples [n, channels] at one rate.

    It is read forward, and once more from the start if a span lies before what it holds. Raises
    ClipError("no_sound") if there is none, and others as decoders of pictures do. packets: of the file's
    video, whose times the sound's are; None: there is no video.
    """

    def __init__(
        self, path: str, rate: int, channels: int, packets: PacketTable | None = None
    ) -> None:
        self._path, self.rate, self.channels, self._packets = path, rate, channels, packets
        self._pieces: Iterator[tuple[int, Samples]] = iter(())
        self._closing = contextlib.ExitStack()
        self._rewind()

    def _rewind(self) -> None:
        self.close()
        self._pieces = self._read()
        self._t0 = 0.0
        #: Pieces with the numbers of their first samples. Between them is silence, of hours maybe.
        self._kept: list[tuple[int, Samples]] = []
        #: Numbers of the first sample that is known, and of the one after the last.
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
        """Put what is kept where it belongs; returns whether the sound reaches there."""
        last = first + len(out)
        for start, piece in self._kept:
            low, high = max(start, first), min(start + len(piece), last)
            if low < high:
                out[low - first : high - first] = piece[low - start : high - start]
        return max(first, self._first) < min(last, self._end)

    def _forget(self, first: int) -> None:
        """Drop pieces that end before a sample."""
        while len(self._kept) > 1 and (end := _end_of(self._kept[0])) <= first:
            self._first = end
            del self._kept[0]

    def _pull(self) -> bool:
        """Read one piece more; False at the end."""
        start, piece = next(self._pieces, (0, None))
        if piece is None:
            return False
        piece = piece[max(0, self._end - start) :]
        if len(piece):
            self._kept.append((max(start, self._end), piece))
            self._end = _end_of(self._kept[-1])
        return True

    def _read(self) -> Iterator[tuple[int, Samples]]:
        """Yield pieces with the number of their first sample, in order; they may overlap."""
        run, t0 = _Run(self.rate), None
        for part, frame in self._frames():
            if t0 is None:
                t0 = self._t0 = _time_of(frame, 0.0)
            if not run.fits(part, frame):
                yield from self._mixed(run, run.finish())
                run = _Run(self.rate, round((_time_of(frame, run.next_s) - t0) * self.rate))
            yield from self._mixed(run, run.add(part, frame))
        yield from self._mixed(run, run.finish())

    def _frames(self) -> Iterator[tuple[Part, Any]]:
        """Yield the frames of the sound, each with the recording that it belongs to."""
        container = self._closing.enter_context(open_any(self._path))
        stream = container.streams.best("audio")
        if stream is None:
            raise ClipError("no_sound", "the file has no sound")
        if stream.codec_context is None:
            raise ClipError("unreadable", "FFmpeg has no decoder for the sound")
        try:
            yield from _decoded(container, stream, self._packets)
        except DEMUX_ERRORS as error:
            raise container_failure("corrupt", "the sound is damaged", error, self._path) from error

    def _mixed(self, run: _Run, frames: list[Any]) -> Iterator[tuple[int, Samples]]:
        """Yield what is heard of a run's frames while pictures of its recording are shown."""
        for frame in frames:
            samples = _mix(frame.to_ndarray(), self.channels)
            start = run.place(len(samples))
            low, high = (self._number_at(s) - start for s in (run.part.start_s, run.part.end_s))
            low = max(0, low)
            if low < min(high, len(samples)):
                yield start + low, samples[low:high]

    def _number_at(self, time_s: float) -> int:
        """Return the number of the sample at a time; it may be infinite."""
        limit = 1 << 62
        return round(min(max((time_s - self._t0) * self.rate, -limit), limit))


def _end_of(kept: tuple[int, Samples]) -> int:
    start, piece = kept
    return start + len(piece)


class _Run:
    """Frames of one recording without a gap, which are resampled as one.

    start: the number of their first sample.
    """

    def __init__(self, rate: int, start: int = 0) -> None:
        self._rate, self._number = rate, start
        self._resampler: Any = None
        self._kind: tuple[str, str, int] | None = None
        self.next_s = 0.0
        self.part = Part()

    def fits(self, part: Part, frame: Any) -> bool:
        """Tell whether a frame goes on where the last one ended, in the same form."""
        if self._kind is None:
            return True
        is_next = abs(_time_of(frame, self.next_s) - self.next_s) <= MAX_DRIFT_S
        return is_next and part == self.part and self._kind == _kind_of(frame)

    def add(self, part: Part, frame: Any) -> list[Any]:
        """Return what comes out of the resampler for a frame."""
        if self._resampler is None:
            self._kind, self.part = _kind_of(frame), part
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


def _decoded(
    container: Any, stream: Any, packets: PacketTable | None
) -> Iterator[tuple[Part, Any]]:
    stream.thread_type = "NONE"  # decoding processes are the parallelism
    context = stream.codec_context
    context.thread_count = 1
    video = best_video(container) if packets is not None and packets.joins else None
    parts = parts_of(packets, Fraction(1) if video is None else video.time_base)
    follower, last = Follower(parts), parts[0]
    for packet in container.demux(*([stream] if video is None else [video, stream])):
        if packet.stream.index != stream.index:
            follower.see(packet)
            continue
        part = follower.place(packet) if packet.size else last
        if part is not last:  # nothing of one recording decodes the next
            yield from ((last, frame) for frame in context.decode(None))
            context.flush_buffers()
            last = part
        yield from ((part, frame) for frame in context.decode(packet if packet.size else None))


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
