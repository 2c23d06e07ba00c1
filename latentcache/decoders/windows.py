"""Matroska by ranges: an index of a file's first frames and of a span of its time, instead of all.

A clip's frames are chosen by their times, so the frames of its span, each as its packet says, and those of
the beginning and the end are enough: what is chosen, and its pixels, are what the whole file gives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import IO, Any, cast

from latentcache.decoders import look
from latentcache.decoders.complaints import Complaints
from latentcache.decoders.facts import VideoFacts
from latentcache.decoders.index import MAX_DURATION_S, PacketIndex, to_index
from latentcache.decoders.matroska import Layout
from latentcache.decoders.packets import joined, read_span
from latentcache.decoders.ranged import NeedsWholeError, RangedPath
from latentcache.decoders.rates import rate_of
from latentcache.decoders.streams import open_video

#: Packets after the last one that is wanted which a decoder may want before it comes out.
_DELAYED = 4


class Windows:
    """An open Matroska file of which only parts are here. Raises NeedsWholeError where they do not tell.

    num_frames: of the file, by the rate that it declares. start_s, end_s: when its first frame is shown,
    and its last one no more. shape: height and width of the first picture as shown.
    """

    def __init__(self, path: RangedPath, max_pixels: int | None) -> None:
        self._path, self._max_pixels = path, max_pixels
        with path.open() as file:
            self._layout = Layout(cast("IO[bytes]", file))
            container, stream = open_video(path, max_pixels)
            with container, Complaints() as complaints:
                self._number = list(container.streams.video).index(stream)
                self._margin = int(stream.codec_context.reorder_depth) + _DELAYED
                self._base = float(stream.time_base)
                rate = float(stream.average_rate or 0)
                packets = read_span(container, stream, None, None, look.NUM_PICTURES + self._margin)
                self._packets = packets
                _refuse_complaints(complaints, container)
                index = _sound(to_index(path, container, stream, packets))
            last, duration = self._last_frame()
        index, self.shape = look.checked(path, index, max_pixels)
        self._first = int(index.pts[0])
        self.end_s = last * self._base + duration * self._base
        self.num_frames = round((last - self._first) * self._base * rate) + 1
        self.start_s = float(index.times_s[0])
        found_s = self.end_s - self.start_s
        has_rate = rate > 0 and duration > 0 and self.num_frames >= len(index.pts)
        if not has_rate or not 0 < found_s <= MAX_DURATION_S:
            raise NeedsWholeError
        fps = rate_of(index.facts, self.num_frames, found_s)
        self.facts: VideoFacts = replace(index.facts, fps=fps)

    def _last_frame(self) -> tuple[int, int]:
        """Return when the last frame is shown, and for how long, in the stream's time base."""
        blocks = self._layout.last_blocks(self._number, self._margin)
        last = max(blocks, key=lambda block: block.pts)
        usual = {*self._packets.duration}
        if last.duration is not None:
            return last.pts, last.duration
        if len(usual) > 1:
            raise NeedsWholeError
        return last.pts, usual.pop()

    def index(self, first_s: float, last_s: float) -> PacketIndex:
        """Return the index of the frames that are nearest to times between two, since the first frame.

        It also has the file's first frames. Between them frames are left out. Raises NeedsWholeError.
        """
        first = self._first + max(0, int(first_s / self._base))
        last = self._first + int(last_s / self._base) + 1
        self._path.source.ensure(*self._layout.span(self._number, first, last))
        container, stream = open_video(self._path, self._max_pixels)
        with container, Complaints() as complaints:
            span = read_span(container, stream, first, last, self._margin)
            _refuse_complaints(complaints, container)
            packets = joined(self._packets, span)
            index = _sound(to_index(self._path, container, stream, packets))
        return replace(
            index, end_s=self.end_s, facts=self.facts, is_window=True, suits_decord=False
        )


def _sound(index: PacketIndex) -> PacketIndex:
    """Return an index of which frames can be found by their times. Raises NeedsWholeError of others."""
    if index.counted or index.is_guess or index.has_palette or index.packets.joins:
        raise NeedsWholeError
    return index


def _refuse_complaints(complaints: Complaints, container: Any) -> None:
    if complaints.first(container.format.name) is not None:
        raise NeedsWholeError
